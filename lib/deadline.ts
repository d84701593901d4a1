/**
 * Deadlines: waiting for something, but not for ever.
 */
import { throwIfAborted, VbdError } from './errors.js'

/**
 * Waits for the promise at most that long. False: the time was over first; the promise goes on, and its failure is
 * nobody's.
 */
export async function within(promise: Promise<unknown>, milliseconds: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined
  const timeout = new Promise<false>((resolve) => {
    timer = setTimeout(() => resolve(false), milliseconds)
  })
  try {
    return await Promise.race([promise.then(() => true), timeout])
  } finally {
    clearTimeout(timer)
    promise.catch(() => {})
  }
}

/**
 * Resolves when `subscribe` calls back, or rejects: ERR_VBD_ABORTED when the signal fires, ERR_VBD_TIMEOUT when the
 * time is over.
 *
 * @param subscribe is given the function to call, and returns what ends the subscription
 */
export function eventually<T>(
  subscribe: (resolve: (value: T) => void, reject: (error: VbdError) => void) => () => void,
  options: { what: string; signal?: AbortSignal | undefined; timeoutMs?: number | undefined },
): Promise<T> {
  const { what, signal, timeoutMs } = options
  return new Promise((resolve, reject) => {
    throwIfAborted(signal)
    let timer: NodeJS.Timeout | undefined
    const finish = (act: () => void) => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', onAbort)
      unsubscribe()
      act()
    }
    const fail = (error: VbdError) => finish(() => reject(error))
    const onAbort = () =>
      fail(new VbdError('ERR_VBD_ABORTED', `aborted: ${what}`, { cause: signal?.reason }))
    const unsubscribe = subscribe((value) => finish(() => resolve(value)), fail)
    signal?.addEventListener('abort', onAbort)
    if (timeoutMs !== undefined) {
      timer = setTimeout(
        () => fail(new VbdError('ERR_VBD_TIMEOUT', `${what}: not within ${timeoutMs} ms`)),
        timeoutMs,
      )
    }
  })
}

/** Has `act` called when the signal fires. Returns what ends that: a signal may outlive many that listen to it. */
export function onAbort(signal: AbortSignal | undefined, act: () => void): () => void {
  signal?.addEventListener('abort', act, { once: true })
  return () => signal?.removeEventListener('abort', act)
}

/** Tries something again later; later each time, until it has worked. */
export class Retry {
  readonly #again: () => void
  readonly #firstMs: number
  readonly #mostMs: number
  #nextMs: number
  #timer: NodeJS.Timeout | undefined

  constructor(again: () => void, firstMs: number, mostMs: number) {
    this.#again = again
    this.#firstMs = firstMs
    this.#mostMs = mostMs
    this.#nextMs = firstMs
  }

  later(): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(this.#again, this.#nextMs)
    this.#timer.unref()
    this.#nextMs = Math.min(this.#nextMs * 2, this.#mostMs)
  }

  /** It has worked, or is not wanted any more. */
  end(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#nextMs = this.#firstMs
  }
}

/** Something that becomes true in the course of somebody's work, who says when to look. */
export class Condition {
  readonly #waiters = new Set<() => void>()

  /** Resolves when `holds` does at a wake-up, or when the time is over. */
  reached(holds: () => boolean, milliseconds: number): Promise<void> {
    if (holds()) return Promise.resolve()
    return new Promise((resolve) => {
      const finish = () => {
        clearTimeout(timer)
        this.#waiters.delete(look)
        resolve()
      }
      const look = () => {
        if (holds()) finish()
      }
      const timer = setTimeout(finish, milliseconds)
      this.#waiters.add(look)
    })
  }

  /** Look now. */
  wake(): void {
    for (const look of [...this.#waiters]) look()
  }
}
