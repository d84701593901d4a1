/**
 * The watches that a store's clients have registered with it. Owned by Store. Clients are told in the order in which
 * they connected, a client's watches in the order of their registration, as C xenstored does.
 */
import { domainPath, isAtOrUnder } from './path.js'
import type { Caller } from './permission.js'

/** Who is told of events. */
export interface WatchOwner extends Caller {
  onWatch(path: string, token: string): void
}

interface WatchRecord {
  /** Absolute, or a special. */
  readonly node: string
  readonly token: string
  /** What stands before the path in the client's own words, when it gave a relative one. */
  readonly relativeTo: string | undefined
}

/** Who watches what. */
export class WatchTable {
  readonly #byOwner = new Map<WatchOwner, WatchRecord[]>()

  /** The order of `join` is the order of being told. */
  join(owner: WatchOwner): void {
    this.#byOwner.set(owner, [])
  }

  leave(owner: WatchOwner): void {
    this.#byOwner.delete(owner)
  }

  /** Watches of all clients of one domain. */
  countOf(domid: number): number {
    let count = 0
    for (const [owner, watches] of this.#byOwner) if (owner.domid === domid) count += watches.length
    return count
  }

  has(owner: WatchOwner, node: string, token: string): boolean {
    return this.#find(owner, node, token) >= 0
  }

  add(owner: WatchOwner, node: string, token: string, relative: boolean): void {
    const relativeTo = relative ? `${domainPath(owner.domid)}/` : undefined
    this.#byOwner.get(owner)?.push({ node, token, relativeTo })
  }

  /** False when there was none. */
  remove(owner: WatchOwner, node: string, token: string): boolean {
    const index = this.#find(owner, node, token)
    if (index >= 0) this.#byOwner.get(owner)!.splice(index, 1)
    return index >= 0
  }

  clear(owner: WatchOwner): void {
    if (this.#byOwner.has(owner)) this.#byOwner.set(owner, [])
  }

  /** Tells every watch at or above `path` (with `exact`, only at it) whose owner may know. */
  fire(path: string, exact: boolean, permitted: (owner: Caller) => boolean): void {
    for (const [owner, watches] of this.#byOwner) {
      if (watches.length === 0 || !permitted(owner)) continue
      for (const watch of watches) {
        const hit = exact ? path === watch.node : isAtOrUnder(path, watch.node)
        if (hit) owner.onWatch(ownWords(watch, path), watch.token)
      }
    }
  }

  #find(owner: WatchOwner, node: string, token: string): number {
    const watches = this.#byOwner.get(owner) ?? []
    return watches.findIndex((one) => one.node === node && one.token === token)
  }
}

function ownWords(watch: WatchRecord, path: string): string {
  const prefix = watch.relativeTo
  return prefix !== undefined && path.startsWith(prefix) ? path.slice(prefix.length) : path
}
