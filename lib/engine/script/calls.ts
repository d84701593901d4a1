/**
 * ScriptCalls: one script disk's functions, called for requests. What a function returns, throws or rejects with
 * becomes an errno, the same wherever requests come from: the channel of a native disk (pump.ts), or a ring that the
 * JavaScript engine serves.
 */
import type { DiskFunctions } from '../../disk/open_definition.js'
import { DiskError, errnoOf, type RequestIo } from '../../disk/script.js'
import { VbdError } from '../../errors.js'
import { Op } from './ring.js'

const EIO = 5
const OP_NAMES = ['read', 'write', 'flush', 'discard'] as const

/** For messages. */
export type ScriptOperation = (typeof OP_NAMES)[number]

/** @param op as `Op` has it */
export function operationName(op: number): ScriptOperation {
  return OP_NAMES[op] ?? 'read'
}

export interface ScriptCallsOptions {
  readonly name: string
  readonly functions: DiskFunctions
  readonly state: unknown
  /** What a function threw, and whose request that was. */
  readonly onError: (error: VbdError, vbd: string) => void
}

/** One request's `io`. */
export class ScriptIo implements RequestIo<unknown> {
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

export class ScriptCalls {
  readonly #o: ScriptCallsOptions

  constructor(options: ScriptCallsOptions) {
    this.#o = options
  }

  io(vbd: string, tag: number, fua: boolean): ScriptIo {
    return new ScriptIo(vbd, tag, fua, this.#o.state)
  }

  /**
   * Calls the function for one request; `buffer` is what a read or write moves. Returns 0 or an errno, or undefined
   * where the function is async: then `settle` is called with it, once, and not before this returns.
   */
  start(
    op: number,
    buffer: Buffer | undefined,
    offset: number,
    length: number,
    io: ScriptIo,
    settle: (errno: number) => void,
  ): number | undefined {
    let settled: void | Promise<void>
    try {
      settled = this.#call(op, buffer, offset, length, io)
    } catch (thrown) {
      return this.#failed(op, offset, length, io, thrown)
    }
    if (settled === undefined) return 0
    Promise.resolve(settled).then(
      (value) => settle(value === undefined ? 0 : this.#refuse(op, offset, length, io)),
      (thrown) => settle(this.#failed(op, offset, length, io, thrown)),
    )
    return undefined
  }

  #call(
    op: number,
    buffer: Buffer | undefined,
    offset: number,
    length: number,
    io: ScriptIo,
  ): void | Promise<void> {
    const { read, write, flush, discard } = this.#o.functions
    switch (op) {
      case Op.read:
        return read(buffer!, offset, io)
      case Op.write:
        if (write !== undefined) return write(buffer!, offset, io)
        break
      case Op.flush:
        if (flush !== undefined) return flush(io)
        break
      case Op.discard:
        if (discard !== undefined) return discard(offset, length, io)
        break
    }
    throw new DiskError('EOPNOTSUPP')
  }

  /** The errno for what a function threw; tells of everything but DiskErrors. */
  #failed(op: number, offset: number, length: number, io: ScriptIo, thrown: unknown): number {
    const errno = errnoOf(thrown)
    if (errno !== undefined) return errno
    const what = thrown instanceof Error ? thrown.message : String(thrown)
    this.#tell(op, offset, length, io, what, thrown)
    return EIO
  }

  /** Who returns bytes means them to be the answer. */
  #refuse(op: number, offset: number, length: number, io: ScriptIo): number {
    const what = 'it returned something; fill the buffer that is given'
    this.#tell(op, offset, length, io, what, undefined)
    return EIO
  }

  #tell(
    op: number,
    offset: number,
    length: number,
    { vbd }: ScriptIo,
    what: string,
    cause: unknown,
  ): void {
    const range = op === Op.flush ? '' : ` of ${length} bytes at ${offset}`
    const message = `the disk ${this.#o.name} failed a ${operationName(op)}${range}: ${what}`
    this.#o.onError(new VbdError('ERR_VBD_IO', message, { vbd, cause }), vbd)
  }
}
