/**
 * Native filters: each a function that makes a disk of the disk below it, for `disk.with(...)`. Plain descriptions; see
 * disk.ts.
 */
import { constants } from 'node:os'
import { resolve } from 'node:path'
import { VbdError } from '../errors.js'
import { formatSize, parseDuration, parseSize } from '../units.js'
import { type Disk, type DiskFilter, type Stage, StagedDisk } from './disk.js'
import type { FaultSpec, StageSpec } from './spec.js'

export interface ThrottleOptions {
  /** Requests a second; 0 or absent: no limit. Flushes are not counted. */
  readonly iops?: number
  /** Bytes a second, as `parseSize` takes them: `'10MiB'`; 0 or absent: no limit. */
  readonly bps?: string | number | bigint
  /** What an idle disk may save up, in time at its rate; milliseconds or `'100ms'`, which is the default. */
  readonly burst?: string | number
  /** Disks with the same group share one rate; their limits have to be the same. */
  readonly group?: string
}

/**
 * At most so many requests and bytes a second. What is over the rate waits, in order. `vbd.tuneStage('throttle', ...)`
 * changes the limits while guests use the disk.
 *
 * @throws ERR_VBD_ARGUMENT for a limit that is not 0 to 1e15, or a burst that is longer than an hour
 */
export function throttle(options: ThrottleOptions): DiskFilter {
  const iops = limit('iops', options.iops ?? 0)
  const bps = limit('bps', parseSize(options.bps ?? 0))
  const burstSeconds = parseDuration(options.burst ?? 100) / 1000
  const { group } = options
  if (burstSeconds > 3600) throw bad('burst is longer than an hour', 'give a shorter burst')
  if (group === '') throw bad('the name of a throttle group is empty', 'name the group')
  const label = [
    ...(iops > 0 ? [`${iops} iops`] : []),
    ...(bps > 0 ? [`${formatSize(bps)}/s`] : []),
    ...(group === undefined ? [] : [`group ${group}`]),
  ]
  return filter(`throttle(${label.join(', ')})`, {
    driver: 'throttle',
    iops,
    bps,
    burstSeconds,
    ...(group === undefined ? {} : { group }),
  })
}

/** How much later an operation begins, in milliseconds or as `parseDuration` takes it. An hour at most. */
export interface DelayOptions {
  readonly read?: string | number
  readonly write?: string | number
  readonly flush?: string | number
  readonly discard?: string | number
}

/**
 * Lets operations begin later, each kind by its own time.
 *
 * @throws ERR_VBD_ARGUMENT for what is no duration of up to an hour
 */
export function delay(options: DelayOptions | string | number): DiskFilter {
  const given = typeof options === 'object' ? options : { read: options, write: options }
  const ms = (name: keyof DelayOptions) => {
    const value = parseDuration(given[name] ?? 0)
    if (value <= 3_600_000) return value
    throw bad(`the delay of ${name} is longer than an hour`, 'give a shorter delay')
  }
  const times = { readMs: ms('read'), writeMs: ms('write') }
  const rest = { flushMs: ms('flush'), discardMs: ms('discard') }
  const label = Object.entries({ ...times, ...rest })
    .filter(([, value]) => value > 0)
    .map(([name, value]) => `${name.slice(0, -2)} ${value}ms`)
  return filter(`delay(${label.join(', ')})`, { driver: 'delay', ...times, ...rest })
}

export type FaultOperation = 'read' | 'write' | 'flush' | 'discard'

export interface FaultOptions {
  /** Which operations; all by default. A flush that fails makes a vbd stop writing for good. */
  readonly op?: FaultOperation | readonly FaultOperation[]
  /** Name of the errno: `EIO` (default), `ENOSPC`, ... A guest is told only that it failed. */
  readonly code?: string
  /** Share of the matching requests that fail: 0..1; 1 by default. */
  readonly probability?: number
  /** Which of them: the n-th one has the same fate for the same seed. 0 by default. */
  readonly seed?: number
  /** When: only requests that touch this part of the disk, after so many others, and so many in all. */
  readonly when?: {
    readonly offset?: string | number | bigint
    readonly length?: string | number | bigint
    /** Matching requests that pass first. */
    readonly skip?: number
    /** Faults, then no more; without end by default. */
    readonly count?: number
  }
}

/**
 * Answers some requests with an error, without asking the disk.
 *
 * @throws ERR_VBD_ARGUMENT for an operation, errno or number that is none
 */
export function fault(options: FaultOptions = {}): DiskFilter {
  const { op = [], code = 'EIO', probability = 1, seed = 0, when = {} } = options
  const errno = (constants.errno as Readonly<Record<string, number>>)[code]
  if (errno === undefined) {
    throw bad(`'${code}' is not the name of an error`, 'name an errno: EIO, ENOSPC, ETIMEDOUT, ...')
  }
  if (!(probability >= 0 && probability <= 1)) {
    throw bad(`a probability cannot be ${probability}`, 'give 0 to 1')
  }
  const ops = (typeof op === 'string' ? [op] : op).map(operation)
  const offsetBytes = parseSize(when.offset ?? 0)
  const spec: Omit<FaultSpec, 'base'> = {
    driver: 'fault',
    ops: ops.length > 0 ? ops : ['read', 'write', 'flush', 'discard'],
    errno,
    probability,
    seed: whole('seed', seed),
    offsetBytes,
    ...(when.length === undefined ? {} : { lengthBytes: parseSize(when.length) }),
    skip: whole('skip', when.skip ?? 0),
    ...(when.count === undefined ? {} : { count: whole('count', when.count) }),
  }
  const share = probability === 1 ? '' : ` ${probability * 100}%`
  return filter(`fault(${code}${share}${ops.length > 0 ? ` of ${ops.join(', ')}` : ''})`, spec)
}

export interface LogOptions {
  /** Appends one line of JSON for each request to this file. */
  readonly path: string
  /** Records kept until they are written, a power of two of 64 to 1048576; what is over that is lost, and counted. */
  readonly records?: number
}

/**
 * Keeps a record of every request: when, what, where, how long it took and its error. Written off the data path.
 *
 * @throws ERR_VBD_ARGUMENT
 */
export function log(options: LogOptions | string): DiskFilter {
  const { path, records = 16384 } = typeof options === 'string' ? { path: options } : options
  if (path === '' || path.includes('\0')) {
    throw bad('the path of the log is empty or holds a NUL', 'name a file')
  }
  if (!isPowerOfTwo(records) || records < 64 || records > 1 << 20) {
    throw bad(`a log cannot keep ${records} records`, 'give a power of two of 64 to 1048576')
  }
  return filter(`log(${resolve(path)})`, { driver: 'log', path: resolve(path), records })
}

export interface VerifyOptions {
  /** Bytes that have one checksum, a power of two of a sector to 64KiB; 4KiB by default. */
  readonly blockSize?: string | number
  /** What a read with a wrong checksum is: an error (default), or only counted. */
  readonly onMismatch?: 'error' | 'report'
}

/**
 * Remembers the checksum of everything that is written or read, and notices a disk that answers with something else.
 * For as long as the disk is open; takes 8 bytes of memory for every block that was touched.
 *
 * @throws ERR_VBD_ARGUMENT
 */
export function verify(options: VerifyOptions = {}): DiskFilter {
  const blockBytes = parseSize(options.blockSize ?? 4096)
  const reportOnly = options.onMismatch === 'report'
  if (!isPowerOfTwo(blockBytes) || blockBytes < 512 || blockBytes > 65536) {
    throw bad(`a block of verify cannot have ${blockBytes} bytes`, 'give 512, 4KiB, ... or 64KiB')
  }
  return filter(`verify(${reportOnly ? 'report' : 'error'})`, {
    driver: 'verify',
    blockBytes,
    reportOnly,
  })
}

/** A filter whose spec is `spec` over that of the disk below. */
export function filter(label: string, spec: StageSpec, more: Partial<Stage> = {}): DiskFilter {
  return (base: Disk) =>
    new StagedDisk([base], {
      label,
      spec: ([below]) => ({ ...spec, base: below! }),
      ...more,
    })
}

function operation(name: string): FaultOperation {
  if (name === 'read' || name === 'write' || name === 'flush' || name === 'discard') return name
  throw bad(`there is no operation '${name}'`, 'use read, write, flush or discard')
}

function limit(name: string, value: number): number {
  if (value >= 0 && value <= 1e15) return value
  throw bad(`${name} cannot be ${value}`, 'give 0 to 1e15 a second; 0: no limit')
}

function whole(name: string, value: number): number {
  if (Number.isSafeInteger(value) && value >= 0) return value
  throw bad(`${name} cannot be ${value}`, 'give a whole number of 0 or more')
}

function isPowerOfTwo(value: number): boolean {
  return Number.isInteger(Math.log2(value))
}

function bad(message: string, remedy: string): VbdError {
  return new VbdError('ERR_VBD_ARGUMENT', message, { remedy })
}
