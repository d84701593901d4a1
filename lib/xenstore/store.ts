/**
 * An in-memory xenstore with the semantics of C xenstored 4.17: nodes, permissions, transactions, watches, quotas,
 * domains. The mock Xen's store; server.ts puts it on sockets. Single-threaded, synchronous, no I/O.
 *
 * Every operation throws XenstoreError with the errno that the C daemon would answer. Where that daemon answers a
 * left-over errno by mistake (a READ without its NUL), EINVAL stands here.
 *
 * Not modelled: the memory quota, the write-rate limiter, the 20 s after which an unread event costs a guest its
 * watches' events, live update.
 */
import { absolutePath, isSpecial, isValidPath, nameOf, PATH_MAX, parentOf } from './path.js'
import { type Access, accessOf, type Caller, isPrivileged, PRIVILEGED } from './permission.js'
import { DEFAULT_QUOTAS, enforce, nodeSizeBytes, type Quotas } from './quota.js'
import {
  LiveTree,
  type Node,
  type NodeContent,
  removeFromParent,
  Transaction,
  type Tree,
  type TreeEvent,
} from './tree.js'
import { type WatchOwner, WatchTable } from './watch_table.js'
import { type Permission, XenstoreError } from './xenstore.js'

interface Domain {
  introduced: boolean
  target: number | undefined
}

/** The store; see the header. Paths may be relative to the caller's domain; values are bytes as latin1. */
export class Store {
  readonly quotas: Quotas
  readonly #tree = new LiveTree((event) => this.#fire(event))
  readonly #watches = new WatchTable()
  readonly #domains = new Map<number, Domain>([[0, { introduced: true, target: undefined }]])
  readonly #specialPermissions = new Map<string, readonly Permission[]>()
  /** Entries of permissions that name a domain that is gone: another one may bear its number by now (XSA-322). */
  readonly #dead = new WeakSet<Permission>()

  constructor(quotas: Partial<Quotas> = {}) {
    this.quotas = { ...DEFAULT_QUOTAS, ...quotas }
    this.mkdir(PRIVILEGED, '/tool/xenstored')
  }

  get size(): number {
    return this.#tree.size
  }

  begin(): Transaction {
    return new Transaction(this.#tree)
  }

  read(caller: Caller, path: string, tree: Tree = this.#tree): string {
    return this.#node(tree, caller, path, 'read').node.value
  }

  list(caller: Caller, path: string, tree: Tree = this.#tree): Node {
    return this.#node(tree, caller, path, 'read').node
  }

  permissions(caller: Caller, path: string, tree: Tree = this.#tree): readonly Permission[] {
    return this.#node(tree, caller, path, 'read').node.permissions
  }

  write(caller: Caller, path: string, value: string, tree: Tree = this.#tree): void {
    const { absolute, node } = this.#lookUp(tree, caller, path, 'write')
    if (node === undefined) this.#create(tree, caller, absolute, value)
    else this.#put(tree, caller, absolute, { ...node, value })
    tree.fire({ path: absolute, exact: false })
  }

  mkdir(caller: Caller, path: string, tree: Tree = this.#tree): void {
    const { absolute, node } = this.#lookUp(tree, caller, path, 'write')
    if (node !== undefined) return
    this.#create(tree, caller, absolute, '')
    tree.fire({ path: absolute, exact: false })
  }

  /** What is not there is no error where its parent is. */
  remove(caller: Caller, path: string, tree: Tree = this.#tree): void {
    const { absolute, node } = this.#lookUp(tree, caller, path, 'write')
    if (absolute === '/') throw refused('EINVAL')
    if (node === undefined) {
      if (tree.get(parentOf(absolute)) === undefined) throw refused('ENOENT')
      return
    }
    removeFromParent(tree, absolute)
    this.#removeSubtree(tree, absolute, node, absolute)
  }

  setPermissions(
    caller: Caller,
    path: string,
    permissions: readonly Permission[],
    tree: Tree = this.#tree,
  ): void {
    const owner = permissions[0]
    if (owner === undefined) throw refused('EINVAL')
    enforce(caller, permissions.length <= this.quotas.permissions, 'ENOSPC')
    if (!this.#domains.has(owner.domid)) throw refused('ENOENT')
    if (isSpecial(path)) {
      if (!isPrivileged(caller)) throw refused('EACCES')
      this.#specialPermissions.set(path, permissions)
      return
    }
    const { absolute, node } = this.#node(tree, caller, path, 'owner')
    if (!isPrivileged(caller) && owner.domid !== node.permissions[0]?.domid) throw refused('EPERM')
    // Copies: an entry that is dead in one node's list must not be dead in another's.
    const copies = permissions.map((entry) => ({ ...entry }))
    this.#put(tree, caller, absolute, { ...node, permissions: copies })
    tree.fire({ path: absolute, exact: false, before: node.permissions })
  }

  join(owner: WatchOwner): void {
    this.#watches.join(owner)
  }

  leave(owner: WatchOwner): void {
    this.#watches.leave(owner)
  }

  /** Registers, but does not fire: the caller tells the first event after its answer. */
  watch(owner: WatchOwner, path: string, token: string): void {
    const { node, relative } = watchedNode(owner, path)
    if (this.#watches.has(owner, node, token)) throw refused('EEXIST')
    enforce(owner, this.#watches.countOf(owner.domid) <= this.quotas.watches, 'E2BIG')
    this.#watches.add(owner, node, token, relative)
  }

  unwatch(owner: WatchOwner, path: string, token: string): void {
    const { node } = watchedNode(owner, path)
    if (!this.#watches.remove(owner, node, token)) throw refused('ENOENT')
  }

  unwatchAll(owner: WatchOwner): void {
    this.#watches.clear(owner)
  }

  /** The hypervisor has made it: it may own nodes and be introduced. */
  addDomain(domid: number): void {
    if (!this.#domains.has(domid))
      this.#domains.set(domid, { introduced: false, target: undefined })
  }

  domainExists(domid: number): boolean {
    return this.#domains.has(domid)
  }

  isIntroduced(domid: number): boolean {
    return this.#domains.get(domid)?.introduced === true
  }

  targetOf(domid: number): number | undefined {
    return this.#domains.get(domid)?.target
  }

  /** @throws XenstoreError EINVAL when there is no such domain: its ring cannot be mapped */
  introduce(domid: number): void {
    const domain = this.#domains.get(domid)
    if (domain === undefined) throw refused('EINVAL')
    if (domain.introduced) return
    domain.introduced = true
    this.#fireSpecial('@introduceDomain')
  }

  /** @throws XenstoreError ENOENT when it was not introduced */
  release(domid: number): void {
    const domain = this.#domains.get(domid)
    if (domain === undefined || !domain.introduced) throw refused('ENOENT')
    domain.introduced = false
    domain.target = undefined
    this.#removeOwned(domid)
    this.#fireSpecial('@releaseDomain')
  }

  setTarget(domid: number, target: number): void {
    const domain = this.#domains.get(domid)
    if (domain?.introduced !== true || !this.isIntroduced(target)) throw refused('ENOENT')
    domain.target = target
  }

  /** The hypervisor has destroyed it: released if it was introduced; its nodes and its rights go. */
  removeDomain(domid: number): void {
    if (domid === 0 || !this.#domains.has(domid)) return
    if (this.isIntroduced(domid)) this.release(domid)
    else this.#removeOwned(domid)
    this.#domains.delete(domid)
  }

  /** The node at `path`, which `caller` may access so. */
  #node(tree: Tree, caller: Caller, path: string, access: keyof Access) {
    const { absolute, node } = this.#lookUp(tree, caller, path, access)
    if (node === undefined) throw refused('ENOENT')
    return { absolute, node }
  }

  /**
   * Who may not read a node's parent does not learn whether the node is there: EACCES then, whatever the truth.
   * @throws XenstoreError EINVAL, EACCES, ENOSPC (a transaction over too many nodes)
   */
  #lookUp(tree: Tree, caller: Caller, path: string, access: keyof Access) {
    const absolute = absolutePath(path, caller.domid)
    if (path === '' || isSpecial(path) || !isValidPath(absolute)) throw refused('EINVAL')
    const node = tree.get(absolute)
    const nearest = node ?? this.#nearestParent(tree, absolute)
    this.#checkTransactionSize(tree, caller)
    if (!accessOf(caller, nearest.permissions, this.#dead)[access]) throw refused('EACCES')
    return { absolute, node }
  }

  #nearestParent(tree: Tree, path: string): Node {
    let parent = parentOf(path)
    for (;;) {
      const node = tree.get(parent)
      if (node !== undefined) return node
      parent = parentOf(parent)
    }
  }

  #checkTransactionSize(tree: Tree, caller: Caller): void {
    if (!(tree instanceof Transaction)) return
    enforce(caller, tree.accessedNodes <= this.quotas.transactionNodes, 'ENOSPC')
  }

  /**
   * Makes the node and the parents that it lacks, with the permissions of the nearest; an unprivileged maker owns them.
   * All or nothing: the quotas are looked at first.
   */
  #create(tree: Tree, caller: Caller, path: string, value: string): void {
    const missing: string[] = []
    let nearest = path
    while (tree.get(nearest) === undefined) {
      missing.unshift(nearest)
      nearest = parentOf(nearest)
    }
    const owned = tree.owned(caller.domid) + missing.length
    enforce(caller, owned <= this.quotas.nodes, 'ENOSPC')
    const top = tree.get(nearest)!
    const permissions = inherited(top.permissions, caller)
    const first = { ...top, children: [...top.children, nameOf(missing[0]!)] }
    const made = missing.map((each, index) => ({
      value: each === path ? value : '',
      // Copies: an entry that is dead in one node's list must not be dead in another's.
      permissions: permissions.map((entry) => ({ ...entry })),
      children: missing.slice(index + 1, index + 2).map(nameOf),
    }))
    enforce(
      caller,
      [first, ...made].every((each) => this.#fits(each)),
      'ENOSPC',
    )
    tree.put(nearest, first)
    for (const [index, each] of missing.entries()) tree.put(each, made[index]!)
  }

  #fits(content: NodeContent): boolean {
    return nodeSizeBytes(content) < this.quotas.nodeSize
  }

  #put(tree: Tree, caller: Caller, path: string, content: NodeContent): void {
    enforce(caller, this.#fits(content), 'ENOSPC')
    tree.put(path, content)
  }

  /** Children first; only the topmost is told to watches above it. */
  #removeSubtree(tree: Tree, path: string, node: Node, root: string): void {
    for (const name of node.children) {
      const child = path === '/' ? `/${name}` : `${path}/${name}`
      const childNode = tree.get(child)
      if (childNode !== undefined) this.#removeSubtree(tree, child, childNode, root)
    }
    tree.delete(path)
    tree.fire({ path, exact: path !== root, before: node.permissions })
  }

  #removeOwned(domid: number): void {
    for (const [path, node] of [...this.#tree.entries()]) {
      for (const entry of node.permissions.slice(1))
        if (entry.domid === domid) this.#dead.add(entry)
      // A parent removed before has taken it along.
      if (node.permissions[0]?.domid !== domid || this.#tree.get(path) === undefined) continue
      this.remove(PRIVILEGED, path)
    }
  }

  #fire({ path, exact, before }: TreeEvent): void {
    this.#watches.fire(path, exact, (owner) => this.#mayKnow(owner, path, before))
  }

  /** The node, before or after the change, or its parent must be readable for who is told. */
  #mayKnow(owner: Caller, path: string, before: readonly Permission[] | undefined): boolean {
    if (isPrivileged(owner)) return true
    if (before !== undefined && accessOf(owner, before, this.#dead).read) return true
    const nodes = [this.#tree.get(path), this.#tree.get(parentOf(path))]
    return nodes.some(
      (node) => node !== undefined && accessOf(owner, node.permissions, this.#dead).read,
    )
  }

  #fireSpecial(event: string): void {
    const permissions = this.#specialPermissions.get(event) ?? [{ access: 'n', domid: 0 }]
    this.#watches.fire(event, true, (owner) => accessOf(owner, permissions).read)
  }
}

function refused(errno: string): XenstoreError {
  return new XenstoreError(errno, 'refused')
}

function inherited(permissions: readonly Permission[], caller: Caller): readonly Permission[] {
  if (isPrivileged(caller)) return permissions
  const [owner, ...others] = permissions
  return [{ access: owner!.access, domid: caller.domid }, ...others]
}

function watchedNode(owner: Caller, path: string): { node: string; relative: boolean } {
  if (isSpecial(path)) {
    if (path.length > PATH_MAX) throw refused('EINVAL')
    return { node: path, relative: false }
  }
  const node = absolutePath(path, owner.domid)
  if (path === '' || !isValidPath(node)) throw refused('EINVAL')
  return { node, relative: !path.startsWith('/') }
}
