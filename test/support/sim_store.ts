/**
 * SimStore: a xenstore in this process that several parties share, each through a client of its own, for tests of
 * what happens between them. Transactions are real ones (a snapshot, conflicts, retries), owners are kept, watches
 * fire late and coalesced, and a client's connection can be lost. Every committed write can be listened to, which is
 * how invariants are checked.
 */
import {
  type Permission,
  type Watch,
  type Xenstore,
  XenstoreError,
  type XenstoreOps,
} from '../../lib/xenstore/xenstore.js'

export interface Committed {
  readonly client: string
  readonly path: string
  /** undefined: removed. */
  readonly value: string | undefined
  readonly before: string | undefined
}

interface Node {
  readonly value: string
  readonly permissions: readonly Permission[]
}

const ROOT: readonly Permission[] = [{ access: 'n', domid: 0 }]

export class SimStore {
  nodes = new Map<string, Node>()
  readonly domains = new Set<number>([0])
  readonly onCommit = new Set<(committed: Committed) => void>()
  readonly clients = new Set<SimClient>()
  version = 0

  client(name: string): SimClient {
    const client = new SimClient(this, name)
    this.clients.add(client)
    return client
  }

  get(path: string): string | undefined {
    return this.nodes.get(path)?.value
  }

  children(path: string): string[] {
    return childrenOf(this.nodes, path)
  }

  introduce(domid: number): void {
    this.domains.add(domid)
    this.touch('@introduceDomain')
  }

  /** As `xl destroy`: the nodes go first. */
  async destroy(domid: number): Promise<void> {
    await this.client('xl').remove(`/local/domain/${domid}`)
    this.domains.delete(domid)
    this.touch('@releaseDomain')
  }

  touch(path: string): void {
    for (const client of this.clients) client.changed(path)
  }

  commit(client: string, nodes: Map<string, Node>, changes: readonly Committed[]): void {
    this.nodes = nodes
    this.version++
    for (const change of changes) {
      for (const listener of this.onCommit) listener(change)
      this.touch(change.path)
    }
    void client
  }
}

interface Registered {
  readonly path: string
  readonly onEvent: (path: string) => void
  pending: boolean
}

/** What is read and written: the store's own nodes, or a transaction's copy. */
class Operations implements XenstoreOps {
  readonly client: SimClient
  nodes: Map<string, Node>
  readonly changes: Committed[] = []

  constructor(client: SimClient, nodes: Map<string, Node>) {
    this.client = client
    this.nodes = nodes
  }

  async tryRead(path: string): Promise<string | undefined> {
    await this.client.turn()
    if (this.client.unreadable.has(path)) throw new XenstoreError('EACCES', `may not read ${path}`)
    return this.nodes.get(path)?.value
  }

  async read(path: string): Promise<string> {
    const value = await this.tryRead(path)
    if (value === undefined) throw new XenstoreError('ENOENT', `no ${path}`)
    return value
  }

  async list(path: string): Promise<string[]> {
    await this.client.turn()
    return childrenOf(this.nodes, path)
  }

  tryList(path: string): Promise<string[]> {
    return this.list(path)
  }

  async write(path: string, value: string): Promise<void> {
    await this.client.turn()
    this.put(path, value)
  }

  async mkdir(path: string): Promise<void> {
    await this.client.turn()
    if (!this.nodes.has(path)) this.put(path, '')
  }

  async remove(path: string): Promise<void> {
    await this.client.turn()
    for (const key of [...this.nodes.keys()]) {
      if (key !== path && !key.startsWith(`${path}/`)) continue
      this.change(key, undefined)
      this.nodes.delete(key)
    }
  }

  async getPermissions(path: string): Promise<Permission[]> {
    await this.client.turn()
    const node = this.nodes.get(path)
    if (node === undefined) throw new XenstoreError('ENOENT', `no ${path}`)
    return [...node.permissions]
  }

  async setPermissions(path: string, permissions: readonly Permission[]): Promise<void> {
    await this.client.turn()
    const node = this.nodes.get(path)
    if (node === undefined) throw new XenstoreError('ENOENT', `no ${path}`)
    this.nodes.set(path, { ...node, permissions })
  }

  put(path: string, value: string): void {
    const parent = path.slice(0, path.lastIndexOf('/'))
    if (parent !== '' && !this.nodes.has(parent)) this.put(parent, '')
    const permissions = (this.nodes.get(path) ?? this.nodes.get(parent))?.permissions ?? ROOT
    this.change(path, value)
    this.nodes.set(path, { value, permissions })
  }

  change(path: string, value: string | undefined): void {
    const before = this.nodes.get(path)?.value
    this.changes.push({ client: this.client.name, path, value, before })
  }
}

/** One party's connection. */
export class SimClient implements Xenstore {
  readonly name: string
  readonly #store: SimStore
  readonly #watches = new Set<Registered>()
  readonly #listeners = new Set<(state: 'connected' | 'lost') => void>()
  /** Paths that this party may not read. */
  readonly unreadable = new Set<string>()
  /** Happens once, after this party has read what it decides on and before its next transaction begins. */
  interruption: (() => Promise<void>) | undefined
  /** So many of the next commits fail with EAGAIN. */
  conflicts = 0
  /** The next commit takes effect, and the connection is lost before it is answered. */
  loseAfterCommit = false
  connected = true
  closed = false
  /** Turns of the event loop that the next operation takes. */
  turns: () => number = () => 1

  constructor(store: SimStore, name: string) {
    this.#store = store
    this.name = name
  }

  get watches(): number {
    return this.#watches.size
  }

  /** Every operation takes turns of the event loop, and fails without a connection. */
  async turn(): Promise<void> {
    for (let left = this.turns(); left > 0; left--) {
      await new Promise((resolve) => setImmediate(resolve))
    }
    if (!this.connected || this.closed) throw new XenstoreError('ECONNRESET', 'connection lost')
  }

  tryRead(path: string): Promise<string | undefined> {
    return this.#now().tryRead(path)
  }

  read(path: string): Promise<string> {
    return this.#now().read(path)
  }

  list(path: string): Promise<string[]> {
    return this.#now().list(path)
  }

  tryList(path: string): Promise<string[]> {
    return this.#now().list(path)
  }

  write(path: string, value: string): Promise<void> {
    return this.#alone((operations) => operations.put(path, value))
  }

  mkdir(path: string): Promise<void> {
    return this.#alone((operations) => {
      if (!operations.nodes.has(path)) operations.put(path, '')
    })
  }

  async remove(path: string): Promise<void> {
    await this.turn()
    const operations = this.#now()
    for (const key of [...operations.nodes.keys()]) {
      if (key !== path && !key.startsWith(`${path}/`)) continue
      operations.change(key, undefined)
      operations.nodes.delete(key)
    }
    if (operations.changes.length > 0) {
      this.#store.commit(this.name, operations.nodes, operations.changes)
    }
  }

  getPermissions(path: string): Promise<Permission[]> {
    return this.#now().getPermissions(path)
  }

  async setPermissions(path: string, permissions: readonly Permission[]): Promise<void> {
    const operations = this.#now()
    await operations.setPermissions(path, permissions)
    this.#store.commit(this.name, operations.nodes, [])
  }

  async transaction<T>(body: (tx: XenstoreOps) => Promise<T>): Promise<T> {
    const interruption = this.interruption
    this.interruption = undefined
    await interruption?.()
    for (let attempt = 0; attempt < 16; attempt++) {
      await this.turn()
      const begun = this.#store.version
      const operations = this.#now()
      const result = await body(operations)
      await this.turn()
      if (this.conflicts > 0) {
        this.conflicts--
        continue
      }
      if (this.#store.version !== begun) continue
      if (operations.changes.length > 0) {
        this.#store.commit(this.name, operations.nodes, operations.changes)
      }
      if (this.loseAfterCommit) {
        this.loseAfterCommit = false
        this.lose()
        throw new XenstoreError('ECONNRESET', 'connection lost')
      }
      return result
    }
    throw new XenstoreError('EAGAIN', 'too many conflicts')
  }

  async watch(path: string, onEvent: (path: string) => void): Promise<Watch> {
    await this.turn()
    const watch: Registered = { path, onEvent, pending: false }
    this.#watches.add(watch)
    this.#fire(watch)
    return {
      path,
      close: async () => {
        this.#watches.delete(watch)
      },
    }
  }

  async isDomainIntroduced(domid: number): Promise<boolean> {
    await this.turn()
    return this.#store.domains.has(domid)
  }

  async domainPath(domid: number): Promise<string> {
    return `/local/domain/${domid}`
  }

  onConnection(listener: (state: 'connected' | 'lost') => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  async close(): Promise<void> {
    this.closed = true
  }

  lose(): void {
    if (!this.connected) return
    this.connected = false
    for (const listener of this.#listeners) listener('lost')
  }

  restore(): void {
    if (this.connected) return
    this.connected = true
    for (const watch of this.#watches) this.#fire(watch)
    for (const listener of this.#listeners) listener('connected')
  }

  changed(path: string): void {
    if (!this.connected) return
    for (const watch of this.#watches) {
      const under = path === watch.path || path.startsWith(`${watch.path}/`)
      if (under || watch.path.startsWith(`${path}/`)) this.#fire(watch)
    }
  }

  #fire(watch: Registered): void {
    if (watch.pending) return
    watch.pending = true
    setImmediate(() => {
      watch.pending = false
      if (this.#watches.has(watch)) watch.onEvent(watch.path)
    })
  }

  #now(): Operations {
    return new Operations(this, new Map(this.#store.nodes))
  }

  async #alone(change: (operations: Operations) => void): Promise<void> {
    await this.turn()
    const operations = this.#now()
    change(operations)
    if (operations.changes.length > 0) {
      this.#store.commit(this.name, operations.nodes, operations.changes)
    }
  }
}

function childrenOf(nodes: ReadonlyMap<string, Node>, path: string): string[] {
  const names = new Set<string>()
  for (const key of nodes.keys()) {
    if (key.startsWith(`${path}/`)) names.add(key.slice(path.length + 1).split('/')[0]!)
  }
  return [...names]
}
