/**
 * FakeStore: xenstore as a Map in this process, for unit tests. No permissions, no limits; watches fire on a later
 * microtask, coalesced, as a real daemon's may. Transactions see their own writes and take effect at once.
 */
import type { Permission, Watch, Xenstore, XenstoreOps } from '../../lib/xenstore/xenstore.js'
import { XenstoreError } from '../../lib/xenstore/xenstore.js'

interface Registered {
  readonly path: string
  readonly fire: (path: string) => void
  pending: boolean
}

export class FakeStore implements Xenstore {
  readonly nodes = new Map<string, string>()
  readonly #watches = new Set<Registered>()
  readonly #listeners = new Set<(state: 'connected' | 'lost') => void>()

  get watches(): number {
    return this.#watches.size
  }

  #changed(path: string): void {
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
      if (this.#watches.has(watch)) watch.fire(watch.path)
    })
  }

  async read(path: string): Promise<string> {
    const value = this.nodes.get(path)
    if (value === undefined) throw new XenstoreError('ENOENT', `no ${path}`)
    return value
  }

  async tryRead(path: string): Promise<string | undefined> {
    return this.nodes.get(path)
  }

  async list(path: string): Promise<string[]> {
    const names = new Set<string>()
    for (const key of this.nodes.keys()) {
      if (key.startsWith(`${path}/`)) names.add(key.slice(path.length + 1).split('/')[0]!)
    }
    return [...names]
  }

  tryList(path: string): Promise<string[]> {
    return this.list(path)
  }

  async write(path: string, value: string): Promise<void> {
    this.nodes.set(path, value)
    this.#changed(path)
  }

  mkdir(path: string): Promise<void> {
    return this.write(path, '')
  }

  async remove(path: string): Promise<void> {
    for (const key of [...this.nodes.keys()]) {
      if (key === path || key.startsWith(`${path}/`)) this.nodes.delete(key)
    }
    this.#changed(path)
  }

  async getPermissions(): Promise<Permission[]> {
    return []
  }

  async setPermissions(): Promise<void> {}

  async transaction<T>(body: (tx: XenstoreOps) => Promise<T>): Promise<T> {
    return await body(this)
  }

  async watch(path: string, onEvent: (path: string) => void): Promise<Watch> {
    const watch: Registered = { path, fire: onEvent, pending: false }
    this.#watches.add(watch)
    this.#fire(watch)
    return {
      path,
      close: async () => {
        this.#watches.delete(watch)
      },
    }
  }

  async isDomainIntroduced(): Promise<boolean> {
    return true
  }

  async domainPath(domid: number): Promise<string> {
    return `/local/domain/${domid}`
  }

  onConnection(listener: (state: 'connected' | 'lost') => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /** The daemon is gone. */
  lose(): void {
    for (const listener of this.#listeners) listener('lost')
  }

  async close(): Promise<void> {
    this.#watches.clear()
  }
}
