/**
 * FrontBus: one vbd's place in xenstore as its frontend sees it: the two directories, the backend's state, our own.
 *
 * The event loop's thread only; owns its watches until close(). Watches are hints: every event makes one re-read of
 * the backend's state, at most one of which is pending. A repeated state is told too: that is how a resize is
 * announced.
 */
import { throwIfAborted, toVbdError, VbdError } from '../errors.js'
import { type Watch, type Xenstore, XenstoreError } from '../xenstore/xenstore.js'
import { parseNumber } from './front_keys.js'

export const XENBUS = {
  unknown: 0,
  initialising: 1,
  initWait: 2,
  initialised: 3,
  connected: 4,
  closing: 5,
  closed: 6,
} as const

export interface WaitOptions {
  readonly signal?: AbortSignal | undefined
  /** Milliseconds; none when absent. */
  readonly timeoutMs?: number | undefined
}

interface Waiter {
  readonly check: (state: number) => boolean
  readonly resolve: (state: number) => void
}

export interface FrontBusListener {
  /** The backend's state is another one than at the last look. */
  changed(state: number): void
  /** A watch fired and the state was read: perhaps the same as before. */
  seen(state: number): void
  /** The store can no longer be read. */
  failed(error: VbdError): void
}

export class FrontBus {
  readonly path: string
  readonly backendPath: string
  readonly backendId: number
  readonly #xenstore: Xenstore
  readonly #watches: Watch[] = []
  readonly #waiters = new Set<Waiter>()
  readonly #listener: FrontBusListener
  #state: number = XENBUS.unknown
  #attached = true
  #dirty = false
  #reading = false
  #closed = false

  private constructor(
    xenstore: Xenstore,
    place: { path: string; backendPath: string; backendId: number },
    listener: FrontBusListener,
  ) {
    this.#xenstore = xenstore
    this.path = place.path
    this.backendPath = place.backendPath
    this.backendId = place.backendId
    this.#listener = listener
  }

  /**
   * Waits until the toolstack has made the disk's nodes, then watches the backend.
   *
   * @throws ERR_VBD_TIMEOUT when the nodes do not appear in time, ERR_VBD_ABORTED
   */
  static async find(
    xenstore: Xenstore,
    domid: number,
    devid: number,
    listener: FrontBusListener,
    wait: WaitOptions,
  ): Promise<FrontBus> {
    const path = `/local/domain/${domid}/device/vbd/${devid}`
    const place = await waitForNodes(xenstore, path, `${domid}:${devid}`, wait)
    const bus = new FrontBus(xenstore, { path, ...place }, listener)
    try {
      const kick = () => bus.#kick()
      bus.#watches.push(await xenstore.watch(`${bus.backendPath}/state`, kick))
      // Its removal, with the directory or alone, is how a detached disk shows.
      bus.#watches.push(await xenstore.watch(`${path}/backend`, kick))
      await bus.refresh()
    } catch (error) {
      await bus.close()
      throw error
    }
    return bus
  }

  /** The backend's state when it was last read; 0 when its directory is not there. */
  get backendState(): number {
    return this.#state
  }

  /** Whether the frontend's directory was there when it was last read. */
  get attached(): boolean {
    return this.#attached
  }

  #kick(): void {
    this.#dirty = true
    if (!this.#reading && !this.#closed) void this.#readAll()
  }

  async #readAll(): Promise<void> {
    this.#reading = true
    try {
      while (this.#dirty && !this.#closed) {
        this.#dirty = false
        await this.refresh()
        if (!this.#closed) this.#tell()
      }
    } catch (error) {
      if (!this.#closed) this.#listener.failed(toVbdError(error, 'ERR_VBD_XENSTORE'))
    } finally {
      this.#reading = false
    }
  }

  /** Reads both directories now. */
  async refresh(): Promise<void> {
    const [state, backend] = await Promise.all([
      this.readBackend('state'),
      readIfAllowed(this.#xenstore, `${this.path}/backend`),
    ])
    this.#attached = backend !== undefined
    const now = parseNumber(state, 8) ?? XENBUS.unknown
    if (now === this.#state || this.#closed) return
    this.#state = now
    this.#listener.changed(now)
  }

  #tell(): void {
    for (const waiter of [...this.#waiters]) {
      if (!this.#attached || waiter.check(this.#state)) waiter.resolve(this.#state)
    }
    this.#listener.seen(this.#state)
  }

  /**
   * Waits until the backend's state satisfies `check`; resolves with it.
   *
   * @throws ERR_VBD_NOT_FOUND when the disk was detached, ERR_VBD_TIMEOUT, ERR_VBD_ABORTED (or the signal's VbdError)
   */
  async waitFor(what: string, check: (state: number) => boolean, wait: WaitOptions = {}) {
    await this.refresh()
    let state = this.#state
    if (this.#attached && !check(state)) state = await this.#wait(what, check, wait)
    if (this.#attached) return state
    throw new VbdError('ERR_VBD_NOT_FOUND', 'the disk was detached', { path: this.path })
  }

  #wait(what: string, check: (state: number) => boolean, wait: WaitOptions): Promise<number> {
    let waiter: Waiter | undefined
    const reached = new Promise<number>((resolve) => {
      waiter = { check, resolve }
      this.#waiters.add(waiter)
    })
    const late = () =>
      new VbdError('ERR_VBD_TIMEOUT', `the backend did not get to ${what} in time`, {
        path: `${this.backendPath}/state`,
        remedy: `its state is ${this.#state}; look at the backend's log`,
      })
    return within(reached, wait, late).finally(() => this.#waiters.delete(waiter!))
  }

  readBackend(key: string): Promise<string | undefined> {
    return readIfAllowed(this.#xenstore, `${this.backendPath}/${key}`)
  }

  async readBackendKeys(names: readonly string[]): Promise<Map<string, string | undefined>> {
    const values = await Promise.all(names.map((name) => this.readBackend(name)))
    return new Map(names.map((name, i) => [name, values[i]]))
  }

  async frontState(): Promise<number> {
    const state = await readIfAllowed(this.#xenstore, `${this.path}/state`)
    return parseNumber(state, 8) ?? XENBUS.unknown
  }

  /**
   * Writes our state, and keys before it, unless the directory is gone: a write would make it anew.
   * Resolves with whether it was there.
   */
  async write(state: number, keys?: ReadonlyMap<string, string>, remove?: readonly string[]) {
    return await this.#xenstore.transaction(async (tx) => {
      if ((await tx.tryRead(`${this.path}/backend`)) === undefined) return false
      for (const name of remove ?? []) await tx.remove(`${this.path}/${name}`)
      for (const [name, value] of keys ?? []) await tx.write(`${this.path}/${name}`, value)
      await tx.write(`${this.path}/state`, String(state))
      return true
    })
  }

  /** Names in our own directory. */
  ownKeys(): Promise<string[]> {
    return this.#xenstore.tryList(this.path)
  }

  async removeKeys(names: readonly string[]): Promise<void> {
    for (const name of names) await this.#xenstore.remove(`${this.path}/${name}`)
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    const closing = this.#watches.map((watch) => watch.close())
    await Promise.allSettled(closing)
  }
}

/** A node that is gone may look forbidden, because its parent is. */
async function readIfAllowed(xenstore: Xenstore, path: string): Promise<string | undefined> {
  try {
    return await xenstore.tryRead(path)
  } catch (error) {
    if (error instanceof XenstoreError && error.errno === 'EACCES') return undefined
    throw error
  }
}

async function waitForNodes(xenstore: Xenstore, path: string, vbd: string, wait: WaitOptions) {
  const look = async () => {
    const backendPath = await readIfAllowed(xenstore, `${path}/backend`)
    const backendId = parseNumber(await readIfAllowed(xenstore, `${path}/backend-id`), 32751)
    return backendPath && backendId !== undefined ? { backendPath, backendId } : undefined
  }
  return await whenThere(xenstore, path, look, wait, () => notThere(path, vbd))
}

/** What `look` finds, as soon as it finds something; it looks again whenever something changes under `path`. */
async function whenThere<T>(
  xenstore: Xenstore,
  path: string,
  look: () => Promise<T | undefined>,
  wait: WaitOptions,
  late: () => VbdError,
): Promise<T> {
  let wake = () => {}
  const watch = await xenstore.watch(path, () => wake())
  try {
    for (;;) {
      const changed = new Promise<void>((resolve) => {
        wake = resolve
      })
      const found = await look()
      if (found !== undefined) return found
      await within(changed, wait, late)
    }
  } finally {
    await watch.close().catch(() => {})
  }
}

/**
 * Waits until the toolstack has made the domain's own directory; its socket may be there a moment earlier.
 * @throws ERR_VBD_TIMEOUT, and XenstoreError when the connection is lost
 */
export async function waitForHome(xenstore: Xenstore, domid: number, timeoutMs: number) {
  const path = `/local/domain/${domid}/domid`
  const late = () =>
    new VbdError('ERR_VBD_TIMEOUT', 'the toolstack has not made the domain', { path })
  await whenThere(xenstore, path, () => readIfAllowed(xenstore, path), { timeoutMs }, late)
}

function notThere(path: string, vbd: string): VbdError {
  return new VbdError('ERR_VBD_TIMEOUT', 'no toolstack has given the guest this disk', {
    vbd,
    path,
    remedy: `serve it: vbdkit serve --xen mock:DIR ${vbd} DRIVER`,
  })
}

/** `promise`, unless the signal fires or the time is over first. */
export async function within<T>(
  promise: Promise<T>,
  { signal, timeoutMs }: WaitOptions,
  late: () => VbdError,
): Promise<T> {
  throwIfFired(signal)
  let timer: NodeJS.Timeout | undefined
  let onAbort: (() => void) | undefined
  const stopped = new Promise<never>((_, reject) => {
    if (timeoutMs !== undefined) timer = setTimeout(() => reject(late()), timeoutMs)
    onAbort = () => {
      try {
        throwIfFired(signal)
      } catch (error) {
        reject(error)
      }
    }
    signal?.addEventListener('abort', onAbort, { once: true })
  })
  try {
    return await Promise.race([promise, stopped])
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', onAbort!)
  }
}

/** Throws the signal's reason where that is a VbdError, ERR_VBD_ABORTED otherwise. */
function throwIfFired(signal: AbortSignal | undefined): void {
  if (signal?.aborted && signal.reason instanceof VbdError) throw signal.reason
  throwIfAborted(signal)
}
