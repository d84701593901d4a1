/**
 * Emitter: typed events whose listeners cannot hurt whoever emits. What a listener throws, or its promise rejects
 * with, ends as a process warning; an `error` event that nobody listens to is no crash.
 */

export type Listener<T> = (event: T) => unknown

/** Listeners by event name; `Events` says what each event carries. */
export class Emitter<Events extends object> {
  readonly #listeners = new Map<keyof Events, Set<Listener<never>>>()

  /** Has `listener` called for every such event. Returns what ends that; idempotent. */
  on<K extends keyof Events>(event: K, listener: Listener<Events[K]>): () => void {
    let listeners = this.#listeners.get(event)
    if (listeners === undefined) {
      listeners = new Set()
      this.#listeners.set(event, listeners)
    }
    // An entry of its own: one function may be registered twice.
    const entry: Listener<Events[K]> = (value) => listener(value)
    listeners.add(entry as Listener<never>)
    return () => {
      listeners.delete(entry as Listener<never>)
    }
  }

  /** As `on`, for the next such event alone. */
  once<K extends keyof Events>(event: K, listener: Listener<Events[K]>): () => void {
    const off = this.on(event, (value) => {
      off()
      return listener(value)
    })
    return off
  }

  /** Whether anybody listens. */
  has(event: keyof Events): boolean {
    return (this.#listeners.get(event)?.size ?? 0) > 0
  }

  /** Calls the listeners in the order of their registration, at once. Never throws. */
  emit<K extends keyof Events>(event: K, value: Events[K]): void {
    for (const listener of [...(this.#listeners.get(event) ?? [])] as Listener<Events[K]>[]) {
      try {
        const result = listener(value)
        if (result instanceof Promise) result.catch((thrown) => warn(event, thrown))
      } catch (thrown) {
        warn(event, thrown)
      }
    }
  }
}

function warn(event: PropertyKey, thrown: unknown): void {
  const message = thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown)
  process.emitWarning(`a listener of '${String(event)}' failed: ${message}`, 'VbdListenerWarning')
}
