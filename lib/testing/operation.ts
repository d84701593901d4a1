/**
 * Operation: one call of a Frontend's user (a read, a write, a flush, ...), until it is settled.
 *
 * It is cut into pieces that each fit a request; pieces are taken when a ring has room for them, so an operation of
 * any size costs one object while it waits. A piece whose ring went away with its backend is put back and sent again.
 * The caller's buffer is lent to the operation until it settles, and is not touched afterwards.
 */
import type { VbdError } from '../errors.js'
import { SECTOR_BYTES } from './wire.js'

export type OperationKind = 'read' | 'write' | 'flush' | 'barrier' | 'discard'

/** A range of the disk, in units of 512 bytes; zero sectors for a flush or a barrier without data. */
export interface Piece {
  readonly sector: number
  readonly sectors: number
}

export interface OperationRequest extends Piece {
  readonly kind: OperationKind
  /** Exactly the range's bytes; read into or written from. */
  readonly data?: Uint8Array | undefined
  readonly secure?: boolean | undefined
}

export class Operation {
  readonly kind: OperationKind
  readonly sector: number
  readonly sectors: number
  readonly data: Uint8Array | undefined
  readonly secure: boolean
  /** Resolves when every piece is answered well; rejects with a VbdError. */
  readonly done: Promise<void>
  /** Order of submission, restored when pieces are sent again. */
  sequence = 0
  readonly #work: Piece[]
  #inFlight = 0
  #failure: VbdError | undefined
  #settled = false
  #resolve!: () => void
  #reject!: (error: VbdError) => void
  #onSettled: (() => void) | undefined

  constructor(request: OperationRequest) {
    this.kind = request.kind
    this.sector = request.sector
    this.sectors = request.sectors
    this.data = request.data
    this.secure = request.secure === true
    this.#work = [{ sector: request.sector, sectors: request.sectors }]
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
  }

  get settled(): boolean {
    return this.#settled
  }

  /** Whether a piece waits to be sent. */
  get hasWork(): boolean {
    return !this.#settled && this.#failure === undefined && this.#work.length > 0
  }

  get inFlight(): number {
    return this.#inFlight
  }

  /** Called once, when the operation settles, whichever way. */
  onSettled(listener: () => void): void {
    this.#onSettled = listener
  }

  /** First sector of the piece that `take` would give. Only while `hasWork`. */
  get nextSector(): number {
    return this.#work[0]!.sector
  }

  get nextSectors(): number {
    return this.#work[0]!.sectors
  }

  /** Takes a piece of at most `maxSectors` (not zero) to send it. */
  take(maxSectors: number): Piece {
    const head = this.#work[0]!
    this.#inFlight++
    if (head.sectors <= maxSectors) {
      this.#work.shift()
      return head
    }
    this.#work[0] = { sector: head.sector + maxSectors, sectors: head.sectors - maxSectors }
    return { sector: head.sector, sectors: maxSectors }
  }

  /** Where the piece's bytes are within `data`. */
  dataOffset(sector: number): number {
    return (sector - this.sector) * SECTOR_BYTES
  }

  /** The piece was answered; an error settles the operation once nothing of it is in flight. */
  answered(failure?: VbdError): void {
    this.#inFlight--
    this.#failure ??= failure
    if (this.#inFlight > 0) return
    if (this.#failure !== undefined) this.fail(this.#failure)
    else if (this.#work.length === 0) this.#settle(this.#resolve)
  }

  /** The piece will not be answered: it has to be sent again. */
  putBack(piece: Piece): void {
    this.#inFlight--
    if (this.#failure === undefined) this.#work.push(piece)
    else if (this.#inFlight === 0) this.fail(this.#failure)
  }

  /** Settles at once. Answers that still come are dropped: `data` is not touched any more. */
  fail(error: VbdError): void {
    this.#settle(() => this.#reject(error))
  }

  #settle(how: () => void): void {
    if (this.#settled) return
    this.#settled = true
    how()
    this.#onSettled?.()
  }
}
