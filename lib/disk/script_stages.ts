/**
 * Filters that C++ has too, as scripts: the same options, the same behaviour, for chains in which a script lies below
 * them, and for the JavaScript engine. What is asked for at the same time may overtake; every answer is the disk's own.
 */
import { closeSync, openSync, writeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { getSystemErrorName } from 'node:util'
import { crc32 } from 'node:zlib'
import { VbdError } from '../errors.js'
import {
  type DiskDefinition,
  DiskError,
  errnoOf,
  type MakeFilter,
  type OpenDisk,
} from './script.js'
import { type CacheStage, cacheStage } from './script_cache.js'
import { concatStage, type SliceStage, sliceStage } from './script_compose.js'
import { type EncryptStage, encryptStage } from './script_encrypt.js'
import { type ReadAheadStage, readAheadStage } from './script_read_ahead.js'

export interface ThrottleStage {
  /** 0: no limit. */
  readonly iops: number
  readonly bps: number
  readonly burstSeconds: number
  /** Disks of one group share one rate. */
  readonly group?: string
}

export interface DelayStage {
  readonly readMs: number
  readonly writeMs: number
  readonly flushMs: number
  readonly discardMs: number
}

export interface FaultStage {
  readonly ops: readonly string[]
  readonly errno: number
  readonly probability: number
  readonly seed: number
  readonly offsetBytes: number
  readonly lengthBytes?: number
  readonly skip: number
  readonly count?: number
}

export interface LogStage {
  readonly path: string
}

export interface VerifyStage {
  readonly blockBytes: number
  readonly reportOnly: boolean
}

/** One request on its way down. */
interface Passing {
  readonly op: 'read' | 'write' | 'flush' | 'discard'
  readonly offset: number
  readonly length: number
  readonly fua: boolean
}

type Definition = DiskDefinition<unknown>

/** The same disk, with `pass` around every request; `go` has the disk below do it. */
function around(
  next: OpenDisk,
  pass: (request: Passing, go: () => Promise<void>) => Promise<void>,
): Definition {
  // Zeroes come as writes: what the disk below does in a way of its own would pass by.
  const { write, flush, discard, zero: _zero, ...rest } = next
  const of = (op: Passing['op'], offset: number, length: number, fua: boolean) => ({
    op,
    offset,
    length,
    fua,
  })
  return {
    ...rest,
    read: (buf, offset, io) =>
      pass(of('read', offset, buf.length, false), () => next.read(buf, offset, io)),
    ...(write && {
      write: (buf, offset, io) =>
        pass(of('write', offset, buf.length, io.fua), () => write(buf, offset, io)),
    }),
    ...(flush && { flush: (io) => pass(of('flush', 0, 0, false), () => flush(io)) }),
    ...(discard && {
      discard: (offset, length, io) =>
        pass(of('discard', offset, length, false), () => discard(offset, length, io)),
    }),
  }
}

/** Milliseconds until when what was taken is paid for; 0: nothing was. */
class Bucket {
  #balance = 0

  dueMs(burstMs: number): number {
    return this.#balance - burstMs
  }

  take(costMs: number, now: number): void {
    this.#balance = Math.max(this.#balance, now) + costMs
  }
}

interface Rate {
  readonly requests: Bucket
  readonly bytes: Bucket
  /** Requests pass one after the other. */
  turn: Promise<void>
}

/** By group; they are few, and last as long as the process. */
const groups = new Map<string, Rate>()

function rateOf(group: string | undefined): Rate {
  const fresh = () => ({ requests: new Bucket(), bytes: new Bucket(), turn: Promise.resolve() })
  if (group === undefined) return fresh()
  const rate = groups.get(group) ?? fresh()
  groups.set(group, rate)
  return rate
}

/** At most so many requests and bytes a second, in order; flushes pass. */
export function throttleStage({
  iops,
  bps,
  burstSeconds,
  group,
}: ThrottleStage): MakeFilter<unknown> {
  const burstMs = burstSeconds * 1000
  return (next) => {
    const rate = rateOf(group)
    const admit = async ({ op, length }: Passing) => {
      for (;;) {
        const due = Math.max(rate.requests.dueMs(burstMs), rate.bytes.dueMs(burstMs))
        const wait = due - performance.now()
        if (wait <= 0) break
        await sleep(Math.ceil(wait))
      }
      const now = performance.now()
      if (iops > 0) rate.requests.take(1000 / iops, now)
      if (bps > 0 && op !== 'discard') rate.bytes.take((1000 * length) / bps, now)
    }
    return around(next, async (request, go) => {
      if (request.op !== 'flush') {
        const admitted = rate.turn.then(() => admit(request))
        rate.turn = admitted
        await admitted
      }
      await go()
    })
  }
}

/** Lets operations begin later. */
export function delayStage({
  readMs,
  writeMs,
  flushMs,
  discardMs,
}: DelayStage): MakeFilter<unknown> {
  const times = { read: readMs, write: writeMs, flush: flushMs, discard: discardMs }
  return (next) =>
    around(next, async ({ op }, go) => {
      if (times[op] > 0) await sleep(times[op])
      await go()
    })
}

const U64 = (1n << 64n) - 1n

/** native/base/mix64.h: the n-th number of a seed. */
function mix64(seed: number, n: number): bigint {
  let z = (BigInt(seed) + (BigInt(n) + 1n) * 0x9e3779b97f4a7c15n) & U64
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & U64
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & U64
  return z ^ (z >> 31n)
}

/** Answers some requests with an error: those that the native stage would. */
export function faultStage(stage: FaultStage): MakeFilter<unknown> {
  const { ops, errno, probability, seed, offsetBytes, lengthBytes, skip, count } = stage
  const end = lengthBytes === undefined ? Number.POSITIVE_INFINITY : offsetBytes + lengthBytes
  return (next) => {
    let matched = 0
    let left = count ?? Number.POSITIVE_INFINITY
    const strikes = ({ op, offset, length }: Passing): boolean => {
      if (!ops.includes(op)) return false
      if (op !== 'flush' && (offset >= end || offset + length <= offsetBytes)) return false
      const n = matched++
      if (n < skip || Number(mix64(seed, n) >> 11n) * 2 ** -53 >= probability) return false
      if (left === 0) return false
      left--
      return true
    }
    return around(next, async (request, go) => {
      if (strikes(request)) throw errorOf(errno)
      await go()
    })
  }
}

/** Appends one line of JSON for each request, once it is answered. */
export function logStage({ path }: LogStage): MakeFilter<unknown> {
  return (next) => {
    let fd = -1
    const definition = around(next, async ({ op, offset, length, fua }, go) => {
      const time = new Date().toISOString()
      const start = performance.now()
      let error: string | undefined
      try {
        await go()
      } catch (thrown) {
        error = getSystemErrorName(-(errnoOf(thrown) ?? 5))
        throw thrown
      } finally {
        const latencyNs = Math.round((performance.now() - start) * 1e6)
        const more = { ...(fua && { fua }), ...(error !== undefined && { error }) }
        append(fd, { time, op, offset, bytes: length, latencyNs, ...more })
      }
    })
    return {
      ...definition,
      open() {
        try {
          fd = openSync(path, 'a', 0o600)
        } catch (cause) {
          const { code } = cause as NodeJS.ErrnoException
          throw new VbdError('ERR_VBD_BACKING', `the log ${path} cannot be written (${code})`, {
            path,
            remedy: 'check the path and its permissions',
            cause,
          })
        }
      },
      close: () => closeSync(fd),
    }
  }
}

/** A log that cannot be written (a full file system) stops nobody's disk. */
function append(fd: number, line: object): void {
  try {
    writeSync(fd, `${JSON.stringify(line)}\n`)
  } catch {}
}

/** Of one block: its checksum, while that is known, and who is changing it. */
interface Known {
  checksum: number | undefined
  writers: number
  /** Counts changes: a read that was overtaken by one compares nothing. */
  version: number
}

/** Remembers checksums of whole blocks, and notices a disk that answers with something else. */
export function verifyStage({ blockBytes, reportOnly }: VerifyStage): MakeFilter<unknown> {
  return (next) => {
    const blocks = new Map<number, Known>()
    const at = (block: number): Known => {
      let known = blocks.get(block)
      if (known === undefined) {
        known = { checksum: undefined, writers: 0, version: 0 }
        blocks.set(block, known)
      }
      return known
    }
    const each = (offset: number, length: number, act: (block: number) => void) => {
      if (length === 0) return
      const last = Math.floor((offset + length - 1) / blockBytes)
      for (let block = Math.floor(offset / blockBytes); block <= last; block++) act(block)
    }
    /** Undefined where the block is not all in the buffer. */
    const checksumIn = (buf: Uint8Array, offset: number, block: number) => {
      const begin = block * blockBytes - offset
      if (begin < 0 || begin + blockBytes > buf.length) return undefined
      return crc32(buf.subarray(begin, begin + blockBytes))
    }
    /** Runs a change; what its blocks hold afterwards is what `checksum` says, if nobody else was at them. */
    const change = async (
      offset: number,
      length: number,
      go: () => Promise<void>,
      checksum: (block: number) => number | undefined,
    ) => {
      const alone = new Map<number, number>()
      each(offset, length, (block) => {
        const known = at(block)
        known.checksum = undefined
        known.writers++
        alone.set(block, ++known.version)
      })
      let done = false
      try {
        await go()
        done = true
      } finally {
        each(offset, length, (block) => {
          const known = at(block)
          known.writers--
          const untouched = known.writers === 0 && known.version === alone.get(block)
          known.checksum = done && untouched ? checksum(block) : undefined
          known.version++
        })
      }
    }
    /** Changes the end of the disk: what lies there from `offset` on is unknown before and after. */
    const changeEnd = async (offset: number, go: () => Promise<void>) => {
      const forget = () => {
        for (const [block, known] of blocks) {
          if ((block + 1) * blockBytes <= offset) continue
          known.checksum = undefined
          known.version++
        }
      }
      forget()
      try {
        await go()
      } finally {
        forget()
      }
    }
    // Zeroes come as writes, as above.
    const { write, discard, resize, zero: _zero, ...rest } = next
    return {
      ...rest,
      async read(buf, offset, io) {
        const before = new Map<number, number>()
        each(offset, buf.length, (block) => {
          const { writers, version } = at(block)
          if (writers === 0) before.set(block, version)
        })
        await next.read(buf, offset, io)
        let lied: number | undefined
        each(offset, buf.length, (block) => {
          const known = at(block)
          if (known.version !== before.get(block)) return
          const checksum = checksumIn(buf, offset, block)
          known.checksum ??= checksum
          if (checksum !== undefined && checksum !== known.checksum) lied ??= block * blockBytes
        })
        if (lied === undefined) return
        const text = `the disk below answers with something else than what it has at ${lied}`
        if (reportOnly) process.emitWarning(text, 'VbdVerifyWarning')
        else throw new Error(text)
      },
      ...(write && {
        async write(buf, offset, io) {
          await change(
            offset,
            buf.length,
            () => write(buf, offset, io),
            (block) => checksumIn(buf, offset, block),
          )
        },
      }),
      ...(discard && {
        async discard(offset, length, io) {
          await change(
            offset,
            length,
            () => discard(offset, length, io),
            () => undefined,
          )
        },
      }),
      ...(resize && { resize: (size) => changeEnd(size, () => resize(size)) }),
    }
  }
}

function errorOf(errno: number): DiskError {
  if (errno === 28) return new DiskError('ENOSPC')
  return new DiskError(errno === 95 ? 'EOPNOTSUPP' : 'EIO')
}

type StageInBoth =
  | ({ readonly driver: 'slice' } & SliceStage)
  | ({ readonly driver: 'throttle' } & ThrottleStage)
  | ({ readonly driver: 'delay' } & DelayStage)
  | ({ readonly driver: 'fault' } & FaultStage)
  | ({ readonly driver: 'log' } & LogStage)
  | ({ readonly driver: 'verify' } & VerifyStage)
  | ({ readonly driver: 'encrypt' } & EncryptStage)
  | ({ readonly driver: 'cache' } & CacheStage)
  | ({ readonly driver: 'readAhead' } & ReadAheadStage)

/** A disk out of the open disks below it: one, but for a concatenation. */
export type MakeStage = (disks: readonly OpenDisk[]) => Definition

/** A stage of C++ as a script; undefined where only C++ has it. */
export function scriptStageOf(given: { readonly driver: string }): MakeStage | undefined {
  if (given.driver === 'concat') return concatStage
  const make = filterOf(given as StageInBoth)
  return make && (([next]) => make(next!))
}

function filterOf(spec: StageInBoth): MakeFilter<unknown> | undefined {
  switch (spec.driver) {
    case 'slice':
      return sliceStage(spec)
    case 'throttle':
      return throttleStage(spec)
    case 'delay':
      return delayStage(spec)
    case 'fault':
      return faultStage(spec)
    case 'log':
      return logStage(spec)
    case 'verify':
      return verifyStage(spec)
    case 'encrypt':
      return encryptStage(spec)
    case 'cache':
      return cacheStage(spec)
    case 'readAhead':
      return readAheadStage(spec)
    default:
      return undefined
  }
}
