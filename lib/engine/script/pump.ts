/**
 * Pump: runs a disk's functions for the requests of its channel. A bell starts it; it takes everything that is there,
 * calls the functions, and brings answers back with one kick for each batch: those of functions that are not async at
 * once, the others with the microtasks that they settle in.
 *
 * A slot whose request was given up (its deadline passed) stays the function's until that settles, however late.
 */
import type { DiskFunctions } from '../../disk/open_definition.js'
import { DiskError, errnoOf, type RequestIo } from '../../disk/script.js'
import { VbdError } from '../../errors.js'
import type { NativeScriptEnd } from '../addon.js'
import { Op, ScriptRing } from './ring.js'

const EIO = 5
const OP_NAMES = ['read', 'write', 'flush', 'discard'] as const

/** Submissions taken before other events of this thread have their turn. */
const TURN = 256

export interface PumpOptions {
  readonly name: string
  readonly functions: DiskFunctions
  readonly state: unknown
  /** What a function threw, and whose request that was. */
  readonly onError: (error: VbdError, vbd: string) => void
}

/** One request's `io`. */
class SlotIo implements RequestIo<unknown> {
  readonly vbd: string
  readonly tag: number
  readonly fua: boolean
  readonly state: unknown
  #controller: AbortController | undefined
  #aborted = false

  constructor(vbd: string, tag: number, fua: boolean, state: unknown) {
    this.vbd = vbd
    this.tag = tag
    this.fua = fua
    this.state = state
  }

  /** Made when somebody asks: most do not. */
  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#controller = new AbortController()
      if (this.#aborted) this.#controller.abort()
    }
    return this.#controller.signal
  }

  abort(): void {
    this.#aborted = true
    this.#controller?.abort()
  }
}

/** Serves one channel on this thread. */
export class Pump {
  readonly #options: PumpOptions
  readonly #end: NativeScriptEnd
  readonly #ring: ScriptRing
  readonly #buffers: (Buffer | undefined)[]
  readonly #running: (SlotIo | undefined)[]
  readonly #clients: string[] = []
  #kickDue = false
  readonly #again = () => this.#turn()
  #detached = false

  constructor(
    attach: (channel: number, onBell: () => void) => NativeScriptEnd,
    channel: number,
    options: PumpOptions,
  ) {
    this.#options = options
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
    const io = new SlotIo(
      this.#client(ring.client(slot)),
      ring.tag(slot),
      ring.fua(slot),
      this.#options.state,
    )
    let settled: void | Promise<void>
    try {
      settled = this.#call(slot, io)
    } catch (thrown) {
      ring.answer(slot, this.#failed(slot, io, thrown))
      this.#kickDue = true
      return
    }
    if (settled === undefined) {
      ring.answer(slot, 0)
      this.#kickDue = true
      return
    }
    this.#running[slot] = io
    Promise.resolve(settled).then(
      (value) => this.#settle(slot, value === undefined ? 0 : this.#refuse(slot, io)),
      (thrown) => this.#settle(slot, this.#failed(slot, io, thrown)),
    )
  }

  #call(slot: number, io: SlotIo): void | Promise<void> {
    const ring = this.#ring
    const { read, write, flush, discard } = this.#options.functions
    const offset = ring.offset(slot)
    const length = ring.length(slot)
    switch (ring.op(slot)) {
      case Op.read:
        return read(this.#buffer(slot, length), offset, io)
      case Op.write:
        if (write !== undefined) return write(this.#buffer(slot, length), offset, io)
        break
      case Op.flush:
        if (flush !== undefined) return flush(io)
        break
      case Op.discard:
        if (discard !== undefined) return discard(offset, length, io)
        break
    }
    return Promise.reject(new DiskError('EOPNOTSUPP'))
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

  /** The errno for what a function threw; tells of everything but DiskErrors. */
  #failed(slot: number, io: SlotIo, thrown: unknown): number {
    const errno = errnoOf(thrown)
    if (errno !== undefined) return errno
    const what = thrown instanceof Error ? thrown.message : String(thrown)
    this.#tell(slot, io, what, thrown)
    return EIO
  }

  /** Who returns bytes means them to be the answer. */
  #refuse(slot: number, io: SlotIo): number {
    this.#tell(slot, io, 'it returned something; fill the buffer that is given', undefined)
    return EIO
  }

  #tell(slot: number, io: SlotIo, what: string, cause: unknown): void {
    const ring = this.#ring
    const op = OP_NAMES[ring.op(slot)] ?? 'request'
    const range = op === 'flush' ? '' : ` of ${ring.length(slot)} bytes at ${ring.offset(slot)}`
    const message = `the disk ${this.#options.name} failed a ${op}${range}: ${what}`
    this.#options.onError(new VbdError('ERR_VBD_IO', message, { vbd: io.vbd, cause }), io.vbd)
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
