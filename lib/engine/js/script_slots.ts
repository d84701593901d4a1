/**
 * ScriptSlots: the requests of one disk whose functions are called directly, in this thread, without a channel: as many
 * at a time as the disk takes, the others in a line; each in memory of its own that no guest can reach, a megabyte at a
 * time; each with a deadline.
 *
 *   submit ─► a free slot, or the line ─► copy in ─► the function ─► copy out ─► next piece, or done
 *                                                        └─ too late: failed; the slot stays the function's until that
 *                                                           settles, however late
 */
import type { OverdueRequest } from '../addon.js'
import { IO } from '../primitives.js'
import { operationName, type ScriptCalls, type ScriptIo } from '../script/calls.js'
import { Op } from '../script/ring.js'
import { type DiskQueue, ERRNO } from './disk_queue.js'
import type { InFlight } from './in_flight.js'

/** Of one call. */
const PIECE_BYTES = 1 << 20
const LEAST_BUFFER_BYTES = 1 << 16

/** Whoever submitted a request. */
export interface ScriptAsker extends DiskQueue {
  /** `1:xvda` */
  readonly vbd: string
  /** The request is done, while submit() is under way or later. */
  finished(item: InFlight, errno: number): void
}

export interface ScriptSlotsOptions {
  readonly calls: ScriptCalls
  /** 1..256 */
  readonly concurrency: number
  /** Infinity: none. */
  readonly deadlineMs: number
  readonly onOverdue: (request: OverdueRequest) => void
}

interface Asked {
  readonly asker: ScriptAsker
  readonly item: InFlight
  /** On performance.now(), while it waits in the line. */
  readonly dueMs: number
}

class Slot {
  asker: ScriptAsker | undefined
  /** Absent: free, or given up while its function runs. */
  item: InFlight | undefined
  io: ScriptIo | undefined
  op = 0
  pieceBytes = 0
  dueMs = 0
  readonly settle: (errno: number) => void
  #memory = new ArrayBuffer(0)
  #buffer: Buffer | undefined

  constructor(onSettled: (slot: Slot, errno: number) => void) {
    this.settle = (errno) => onSettled(this, errno)
  }

  /** The slot's memory; the same Buffer again for requests of the same length. */
  buffer(length: number): Buffer {
    if (this.#buffer?.length === length) return this.#buffer
    if (this.#memory.byteLength < length) {
      let bytes = LEAST_BUFFER_BYTES
      while (bytes < length) bytes *= 2
      this.#memory = new ArrayBuffer(bytes)
    }
    this.#buffer = Buffer.from(this.#memory, 0, length)
    return this.#buffer
  }
}

export class ScriptSlots {
  readonly #o: ScriptSlotsOptions
  readonly #slots: Slot[] = []
  readonly #free: Slot[] = []
  readonly #line: Asked[] = []
  #tag = 0
  #abandoned = 0
  #timer: NodeJS.Timeout | undefined
  #closed = false

  constructor(options: ScriptSlotsOptions) {
    this.#o = options
    for (let i = 0; i < options.concurrency; i++) {
      const slot = new Slot((settled, errno) => this.#settled(settled, errno))
      this.#slots.push(slot)
      this.#free.push(slot)
    }
  }

  /** Runs it now where a slot is free. */
  ask(asker: ScriptAsker, item: InFlight): void {
    item.done = 0
    const slot = this.#line.length === 0 ? this.#free.pop() : undefined
    if (slot !== undefined) {
      this.#begin(slot, asker, item)
      return
    }
    this.#line.push({ asker, item, dueMs: performance.now() + this.#o.deadlineMs })
    this.#watch()
  }

  /** Nothing is in flight but what was given up: those functions are told. */
  close(): void {
    this.#closed = true
    clearTimeout(this.#timer)
    for (const { io } of this.#slots) io?.abort()
  }

  #begin(slot: Slot, asker: ScriptAsker, item: InFlight): void {
    slot.asker = asker
    slot.item = item
    this.#run(slot)
  }

  /** Calls the function for one piece after the other, as long as they answer at once; then the line moves up. */
  #run(slot: Slot): void {
    for (;;) {
      const errno = this.#call(slot)
      if (errno === undefined || !this.#advance(slot, errno)) break
    }
  }

  /** The errno where it is known at once. */
  #call(slot: Slot): number | undefined {
    const item = slot.item!
    const { vbd } = slot.asker!
    const moves = item.io !== IO.flush && item.io !== IO.discard
    const left = item.length - item.done
    const length = moves ? Math.min(left, PIECE_BYTES) : left
    slot.pieceBytes = length
    let buffer: Buffer | undefined
    if (moves) {
      buffer = slot.buffer(length)
      if (item.io === IO.read) buffer.fill(0)
      else copyPiece(item, buffer, false)
    }
    slot.op = item.io === IO.durableWrite ? Op.write : item.io
    const fua = item.io === IO.durableWrite
    const io = this.#o.calls.io(vbd, ++this.#tag, fua)
    slot.io = io
    const offset = item.offset + item.done
    const errno = this.#o.calls.start(slot.op, buffer, offset, length, io, slot.settle)
    if (errno === undefined) {
      slot.dueMs = performance.now() + this.#o.deadlineMs
      this.#watch()
    }
    return errno
  }

  /** An async function is done. */
  #settled(slot: Slot, errno: number): void {
    if (slot.item === undefined) {
      // Given up before.
      this.#abandoned--
      this.#release(slot)
    } else if (this.#advance(slot, errno)) {
      this.#run(slot)
    }
  }

  /** After a piece; true: the slot has another one to run, of this request or of the next in the line. */
  #advance(slot: Slot, errno: number): boolean {
    const item = slot.item!
    if (errno === 0) {
      if (item.io === IO.read) copyPiece(item, slot.buffer(slot.pieceBytes), true)
      item.done += slot.pieceBytes
      if (item.done < item.length) return true
    }
    const asker = slot.asker!
    slot.item = undefined
    asker.finished(item, errno)
    return this.#next(slot)
  }

  #release(slot: Slot): void {
    if (this.#next(slot)) this.#run(slot)
  }

  /** The first of the line takes the slot; false: it is free. */
  #next(slot: Slot): boolean {
    slot.io = undefined
    const next = this.#closed ? undefined : this.#line.shift()
    if (next === undefined) {
      slot.asker = undefined
      this.#free.push(slot)
      return false
    }
    slot.asker = next.asker
    slot.item = next.item
    return true
  }

  // ---- deadlines

  #watch(): void {
    if (this.#timer !== undefined || this.#closed || this.#o.deadlineMs === Infinity) return
    let dueMs = Infinity
    for (const { item, io, dueMs: due } of this.#slots) {
      if (item !== undefined && io !== undefined) dueMs = Math.min(dueMs, due)
    }
    if (this.#allLost && this.#line.length > 0) dueMs = this.#line[0]!.dueMs
    if (dueMs === Infinity) return
    const ms = Math.max(1, Math.ceil(dueMs - performance.now()))
    this.#timer = setTimeout(() => this.#failOverdue(), ms)
    this.#timer.unref()
  }

  /** Nobody in the line can hope for a slot. */
  get #allLost(): boolean {
    return this.#abandoned === this.#slots.length
  }

  #failOverdue(): void {
    this.#timer = undefined
    const nowMs = performance.now()
    for (const slot of this.#slots) {
      const { item, io, asker } = slot
      if (item === undefined || io === undefined || slot.dueMs > nowMs) continue
      slot.item = undefined
      this.#abandoned++
      this.#giveUp(asker!, item)
      io.abort()
    }
    // Whoever waits behind requests that run has their deadlines; behind lost ones alone, its own.
    while (this.#allLost && this.#line.length > 0 && this.#line[0]!.dueMs <= nowMs) {
      const { asker, item } = this.#line.shift()!
      this.#giveUp(asker, item)
    }
    this.#watch()
  }

  #giveUp(asker: ScriptAsker, item: InFlight): void {
    const { offset, length } = item
    const operation = operationName(item.io === IO.durableWrite ? Op.write : item.io)
    this.#o.onOverdue({ operation, offset, length, vbd: asker.vbd })
    asker.finished(item, ERRNO.timedOut)
  }
}

/** Moves the present piece of a request between the guest's pages and a buffer as long as the piece. */
function copyPiece(item: InFlight, buffer: Buffer, toGuest: boolean): void {
  const { regions, starts, lengths } = item.arrays
  let skip = item.done
  let at = 0
  for (let i = 0; i < item.pieceCount && at < buffer.length; i++) {
    const length = lengths[i]!
    if (skip >= length) {
      skip -= length
      continue
    }
    const bytes = Math.min(length - skip, buffer.length - at)
    const start = starts[i]! + skip
    const guest = regions[i]!.bytes.subarray(start, start + bytes)
    if (toGuest) guest.set(buffer.subarray(at, at + bytes))
    else buffer.set(guest, at)
    at += bytes
    skip = 0
  }
}
