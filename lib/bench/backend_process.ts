/**
 * The backend of a benchmark: a process that serves disks to the guests of a mock Xen with one engine, as `vbdkit
 * serve` does. Runs as a Child.
 */
import { readFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { Backend, type BackendOptions, type ServeOptions } from '../backend.js'
import { defineDisk } from '../disk/define.js'
import type { Disk } from '../disk/disk.js'
import { file, memory, nullDisk } from '../disk/drivers.js'
import { throttle } from '../disk/filters.js'
import type { FileSpec, SizedSpec } from '../disk/spec.js'
import type { Tunables } from '../engine/engine.js'
import { VbdError } from '../errors.js'
import type { EngineChoice } from '../platform.js'
import type { Vbd } from '../vbd/vbd.js'
import { serveCalls } from './child.js'

export interface OpenBackend {
  readonly dir: string
  readonly engine: EngineChoice
  readonly jsIo?: BackendOptions['jsIo']
  readonly tunables: Partial<Tunables>
}

/** A disk in TypeScript: `memory` copies from and to a Buffer, `nothing` leaves reads to be zeroes. */
export interface ScriptMeasured {
  readonly driver: 'script'
  readonly does: 'memory' | 'nothing'
  readonly sizeBytes: number
}

/** A file with a limit that is never reached. */
export interface ThrottleMeasured {
  readonly driver: 'throttle'
  readonly base: FileSpec
}

/** Disks that are measured. */
export type MeasuredDisk = FileSpec | SizedSpec | ScriptMeasured | ThrottleMeasured

export interface ServeDisk {
  /** `1:xvda` */
  readonly id: string
  readonly disk: MeasuredDisk
  readonly options: Pick<ServeOptions, 'transfer' | 'ringOrder' | 'queues' | 'indirectSegments'>
}

let backend: Backend | undefined
const served = new Map<string, Vbd>()
let disturbance: NodeJS.Timeout | undefined
let garbage: Buffer[] = []

function open(): Backend {
  if (backend === undefined) throw new VbdError('ERR_VBD_STATE', 'the backend is not open')
  return backend
}

const BLOCK_MS = 5
const EVERY_MS = 20
const GARBAGE_BYTES = 1024 * 1024

/** Blocks the event loop for 5 ms in every 20 and allocates 50 MB in every second. */
function disturb(): void {
  const end = performance.now() + BLOCK_MS
  garbage = []
  for (let i = 0; i < 64; i++) garbage.push(Buffer.alloc(GARBAGE_BYTES / 64))
  while (performance.now() < end) Math.sqrt(end)
}

const handlers = {
  async open({ dir, jsIo, ...options }: OpenBackend): Promise<void> {
    const io = jsIo === undefined ? {} : { jsIo }
    backend = await Backend.open({ xen: `mock:${dir}`, reactors: 1, ...io, ...options })
  },

  async serve({ id, disk, options }: ServeDisk): Promise<void> {
    served.set(id, await open().serve(id, diskOf(disk), options))
  },

  async tune(tunables: Partial<Tunables>): Promise<void> {
    open().tune(tunables)
  },

  async unserve(id: string): Promise<void> {
    await served.get(id)?.close()
    served.delete(id)
  },

  /** Private memory that is resident once garbage is collected, bytes: guests' pages are theirs. */
  async memory(): Promise<number> {
    for (let i = 0; i < 3; i++) {
      globalThis.gc?.()
      await delay(20)
    }
    const kib = /^RssAnon:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]
    return Number(kib) * 1024
  },

  async disturb(on: boolean): Promise<void> {
    clearInterval(disturbance)
    if (on) disturbance = setInterval(disturb, EVERY_MS)
  },
}

/** More than any disk does. */
const NEVER_REACHED_IOPS = 1e9

function scriptOf({ does, sizeBytes }: ScriptMeasured): Disk {
  if (does === 'nothing') return defineDisk({ name: does, size: sizeBytes, read() {} })
  // Filled, since memory that was never written is one page of zeroes over and over.
  const store = Buffer.alloc(sizeBytes, 1)
  return defineDisk({
    name: does,
    size: sizeBytes,
    read(buf, offset) {
      store.copy(buf, 0, offset, offset + buf.length)
    },
    write(buf, offset) {
      buf.copy(store, offset)
    },
  })
}

function diskOf(spec: MeasuredDisk): Disk {
  if (spec.driver === 'script') return scriptOf(spec)
  if (spec.driver === 'throttle')
    return diskOf(spec.base).with(throttle({ iops: NEVER_REACHED_IOPS }))
  if (spec.driver === 'file') {
    const { path, readOnly = false, direct = 'auto', io = 'auto' } = spec
    return file(path, { readOnly, direct, io })
  }
  if (spec.driver === 'memory') return memory(spec.sizeBytes)
  return nullDisk(spec.sizeBytes, { noFill: spec.noFill === true })
}

export type BackendHandlers = typeof handlers

serveCalls(handlers, async () => {
  clearInterval(disturbance)
  await backend?.close()
})
