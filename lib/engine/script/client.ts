/**
 * A native disk for the script above it: reads and writes go through a queue of its own (native/block/disk_client.h),
 * in batches both ways: one kick for all that is asked for in one batch of microtasks, one bell for all that is
 * answered meanwhile. Data is copied between buffers of the caller and memory of the client, so that a caller may do
 * what it likes at any time.
 */

import { openDisk } from '../../disk/open_disk.js'
import { DiskError, type ForwardedIo, type OpenDisk } from '../../disk/script.js'
import { settled } from '../../disk/settled.js'
import type { NativeDisk, NativeDiskClient, NativeEngine } from '../addon.js'
import type { EngineDisk } from '../engine.js'
import { ClientRing, Op } from './ring.js'

const SLOTS = 64
const ENOSPC = 28
const EOPNOTSUPP = 95

interface Waiting {
  resolve(): void
  reject(error: Error): void
}

interface Request {
  readonly op: number
  readonly offset: number
  readonly length: number
  readonly fua: boolean
  /** A read's destination, a write's source. */
  readonly data: Uint8Array | undefined
}

/** A client of an open native disk. */
export class DiskClient {
  readonly disk: OpenDisk
  readonly #end: NativeDiskClient
  readonly #ring: ClientRing
  readonly #free: number[] = []
  readonly #running: ({ request: Request; waiting: Waiting } | undefined)[] = []
  readonly #queued: { request: Request; waiting: Waiting }[] = []
  #kickDue = false
  #closed = false

  /** `below` outlives it. */
  constructor(name: string, below: EngineDisk, native: NativeDisk, engine: NativeEngine) {
    this.#end = engine.openClient(native, SLOTS, () => this.#answers())
    this.#ring = new ClientRing(this.#end)
    for (let slot = SLOTS; slot > 0; slot--) this.#free.push(slot - 1)
    const { info } = below
    const { sectorSize, physicalSectorSize, discardGranularity, readOnly } = info
    this.disk = openDisk({
      name,
      size: () => below.info.sizeBytes,
      sectorSize: sectorSize === 4096 ? 4096 : 512,
      physicalSectorSize,
      discardGranularity,
      read: (buf, offset) => this.#move(Op.read, buf, offset, {}),
      write: readOnly ? undefined : (buf, offset, io) => this.#move(Op.write, buf, offset, io),
      flush: info.canFlush && !readOnly ? () => this.#submit(FLUSH) : undefined,
      discard:
        info.canDiscard && !readOnly
          ? (offset, length) =>
              this.#submit({ op: Op.discard, offset, length, fua: false, data: undefined })
          : undefined,
      zero: undefined,
      extents: undefined,
      resize: async (size) => void (await below.resize(size)),
    })
  }

  /** Waits for what is at the device; what is asked for from now on fails. Idempotent. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#end.close()
    const gone = new DiskError('EIO', 'the disk has been closed')
    for (const entry of [...this.#running, ...this.#queued.splice(0)]) entry?.waiting.reject(gone)
  }

  /** In pieces of what a slot holds. */
  async #move(op: number, buf: Uint8Array, offset: number, io: ForwardedIo): Promise<void> {
    const most = this.#end.slotBytes
    const fua = io.fua === true
    if (buf.length <= most) {
      if (buf.length === 0) return
      return this.#submit({ op, offset, length: buf.length, fua, data: buf })
    }
    const pieces: Promise<void>[] = []
    for (let at = 0; at < buf.length; at += most) {
      const data = buf.subarray(at, at + most)
      pieces.push(this.#submit({ op, offset: offset + at, length: data.length, fua, data }))
    }
    await settled(pieces)
  }

  #submit(request: Request): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#closed) return reject(new DiskError('EIO', 'the disk has been closed'))
      const entry = { request, waiting: { resolve, reject } }
      const slot = this.#free.pop()
      if (slot === undefined) this.#queued.push(entry)
      else this.#begin(slot, entry)
    })
  }

  #begin(slot: number, entry: { request: Request; waiting: Waiting }): void {
    const { op, offset, length, fua, data } = entry.request
    if (op === Op.write) this.#memory(slot, length).set(data!)
    this.#running[slot] = entry
    this.#ring.submit(slot, op, fua, offset, length)
    if (this.#kickDue) return
    this.#kickDue = true
    queueMicrotask(() => this.#kick())
  }

  #kick(): void {
    this.#kickDue = false
    if (this.#closed) return
    this.#end.kick()
    // The first of a batch asks for the bell.
    this.#answers()
  }

  #answers(): void {
    if (this.#closed) return
    do {
      while (this.#ring.answered() > 0) this.#finish(...this.#ring.takeAnswer())
    } while (this.#free.length < SLOTS && !this.#ring.arm())
  }

  #finish(slot: number, error: number): void {
    const { request, waiting } = this.#running[slot]!
    this.#running[slot] = undefined
    if (error === 0 && request.op === Op.read) {
      request.data!.set(this.#memory(slot, request.length))
    }
    const next = this.#queued.shift()
    if (next === undefined) this.#free.push(slot)
    else this.#begin(slot, next)
    if (error === 0) waiting.resolve()
    else waiting.reject(errorOf(error))
  }

  #memory(slot: number, length: number): Uint8Array {
    return new Uint8Array(this.#end.pool, slot * this.#end.slotBytes, length)
  }
}

const FLUSH: Request = { op: Op.flush, offset: 0, length: 0, fua: false, data: undefined }

function errorOf(errno: number): DiskError {
  if (errno === ENOSPC) return new DiskError('ENOSPC')
  return new DiskError(errno === EOPNOTSUPP ? 'EOPNOTSUPP' : 'EIO', `errno ${errno}`)
}
