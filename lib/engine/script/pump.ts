/**
 * Pump: runs a disk's functions for the requests of its channel. A bell starts it; it takes everything that is there,
 * calls the functions, and brings answers back with one kick for each batch: those of functions that are not async at
 * once, the others with the microtasks that they settle in.
 *
 * A slot whose request was given up (its deadline passed) stays the function's until that settles, however late.
 */
import type { NativeScriptEnd } from '../addon.js'
import { ScriptCalls, type ScriptCallsOptions, type ScriptIo } from './calls.js'
import { Op, ScriptRing } from './ring.js'

/** Submissions taken before other events of this thread have their turn. */
const TURN = 256

/** Serves one channel on this thread. */
export class Pump {
  readonly #calls: ScriptCalls
  readonly #end: NativeScriptEnd
  readonly #ring: ScriptRing
  readonly #buffers: (Buffer | undefined)[]
  readonly #running: (ScriptIo | undefined)[]
  /** By slot, made with its first use: what its function settles. */
  readonly #settlers: ((errno: number) => void)[] = []
  readonly #clients: string[] = []
  #kickDue = false
  readonly #again = () => this.#turn()
  #detached = false

  constructor(
    attach: (channel: number, onBell: () => void) => NativeScriptEnd,
    channel: number,
    options: ScriptCallsOptions,
  ) {
    this.#calls = new ScriptCalls(options)
    this.#end = attach(channel, () => this.#turn())
    this.#ring = new ScriptRing(this.#end)
    this.#buffers = new Array(this.#end.slots)
    this.#running = new Array(this.#end.slots)
  }

  /** Ends it: what the functions still run is aborted and answered by nobody. Idempotent. */
  detach(): void {
    if (this.#detached) return
    this.#detached = true
    this.#end.detach()
    for (const io of this.#running) io?.abort()
  }

  #turn(): void {
    if (this.#detached) return
    let left = TURN
    for (let pending = this.#ring.pending(); pending > 0; pending = this.#ring.pending()) {
      for (; pending > 0; pending--, left--) this.#take(this.#ring.take())
      this.#kick()
      if (left <= 0 || this.#detached) break
    }
    if (this.#detached) return
    // Armed, it is called back. Else it goes on after the other events of this thread.
    if (left <= 0 || !this.#ring.arm()) setImmediate(this.#again)
  }

  #take(entry: number): void {
    const slot = ScriptRing.slotOf(entry)
    if (ScriptRing.isAbort(entry)) {
      this.#running[slot]?.abort()
      return
    }
    const ring = this.#ring
    const op = ring.op(slot)
    const length = ring.length(slot)
    const buffer = op <= Op.write ? this.#buffer(slot, length) : undefined
    const io = this.#calls.io(this.#client(ring.client(slot)), ring.tag(slot), ring.fua(slot))
    this.#settlers[slot] ??= (errno) => this.#settle(slot, errno)
    const settle = this.#settlers[slot]
    const errno = this.#calls.start(op, buffer, ring.offset(slot), length, io, settle)
    if (errno === undefined) {
      this.#running[slot] = io
    } else {
      ring.answer(slot, errno)
      this.#kickDue = true
    }
  }

  #settle(slot: number, error: number): void {
    if (this.#detached) return
    this.#running[slot] = undefined
    this.#ring.answer(slot, error)
    if (this.#kickDue) return
    this.#kickDue = true
    queueMicrotask(() => this.#kick())
  }

  #kick(): void {
    if (!this.#kickDue || this.#detached) return
    this.#kickDue = false
    this.#end.kick()
  }

  /** The slot's memory; the same Buffer again for requests of the same length. */
  #buffer(slot: number, length: number): Buffer {
    let buffer = this.#buffers[slot]
    if (buffer === undefined || buffer.length !== length) {
      buffer = Buffer.from(this.#end.pool, slot * this.#end.slotBytes, length)
      this.#buffers[slot] = buffer
    }
    return buffer
  }

  #client(index: number): string {
    let name = this.#clients[index]
    if (name === undefined) {
      name = this.#end.clientName(index)
      this.#clients[index] = name
    }
    return name
  }
}
