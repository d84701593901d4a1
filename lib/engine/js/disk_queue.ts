/**
 * DiskQueue: a disk as one ring sees it, and the answers that have come. The ring's queue has checked every request
 * that it submits: inside the disk, aligned, allowed. A disk answers each exactly once, with 0 or an errno; a read that
 * cannot be filled to its last byte is an error, never a short success.
 *
 * A submitted InFlight is the disk's until it is completed. What it asks is in `io`, `offset`, `length` and its pieces;
 * the disk leaves all of them as they are, and uses `done` and `tries` as it likes.
 */
import { type InFlight, InFlightList } from './in_flight.js'

/** Linux's, positive. */
export const ERRNO = { intr: 4, io: 5, again: 11, opNotSupp: 95, timedOut: 110 } as const

/** Tries of a step that fails in passing, before its error is the answer. */
export const MAX_RETRIES = 100

/** Whether a failed step may succeed when tried again at once. */
export function isTransient(errno: number): boolean {
  return errno === ERRNO.intr || errno === ERRNO.again
}

export abstract class DiskQueue {
  readonly #done = new InFlightList()
  readonly #onComplete: () => void

  /** @param onComplete called when a completion came that no submit() was under way for */
  constructor(onComplete: () => void) {
    this.#onComplete = onComplete
  }

  /** Takes a batch. Some may be complete when it returns. */
  abstract submit(batch: readonly InFlight[]): void

  /** Nothing is in flight. */
  abstract close(): void

  get hasCompletions(): boolean {
    return !this.#done.empty
  }

  /** The next request that is done. */
  reap(): InFlight | undefined {
    return this.#done.pop()
  }

  /** For the disk: this request is done. */
  complete(item: InFlight, errno: number): void {
    item.errno = errno
    this.#done.push(item)
  }

  /** For the disk: the same, when nobody is waiting for submit() to return. */
  completeLater(item: InFlight, errno: number): void {
    this.complete(item, errno)
    this.#onComplete()
  }
}
