/**
 * The nodes of an in-memory xenstore, and transactions over them, with C xenstored's idea of a conflict: a transaction
 * fails when any node that it read or wrote, or looked for in vain, has another generation by the time it ends.
 *
 * Nodes are immutable values; changing one puts a new value in its place. Owned by Store; nothing here is asynchronous.
 */
import { nameOf, parentOf } from './path.js'
import type { Permission } from './xenstore.js'

export interface Node {
  readonly value: string
  readonly permissions: readonly Permission[]
  /** Names, in the order of their creation. */
  readonly children: readonly string[]
  /** Different after every change. */
  readonly generation: number
}

export type NodeContent = Omit<Node, 'generation'>

/** What the operations work on: the store itself, or a transaction's view of it. */
export interface Tree {
  get(path: string): Node | undefined
  put(path: string, content: NodeContent): void
  /** Removes one node that has no children; the parent's list is the caller's business. */
  delete(path: string): void
  /** Nodes that `domid` owns. */
  owned(domid: number): number
  /** Tells the watches, now or when the transaction commits. */
  fire(event: TreeEvent): void
}

export interface TreeEvent {
  readonly path: string
  /** Only watches on this very node: its parent's removal is told to the others. */
  readonly exact: boolean
  /** Permissions before the change, where it changed or removed them. */
  readonly before?: readonly Permission[]
}

/** The nodes that everybody sees. */
export class LiveTree implements Tree {
  readonly #nodes = new Map<string, Node>()
  readonly #owned = new Map<number, number>()
  readonly #onFire: (event: TreeEvent) => void
  #generation = 0

  constructor(onFire: (event: TreeEvent) => void) {
    this.#onFire = onFire
    this.put('/', { value: '', permissions: [{ access: 'n', domid: 0 }], children: [] })
  }

  get(path: string): Node | undefined {
    return this.#nodes.get(path)
  }

  put(path: string, content: NodeContent): void {
    this.#count(this.#nodes.get(path), -1)
    const node = { ...content, generation: ++this.#generation }
    this.#nodes.set(path, node)
    this.#count(node, 1)
  }

  delete(path: string): void {
    this.#count(this.#nodes.get(path), -1)
    this.#nodes.delete(path)
  }

  owned(domid: number): number {
    return this.#owned.get(domid) ?? 0
  }

  fire(event: TreeEvent): void {
    this.#onFire(event)
  }

  entries(): IterableIterator<[string, Node]> {
    return this.#nodes.entries()
  }

  get size(): number {
    return this.#nodes.size
  }

  #count(node: Node | undefined, by: number): void {
    const owner = node?.permissions[0]?.domid
    if (owner !== undefined) this.#owned.set(owner, (this.#owned.get(owner) ?? 0) + by)
  }
}

interface Accessed {
  /** As it was when first met; undefined: there was none. */
  readonly original: Node | undefined
  /** As the transaction sees it. */
  current: Node | undefined
  modified: boolean
  event: TreeEvent | undefined
}

/** One client's view between start and end: what was, when it first looked, and its own changes. */
export class Transaction implements Tree {
  readonly #live: LiveTree
  readonly #accessed = new Map<string, Accessed>()
  readonly #ownedDelta = new Map<number, number>()
  /** A refusal inside spoils the whole: the commit fails. */
  failed = false

  constructor(live: LiveTree) {
    this.#live = live
  }

  /** Nodes read or written so far; the quota `transaction-nodes` counts them. */
  get accessedNodes(): number {
    return this.#accessed.size
  }

  get(path: string): Node | undefined {
    return this.#access(path).current
  }

  put(path: string, content: NodeContent): void {
    const accessed = this.#access(path)
    // Its own changes are never compared: any generation will do.
    const node = { ...content, generation: accessed.original?.generation ?? 0 }
    this.#change(accessed, node)
  }

  delete(path: string): void {
    this.#change(this.#access(path), undefined)
  }

  owned(domid: number): number {
    return this.#live.owned(domid) + (this.#ownedDelta.get(domid) ?? 0)
  }

  fire(event: TreeEvent): void {
    const accessed = this.#access(event.path)
    const before = accessed.original?.permissions
    accessed.event = before === undefined ? event : { ...event, before }
  }

  /** False, and nothing is changed: another client was faster. */
  commit(): boolean {
    for (const [path, { original }] of this.#accessed) {
      if (this.#live.get(path)?.generation !== original?.generation) return false
    }
    for (const [path, accessed] of this.#accessed) {
      if (!accessed.modified) continue
      if (accessed.current === undefined) this.#live.delete(path)
      else this.#live.put(path, accessed.current)
      // What it made and removed itself was never there for anybody else.
      const seen = accessed.original !== undefined || accessed.current !== undefined
      if (seen && accessed.event !== undefined) this.#live.fire(accessed.event)
    }
    return true
  }

  #access(path: string): Accessed {
    const known = this.#accessed.get(path)
    if (known !== undefined) return known
    const original = this.#live.get(path)
    const accessed: Accessed = { original, current: original, modified: false, event: undefined }
    this.#accessed.set(path, accessed)
    return accessed
  }

  #change(accessed: Accessed, node: Node | undefined): void {
    this.#count(accessed.current, -1)
    this.#count(node, 1)
    accessed.current = node
    accessed.modified = true
  }

  #count(node: Node | undefined, by: number): void {
    const owner = node?.permissions[0]?.domid
    if (owner !== undefined) this.#ownedDelta.set(owner, (this.#ownedDelta.get(owner) ?? 0) + by)
  }
}

/** Takes `path` out of its parent's list. */
export function removeFromParent(tree: Tree, path: string): void {
  const parent = tree.get(parentOf(path))
  if (parent === undefined) return
  const name = nameOf(path)
  tree.put(parentOf(path), { ...parent, children: parent.children.filter((one) => one !== name) })
}
