/**
 * The watches that a client has, by token. Events of unknown tokens (a watch just closed) are dropped; events that come
 * faster than they are handled become one call per watch: memory is bounded by the number of watches whatever a guest
 * writes (XSA-349).
 */
import { pathArgument } from './operations.js'
import { commonAncestor } from './path.js'

export interface WatchEntry {
  readonly path: string
  readonly token: string
  /** What WATCH and UNWATCH carry. */
  readonly payload: string
}

interface Registered extends WatchEntry {
  readonly onEvent: (path: string) => void
  /** Where the events that wait for the pending call happened; undefined when no call is pending. */
  changed: string | undefined
  confirmed: boolean
}

/** The watches of one client; it outlives its connections. */
export class WatchSet {
  readonly #byToken = new Map<string, Registered>()
  #lastToken = 0

  /** @throws XenstoreError EINVAL when the path cannot go on the wire */
  add(path: string, onEvent: (path: string) => void): WatchEntry {
    const token = `${++this.#lastToken}`
    const payload = `${pathArgument(path)}${token}\0`
    const entry: Registered = {
      path,
      token,
      payload,
      onEvent,
      changed: undefined,
      confirmed: false,
    }
    this.#byToken.set(token, entry)
    return entry
  }

  get(token: string): WatchEntry | undefined {
    return this.#byToken.get(token)
  }

  remove(entry: WatchEntry): void {
    this.#byToken.delete(entry.token)
  }

  /** The daemon has accepted it: from now on every new connection registers it again. */
  confirm(entry: WatchEntry): void {
    const registered = this.#byToken.get(entry.token)
    if (registered !== undefined) registered.confirmed = true
  }

  confirmed(): WatchEntry[] {
    return [...this.#byToken.values()].filter((entry) => entry.confirmed)
  }

  clear(): void {
    this.#byToken.clear()
  }

  deliver(path: string, token: string): void {
    const entry = this.#byToken.get(token)
    if (entry === undefined) return
    if (entry.changed !== undefined) {
      entry.changed = commonAncestor(entry.changed, path, entry.path)
      return
    }
    entry.changed = path
    // After everything that has arrived by now has been looked at, so that a burst makes one call.
    setImmediate(() => {
      const changed = entry.changed!
      entry.changed = undefined
      if (this.#byToken.get(token) === entry) entry.onEvent(changed)
    })
  }
}
