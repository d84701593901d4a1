/**
 * The xenstore client: what the rest of vbdkit talks to. Runs on Node's event loop; owns the connection to the
 * daemon, and makes another one when it is lost.
 *
 *   read, write, ...   ─► Operations ─► Link (one connection) ─► Transport (socket)
 *   transaction(body)  ─► the same, bound to the connection it began on, again on EAGAIN
 *   watch(path)        ─► WatchSet, registered anew on every connection
 *
 * After a loss: what was sent is rejected with ECONNRESET (the daemon may have done it or not), what comes later
 * waits for the next connection, but not for ever; watches come back by themselves and fire, for anything may have
 * changed meanwhile.
 */
import { setMaxListeners } from 'node:events'
import { VbdError } from '../errors.js'
import { backoffMs, pause } from './backoff.js'
import { dialXenstore, type OpenXenbusDevice } from './device_transport.js'
import { Link } from './link.js'
import { hasErrno, Operations } from './operations.js'
import { runTransaction } from './transact.js'
import type { Dial } from './transport.js'
import { type WatchEntry, WatchSet } from './watch_set.js'
import { MESSAGE, untilNul } from './wire.js'
import {
  type Permission,
  type Watch,
  type Xenstore,
  XenstoreError,
  type XenstoreOps,
} from './xenstore.js'

export interface XenstoreOptions {
  /** The daemon's socket, or the xenbus device; when absent `defaultXenstorePath()`, and without it the device. */
  path?: string
  /** Opens the xenbus device, for a domain where no daemon runs. Without it there are sockets only. */
  openDevice?: OpenXenbusDevice
  /** How to reach the daemon otherwise than by `path`. */
  dial?: Dial
  /** How long opening, and a request that finds no connection, waits for the daemon, in ms. 10000 by default. */
  waitMs?: number
  /** Opening also waits for a socket that is not there yet. False by default. */
  awaitSocket?: boolean
  /** A daemon that leaves a request unanswered for so long is given up and connected anew, in ms. 30000 by default. */
  answerMs?: number
  /**
   * Requests sent and not yet answered, 1 up. 16 by default: C xenstored stops reading an unprivileged
   * domain at 20.
   */
  maxOutstanding?: number
}

const RECONNECT_FIRST_MS = 100
const RECONNECT_MOST_MS = 5000

interface Waiter {
  resolve(link: Link): void
  reject(error: XenstoreError): void
  timer: NodeJS.Timeout
}

/**
 * Connects to the daemon.
 * @throws VbdError ERR_VBD_NO_XEN when there is none
 */
export async function connectXenstore(options: XenstoreOptions = {}): Promise<XenstoreClient> {
  return await XenstoreClient.connect(options)
}

/** The client; see the header and `Xenstore`. Made by `connect`, ended by `close`. */
export class XenstoreClient implements Xenstore {
  readonly #dial: Dial
  readonly #waitMs: number
  readonly #answerMs: number
  readonly #maxOutstanding: number
  readonly #watches = new WatchSet()
  readonly #operations: XenstoreOps
  readonly #listeners = new Set<(state: 'connected' | 'lost') => void>()
  readonly #waiters = new Set<Waiter>()
  readonly #abort = new AbortController()
  #link: Link | undefined
  #reconnecting: Promise<void> | undefined
  #closed: Promise<void> | undefined

  static async connect(options: XenstoreOptions = {}): Promise<XenstoreClient> {
    const client = new XenstoreClient(options)
    await client.#establish()
    return client
  }

  private constructor(options: XenstoreOptions) {
    this.#waitMs = options.waitMs ?? 10_000
    this.#answerMs = options.answerMs ?? 30_000
    this.#maxOutstanding = options.maxOutstanding ?? 16
    if (!(this.#maxOutstanding >= 1)) {
      throw new VbdError('ERR_VBD_ARGUMENT', 'maxOutstanding must be 1 or more')
    }
    // Every transaction that waits for its next try listens: as many as there are disks.
    setMaxListeners(0, this.#abort.signal)
    this.#dial =
      options.dial ??
      dialXenstore({
        path: options.path,
        openDevice: options.openDevice,
        patienceMs: this.#waitMs,
        awaitSocket: options.awaitSocket ?? false,
      })
    this.#operations = new Operations((type, payload, path) => this.#request(type, payload, path))
  }

  read(path: string): Promise<string> {
    return this.#operations.read(path)
  }

  tryRead(path: string): Promise<string | undefined> {
    return this.#operations.tryRead(path)
  }

  list(path: string): Promise<string[]> {
    return this.#operations.list(path)
  }

  tryList(path: string): Promise<string[]> {
    return this.#operations.tryList(path)
  }

  write(path: string, value: string): Promise<void> {
    return this.#operations.write(path, value)
  }

  mkdir(path: string): Promise<void> {
    return this.#operations.mkdir(path)
  }

  remove(path: string): Promise<void> {
    return this.#operations.remove(path)
  }

  getPermissions(path: string): Promise<Permission[]> {
    return this.#operations.getPermissions(path)
  }

  setPermissions(path: string, permissions: readonly Permission[]): Promise<void> {
    return this.#operations.setPermissions(path, permissions)
  }

  /** @see Xenstore.transaction; a commit whose answer is lost rejects with ECONNRESET: it may have taken effect. */
  transaction<T>(body: (tx: XenstoreOps) => Promise<T>): Promise<T> {
    return runTransaction(() => this.#connection(), body, this.#abort.signal)
  }

  /**
   * @see Xenstore.watch; `onEvent` gets the path that changed or, when several changed since the last call, the
   * deepest path that holds them all. It must not throw: nobody is there to catch it.
   */
  async watch(path: string, onEvent: (path: string) => void): Promise<Watch> {
    // Known before it is sent: the first event may come before the answer.
    const entry = this.#watches.add(path, onEvent)
    try {
      await this.#request(MESSAGE.WATCH, entry.payload, path)
      this.#watches.confirm(entry)
    } catch (error) {
      this.#watches.remove(entry)
      throw error
    }
    return { path, close: () => this.#unwatch(entry.token) }
  }

  async isDomainIntroduced(domid: number): Promise<boolean> {
    const answer = await this.#request(MESSAGE.IS_DOMAIN_INTRODUCED, `${domid}\0`, `${domid}`)
    return untilNul(answer) === 'T'
  }

  async domainPath(domid: number): Promise<string> {
    return untilNul(await this.#request(MESSAGE.GET_DOMAIN_PATH, `${domid}\0`, `${domid}`))
  }

  onConnection(listener: (state: 'connected' | 'lost') => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /** Rejects what is pending with ECONNRESET. Resolves when no handle and no timer is left. May be called again. */
  close(): Promise<void> {
    this.#closed ??= this.#shutDown()
    return this.#closed
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #shutDown(): Promise<void> {
    const reason = closedError()
    this.#abort.abort()
    this.#watches.clear()
    for (const waiter of this.#waiters) this.#settle(waiter).reject(reason)
    const link = this.#link
    this.#link = undefined
    await link?.close(reason)
    await this.#reconnecting
  }

  async #request(type: number, payload: string, path: string): Promise<string> {
    const link = await this.#connection()
    return await link.request(type, payload, path)
  }

  /** The live connection, waiting for it at most `waitMs`. */
  #connection(): Promise<Link> {
    if (this.#closed !== undefined) return Promise.reject(closedError())
    if (this.#link !== undefined) return Promise.resolve(this.#link)
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiters.delete(waiter)
        const message = `xenstore has been unreachable for ${this.#waitMs} ms`
        reject(new XenstoreError('ECONNRESET', message, { remedy: 'see whether xenstored runs' }))
      }, this.#waitMs)
      const waiter: Waiter = { resolve, reject, timer }
      this.#waiters.add(waiter)
    })
  }

  #settle(waiter: Waiter): Waiter {
    clearTimeout(waiter.timer)
    this.#waiters.delete(waiter)
    return waiter
  }

  /** Makes a connection, registers every watch on it, and only then lets requests through. */
  async #establish(): Promise<void> {
    const link = await Link.open(
      this.#dial,
      {
        maxOutstanding: this.#maxOutstanding,
        answerMs: this.#answerMs,
        onEvent: (path, token) => this.#watches.deliver(path, token),
        onLost: () => this.#lost(link),
      },
      this.#abort.signal,
    )
    try {
      await this.#registerWatches(link)
      // Closed, or lost again, while the last answers were on their way to us.
      if (this.#abort.signal.aborted) throw closedError()
      if (link.failure !== undefined) throw link.failure
    } catch (error) {
      await link.close(error instanceof XenstoreError ? error : closedError())
      throw error
    }
    this.#link = link
  }

  async #registerWatches(link: Link): Promise<void> {
    const request = (type: number, entries: WatchEntry[]) =>
      Promise.all(entries.map((entry) => link.request(type, entry.payload, entry.path)))
    let registered = this.#watches.confirmed()
    await request(MESSAGE.WATCH, registered)
    for (;;) {
      // Closed by their owners while they were being registered here.
      const left = registered.filter((entry) => this.#watches.get(entry.token) === undefined)
      if (left.length === 0) return
      registered = registered.filter((entry) => !left.includes(entry))
      await request(MESSAGE.UNWATCH, left)
    }
  }

  #lost(link: Link): void {
    if (this.#link !== link) return
    this.#link = undefined
    this.#reconnecting = this.#reconnect()
    this.#tell('lost')
  }

  async #reconnect(): Promise<void> {
    const { signal } = this.#abort
    for (let attempt = 0; !signal.aborted; attempt++) {
      await pause(backoffMs(attempt, RECONNECT_FIRST_MS, RECONNECT_MOST_MS), signal)
      if (signal.aborted) return
      try {
        await this.#establish()
        break
      } catch {
        // Still away: the next round waits longer. Whoever waits for us has a limit of its own.
      }
    }
    if (this.#link === undefined) return
    for (const waiter of this.#waiters) this.#settle(waiter).resolve(this.#link)
    this.#tell('connected')
  }

  #tell(state: 'connected' | 'lost'): void {
    for (const listener of [...this.#listeners]) listener(state)
  }

  async #unwatch(token: string): Promise<void> {
    const entry = this.#watches.get(token)
    if (entry === undefined) return
    this.#watches.remove(entry)
    try {
      // Without a connection there is nothing to take back: the next one keeps only what is still in the set.
      await this.#link?.request(MESSAGE.UNWATCH, entry.payload, entry.path)
    } catch (error) {
      // ENOENT: an earlier connection had it. ECONNRESET: it went with the connection.
      if (!hasErrno(error, 'ENOENT', 'ECONNRESET')) throw error
    }
  }
}

function closedError(): XenstoreError {
  return new XenstoreError('ECONNRESET', 'the xenstore client is closed')
}
