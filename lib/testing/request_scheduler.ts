/**
 * RequestScheduler: the operations of one frontend, waiting, in flight, and waiting again after a lost connection.
 *
 * The event loop's thread only. Operations are sent first come, first served, over all queues in turn; everything
 * that was submitted in one turn of the event loop is published together, with one notification per queue. Without
 * queues (before the handshake, between two backends) operations just wait.
 */
import { throwIfAborted, VbdError, type VbdErrorCode } from '../errors.js'
import type { FrontQueue, FrontQueueHost } from './front_queue.js'
import type { FrontendEvents, Violation } from './frontend_events.js'
import { Operation, type OperationRequest, type Piece } from './operation.js'
import { SECTOR_BYTES, STATUS } from './wire.js'

export interface SchedulerOptions {
  /** `domid:devid`, for messages. */
  readonly vbd: string
  /** Operations that may be unsettled at a time. */
  readonly maxOperations: number
  readonly failedFlushIsSuccess: boolean
  violation(violation: Violation): void
  featureLost(feature: FrontendEvents['feature-lost'][0]): void
  /** The guest's own hands failed: it is gone, or out of grants for good. */
  broken(error: unknown): void
}

export class RequestScheduler implements FrontQueueHost {
  readonly #options: SchedulerOptions
  /** Operations with work to send, oldest first; may hold settled ones, which are skipped. */
  #waiting: Operation[] = []
  #head = 0
  readonly #unsettled = new Set<Operation>()
  readonly #idleWaiters: (() => void)[] = []
  readonly #quietWaiters: (() => void)[] = []
  #queues: readonly FrontQueue[] = []
  #turn = 0
  #answered = 0
  #sequence = 0
  #scheduled = false
  #paused = false
  /** Set: every operation fails with it. */
  #refusal: VbdError | undefined

  constructor(options: SchedulerOptions) {
    this.#options = options
  }

  get unsettled(): number {
    return this.#unsettled.size
  }

  /** Requests on the rings. */
  get inFlight(): number {
    return this.#queues.reduce((sum, queue) => sum + queue.inFlight, 0)
  }

  /** Requests answered so far. */
  get requestsAnswered(): number {
    return this.#answered
  }

  get queues(): readonly FrontQueue[] {
    return this.#queues
  }

  /** Takes an operation. Rejects with ERR_VBD_BUSY when too many are unsettled. */
  submit(request: OperationRequest, signal?: AbortSignal): Promise<void> {
    try {
      throwIfAborted(signal)
      if (this.#refusal !== undefined) throw this.#refusal
      if (this.#unsettled.size >= this.#options.maxOperations) throw this.#tooMany()
    } catch (error) {
      return Promise.reject(error)
    }
    const operation = new Operation(request)
    operation.sequence = this.#sequence++
    this.#unsettled.add(operation)
    const onAbort = () => operation.fail(aborted(signal))
    operation.onSettled(() => {
      signal?.removeEventListener('abort', onAbort)
      this.#forget(operation)
    })
    signal?.addEventListener('abort', onAbort, { once: true })
    this.#waiting.push(operation)
    this.#schedule()
    return operation.done
  }

  #tooMany(): VbdError {
    const message = `${this.#options.maxOperations} operations are waiting already`
    return new VbdError('ERR_VBD_BUSY', message, { vbd: this.#options.vbd })
  }

  #forget(operation: Operation): void {
    this.#unsettled.delete(operation)
    this.#tellIdle()
  }

  #tellIdle(): void {
    if (this.#unsettled.size > 0) return
    for (const tell of this.#idleWaiters.splice(0)) tell()
  }

  /** Resolves when no operation is unsettled. */
  idle(): Promise<void> {
    if (this.#unsettled.size === 0) return Promise.resolve()
    return new Promise((resolve) => this.#idleWaiters.push(resolve))
  }

  /** Resolves when no request is on a ring. */
  quiet(): Promise<void> {
    if (this.inFlight === 0) return Promise.resolve()
    return new Promise((resolve) => this.#quietWaiters.push(resolve))
  }

  #tellQuiet(): void {
    if (this.#quietWaiters.length === 0 || this.inFlight > 0) return
    for (const tell of this.#quietWaiters.splice(0)) tell()
  }

  /** Starts sending on these queues. Operations that wait are sent at once. */
  attach(queues: readonly FrontQueue[]): void {
    this.#queues = queues
    this.#paused = false
    this.#refusal = undefined
    this.#schedule()
  }

  /** Sends nothing more; answers are still taken. */
  pause(): void {
    this.#paused = true
  }

  resume(): void {
    this.#paused = false
    this.#schedule()
  }

  /**
   * Closes the queues; what was not answered waits for the next attach(), in the order in which it was submitted.
   * Returns how many pages the backend still maps.
   */
  detach(): number {
    this.#paused = true
    let stillMapped = 0
    for (const queue of this.#queues) {
      // Answers that came without an event, or whose event is still on its way.
      queue.drain()
      stillMapped += queue.close()
    }
    this.#queues = []
    this.#waiting = [...this.#unsettled].filter((operation) => operation.hasWork)
    this.#waiting.sort((a, b) => a.sequence - b.sequence)
    this.#head = 0
    this.#tellQuiet()
    return stillMapped
  }

  /** Fails every operation, now and later, until the next attach() or accept(). */
  refuse(error: VbdError): void {
    this.#refusal = error
    this.#waiting = []
    this.#head = 0
    for (const operation of [...this.#unsettled]) operation.fail(error)
  }

  /** Takes operations again; they wait for attach(). */
  accept(): void {
    this.#refusal = undefined
  }

  #schedule(): void {
    if (this.#scheduled || this.#queues.length === 0) return
    this.#scheduled = true
    queueMicrotask(() => {
      this.#scheduled = false
      this.#pump()
    })
  }

  #pump(): void {
    try {
      while (!this.#paused && this.#head < this.#waiting.length) {
        const operation = this.#waiting[this.#head]!
        if (!operation.hasWork) this.#head++
        else if (!this.#issue(operation)) {
          // An answer makes room. Without one to come, nothing ever would.
          if (this.inFlight > 0) break
          operation.fail(this.#noRoom())
        }
      }
      for (const queue of this.#queues) queue.publish()
    } catch (error) {
      this.#options.broken(error)
    }
    this.#compact()
  }

  #noRoom(): VbdError {
    return new VbdError('ERR_VBD_STATE', 'the guest has no page or grant reference left', {
      vbd: this.#options.vbd,
      remedy: 'give the guest more memory, or fewer disks',
    })
  }

  #issue(operation: Operation): boolean {
    const count = this.#queues.length
    for (let i = 0; i < count; i++) {
      const queue = this.#queues[(this.#turn + i) % count]!
      if (!queue.issue(operation)) continue
      this.#turn = (this.#turn + i + 1) % count
      return true
    }
    return false
  }

  #compact(): void {
    if (this.#head < 1024 && this.#head < this.#waiting.length) return
    this.#waiting.splice(0, this.#head)
    this.#head = 0
  }

  drained(): void {
    if (this.#head < this.#waiting.length) this.#pump()
    this.#tellQuiet()
  }

  violation(violation: Violation): void {
    this.#options.violation(violation)
  }

  answered(operation: Operation, piece: Piece, status: number): void {
    this.#answered++
    const isFine = status === STATUS.okay || this.#isForgiven(operation, piece, status)
    operation.answered(isFine ? undefined : this.#failure(operation, piece, status))
  }

  /** Linux takes these for "this backend cannot flush", and tells its user that all is well. */
  #isForgiven(operation: Operation, piece: Piece, status: number): boolean {
    const { kind } = operation
    if (kind !== 'flush' && kind !== 'barrier') return false
    if (status === STATUS.error && piece.sectors > 0) return false
    this.#options.featureLost(kind)
    return this.#options.failedFlushIsSuccess && piece.sectors === 0
  }

  #failure(operation: Operation, piece: Piece, status: number): VbdError {
    const { kind } = operation
    const where = `at byte ${piece.sector * SECTOR_BYTES}, ${piece.sectors * SECTOR_BYTES} bytes`
    if (status === STATUS.unsupported && kind === 'discard') {
      this.#options.featureLost(operation.secure ? 'secure-discard' : 'discard')
    }
    const unsupported = status === STATUS.unsupported
    const code: VbdErrorCode = unsupported ? 'ERR_VBD_UNSUPPORTED' : 'ERR_VBD_IO'
    const answer = unsupported ? 'EOPNOTSUPP' : 'ERROR'
    const message = `the backend answered ${answer} to a ${kind} ${where}`
    return new VbdError(code, message, { vbd: this.#options.vbd })
  }
}

function aborted(signal: AbortSignal | undefined): VbdError {
  return new VbdError('ERR_VBD_ABORTED', 'aborted', { cause: signal?.reason })
}
