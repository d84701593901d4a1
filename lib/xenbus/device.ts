/**
 * Device: one backend directory and the frontend directory that belongs to it. Knows paths and keys, decides nothing.
 *
 * Identity comes from the backend path alone, which only the toolstack can write; a guest that points `backend` or
 * `frontend` elsewhere is never followed. Every write happens in a transaction that first finds the directory
 * in the state that the decision was made for: a directory that vanished is never made again, and a Closing that the
 * toolstack wrote meanwhile is never overwritten. No node of the guest is touched in those transactions.
 */
import { parentOf } from '../xenstore/path.js'
import { type Watch, type Xenstore, XenstoreError, type XenstoreOps } from '../xenstore/xenstore.js'
import { parseState, XenbusState } from './state.js'

/** Where a device is: `backend/<kind>/<domid>/<devid>` of domain `backendDomid`. */
export interface DeviceAddress {
  readonly backendDomid: number
  readonly kind: string
  readonly domid: number
  readonly devid: number
}

export interface DevicePaths {
  readonly backend: string
  readonly frontend: string
  /** Folder of the error node, as Linux places it. */
  readonly error: string
}

/** Every path of a device. A frontend knows block devices of any backend kind as `vbd`. */
export function devicePaths(address: DeviceAddress): DevicePaths {
  const { backendDomid, kind, domid, devid } = address
  const home = `/local/domain/${backendDomid}`
  const relative = `backend/${kind}/${domid}/${devid}`
  return {
    backend: `${home}/${relative}`,
    frontend: `/local/domain/${domid}/device/vbd/${devid}`,
    error: `${home}/error/${relative}`,
  }
}

/** Both sides at one moment, as far as separate reads can tell. */
export interface DeviceReading {
  /** undefined: the directory is gone. */
  readonly own: XenbusState | undefined
  readonly front: XenbusState
  readonly online: boolean
}

/** What became of a write. `changed`: the directory was in another state than expected; nothing was written. */
export type WriteOutcome = 'written' | 'changed' | 'vanished'

/** Ends a transaction's body without writing anything. */
class Abandoned extends Error {
  readonly outcome: WriteOutcome

  constructor(outcome: WriteOutcome) {
    super(outcome)
    this.outcome = outcome
  }
}

/** A failure to be told to the toolstack. */
export interface DeviceError {
  /** Linux errno that stands before the text. */
  readonly errno: number
  readonly text: string
  /** Also as `hotplug-error`, for failures that the toolstack's own attach waits for. */
  readonly hotplug?: boolean
}

/** One device's keys in xenstore. Made by a Bus. */
export class Device {
  readonly address: DeviceAddress
  readonly paths: DevicePaths
  /** False once the guest's domain is known to be gone, whatever its directory still says. */
  alive = true
  readonly #store: Xenstore
  #watches: Watch[] = []
  /** Raised by every watch and close: what an earlier one still registers is taken back. */
  #generation = 0
  /** Our state has been another one than the toolstack's first. */
  #begun = false
  /** What its disk was made for; counts until we begin. */
  #pinned: { readonly params: string | undefined } | undefined
  #errorWritten = false

  constructor(store: Xenstore, address: DeviceAddress) {
    this.#store = store
    this.address = address
    this.paths = devicePaths(address)
  }

  /** Has `onChange` called for every change of either side; first registers, so that a read after it misses nothing. */
  async watch(onChange: () => void): Promise<void> {
    await this.close()
    const generation = this.#generation
    for (const path of [this.paths.backend, `${this.paths.frontend}/state`]) {
      const watch = await this.#store.watch(path, onChange)
      if (generation !== this.#generation) {
        await quietly(watch.close())
        return
      }
      this.#watches.push(watch)
    }
  }

  /** From now on a directory with other `params` is another device's, until we have begun with it. */
  pinParams(params: string | undefined): void {
    this.#pinned = { params }
  }

  /** A directory that was removed and made again between two readings is gone: it may be another disk's by now. */
  async read(): Promise<DeviceReading> {
    const { backend, frontend } = this.paths
    const [own, online, front, remade] = await Promise.all([
      this.#store.tryRead(`${backend}/state`),
      this.#store.tryRead(`${backend}/online`),
      this.alive ? this.#readGuest(`${frontend}/state`) : undefined,
      this.#isReplaced(this.#store),
    ])
    const state = own === undefined ? undefined : parseState(own)
    const replaced = remade || (this.#begun && state === XenbusState.Initialising)
    this.#begun ||= state !== XenbusState.Initialising
    return { own: replaced ? undefined : state, front: parseState(front), online: online !== '0' }
  }

  /** Keys of the backend directory that the toolstack wrote; absent ones are undefined. */
  async readBackend<K extends string>(keys: readonly K[]): Promise<Record<K, string | undefined>> {
    const values = await Promise.all(
      keys.map((key) => this.#store.tryRead(`${this.paths.backend}/${key}`)),
    )
    return Object.fromEntries(keys.map((key, index) => [key, values[index]])) as Record<
      K,
      string | undefined
    >
  }

  /** Keys of the guest's directory; what is absent or unreadable is left out. */
  async readFrontend(keys: readonly string[]): Promise<Map<string, string>> {
    const values = await Promise.all(
      keys.map((key) => this.#readGuest(`${this.paths.frontend}/${key}`)),
    )
    const found = new Map<string, string>()
    keys.forEach((key, index) => {
      const value = values[index]
      if (value !== undefined) found.set(key, value)
    })
    return found
  }

  /** Why the directories do not belong together, or undefined when they do. */
  async checkIdentity(): Promise<string | undefined> {
    const { domid } = this.address
    const keys = await this.readBackend(['frontend', 'frontend-id'])
    if (keys.frontend !== this.paths.frontend) {
      return `its frontend key is not ${this.paths.frontend}`
    }
    if (keys['frontend-id'] !== String(domid)) return `its frontend-id key is not ${domid}`
    try {
      const [owner] = await this.#store.getPermissions(this.paths.frontend)
      if (owner?.domid !== domid) return `its frontend directory does not belong to domain ${domid}`
    } catch (thrown) {
      // A frontend that is gone is no impostor; its state says so soon enough.
      if (!isErrno(thrown, 'ENOENT') && !isErrno(thrown, 'EACCES')) throw thrown
    }
    return undefined
  }

  /** Runs `body` in a transaction, provided that our state is `expected`. */
  async update(
    expected: XenbusState,
    body: (tx: XenstoreOps, path: string) => Promise<void>,
  ): Promise<WriteOutcome> {
    const { backend } = this.paths
    try {
      const outcome = await this.#store.transaction(async (tx) => {
        const state = await tx.tryRead(`${backend}/state`)
        if (state === undefined) throw new Abandoned('vanished')
        if (parseState(state) !== expected) throw new Abandoned('changed')
        if (await this.#isReplaced(tx)) throw new Abandoned('changed')
        await body(tx, backend)
        return 'written' as const
      })
      this.#begun = true
      return outcome
    } catch (thrown) {
      if (thrown instanceof Abandoned) return thrown.outcome
      throw thrown
    }
  }

  /** Writes our state, and with it the error that it is due to. */
  async writeState(from: XenbusState, to: XenbusState, error?: DeviceError): Promise<WriteOutcome> {
    const outcome = await this.update(from, async (tx, path) => {
      if (error !== undefined) {
        await tx.write(`${this.paths.error}/error`, `${error.errno} ${error.text}`)
        if (error.hotplug) {
          await tx.write(`${path}/hotplug-error`, error.text)
          await tx.write(`${path}/hotplug-status`, 'error')
        }
      }
      await tx.write(`${path}/state`, String(to))
    })
    if (outcome === 'written' && error !== undefined) this.#errorWritten = true
    return outcome
  }

  /** Removes what `writeState` reported; best effort, for nothing depends on it. */
  async clearError(): Promise<void> {
    if (!this.#errorWritten) return
    this.#errorWritten = false
    const { error } = this.paths
    // A toolstack made that of any other domain, and gave it to the domain; dom0's is made with the first error.
    const home = `/local/domain/${this.address.backendDomid}`
    const top = this.address.backendDomid === 0 ? home : `${home}/error`
    await quietly(
      this.#store.transaction(async (tx) => {
        await tx.remove(error)
        // The last error takes the folders with it: domain numbers never end.
        for (let folder = parentOf(error); folder !== top; folder = parentOf(folder)) {
          if ((await tx.tryList(folder)).length > 0) return
          await tx.remove(folder)
        }
      }),
    )
  }

  /** Ends the watches, until `watch` begins new ones. Idempotent; the directories are left as they are. */
  async close(): Promise<void> {
    this.#generation++
    const watches = this.#watches
    this.#watches = []
    await Promise.all(watches.map((watch) => quietly(watch.close())))
  }

  /** Made again for another disk before we began. */
  async #isReplaced(store: Pick<XenstoreOps, 'tryRead'>): Promise<boolean> {
    if (this.#begun || this.#pinned === undefined) return false
    return (await store.tryRead(`${this.paths.backend}/params`)) !== this.#pinned.params
  }

  /** A guest may make its keys unreadable for us: then they are not there. */
  async #readGuest(path: string): Promise<string | undefined> {
    try {
      return await this.#store.tryRead(path)
    } catch (thrown) {
      if (isErrno(thrown, 'EACCES') || isErrno(thrown, 'ENOENT')) return undefined
      throw thrown
    }
  }
}

/** Whether xenstore answered with this errno, for example `ENOENT`. */
export function isErrno(thrown: unknown, errno: string): boolean {
  return thrown instanceof XenstoreError && thrown.errno === errno
}

/** The connection to xenstore is gone; it comes back by itself. */
export function isConnectionLoss(thrown: unknown): boolean {
  return isErrno(thrown, 'ECONNRESET')
}

/** Waits for something whose failure changes nothing. */
export async function quietly(promise: Promise<unknown>): Promise<void> {
  try {
    await promise
  } catch {
    // The store is gone, or the node is.
  }
}
