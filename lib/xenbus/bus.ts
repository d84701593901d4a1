/**
 * Bus: finds the devices that toolstacks make for this backend domain. Watches `backend/<kind>` for each kind, and
 * the coming and going of domains; looks at everything again every few seconds as well, because watch events are
 * hints that xenstored may drop (XSA-325, XSA-326; R-39). Owns its watches and its timer; devices belong to whoever
 * they are given to.
 */
import { MAX_DOMID } from '../units.js'
import type { Watch, Xenstore } from '../xenstore/xenstore.js'
import { Coalescer } from './coalesce.js'
import { Device, quietly } from './device.js'
import { XenbusState } from './state.js'

export interface BusOptions {
  readonly store: Xenstore
  /** Our own domain. */
  readonly domid: number
  readonly kinds: readonly string[]
  /** Milliseconds between two complete looks, at most 10,000. */
  readonly reconcileMs: number
  /** Told of every directory that appears, once. */
  readonly onDevice: (device: Device) => void
  /** Look again: called for each device after a reconcile, a domain's coming or going, or a reconnect to xenstore. */
  readonly onRecheck: (device: Device) => void
  /** The device's directory is gone: for its owner to part with it, or else to be forgotten. */
  readonly onMissing: (device: Device) => void
  /** Domains came or went, perhaps. */
  readonly onDomains: () => void
  readonly onError: (thrown: unknown) => void
}

/** Largest device number: 2^31-1 as xl has it. */
const MAX_DEVID = 0x7fff_ffff

/** The devices of one backend domain. */
export class Bus {
  readonly #options: BusOptions
  readonly #devices = new Map<string, Device>()
  /** Devices of other backends. */
  readonly #foreign = new Set<string>()
  readonly #scanner = new Coalescer(() => this.#guarded(() => this.#scan()))
  readonly #census = new Coalescer(() => this.#guarded(() => this.#countDomains()))
  readonly #watches: Watch[] = []
  #timer: NodeJS.Timeout | undefined
  #unsubscribe: (() => void) | undefined
  #closed = false

  constructor(options: BusOptions) {
    this.#options = options
  }

  /** Registers the watches, then looks once; resolves when every directory that exists now has been told. */
  async start(): Promise<void> {
    const { store, reconcileMs } = this.#options
    for (const kind of this.#options.kinds) {
      await this.#watch(this.#root(kind), () => this.#scanner.poke())
    }
    await this.#watch('@introduceDomain', () => this.#census.poke())
    await this.#watch('@releaseDomain', () => this.#census.poke())
    this.#unsubscribe = store.onConnection((state) => {
      if (state === 'connected') this.reconcile()
    })
    this.#timer = setInterval(() => this.reconcile(), reconcileMs)
    this.#timer.unref()
    await this.#scan()
  }

  /** The device at that place, if its directory exists. */
  find(domid: number, devid: number): Device | undefined {
    return this.#options.kinds
      .map((kind) => this.#devices.get(key(kind, domid, devid)))
      .find((device) => device !== undefined)
  }

  /** Every device that is known. */
  devices(): readonly Device[] {
    return [...this.#devices.values()]
  }

  /** The device's owner is done with it: if its directory is made again, it is a new device. */
  forget(device: Device): void {
    const { kind, domid, devid } = device.address
    const name = key(kind, domid, devid)
    if (this.#devices.get(name) === device) this.#devices.delete(name)
    this.#scanner.poke()
  }

  /** The device is another backend's. When its directory is made again, it is told of again. */
  leave(device: Device): void {
    const { kind, domid, devid } = device.address
    const name = key(kind, domid, devid)
    if (this.#devices.get(name) !== device) return
    this.#devices.delete(name)
    this.#foreign.add(name)
  }

  /** Looks at everything again, soon. */
  reconcile(): void {
    this.#scanner.poke()
    this.#census.poke()
  }

  /** Looks for new directories now; resolves when that has been done. */
  async scan(): Promise<void> {
    await this.#scanner.flush()
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    clearInterval(this.#timer)
    this.#unsubscribe?.()
    await Promise.all(this.#watches.map((watch) => quietly(watch.close())))
    await Promise.all([this.#scanner.stop(), this.#census.stop()])
  }

  #root(kind: string): string {
    return `/local/domain/${this.#options.domid}/backend/${kind}`
  }

  async #watch(path: string, onEvent: () => void): Promise<void> {
    const watch = await this.#options.store.watch(path, onEvent)
    if (this.#closed) await quietly(watch.close())
    else this.#watches.push(watch)
  }

  async #guarded(body: () => Promise<void>): Promise<void> {
    try {
      if (!this.#closed) await body()
    } catch (thrown) {
      if (!this.#closed) this.#options.onError(thrown)
    }
  }

  /** Finds what is new. What is gone is noticed by its owner, who watches it, or here when it has none. */
  async #scan(): Promise<void> {
    for (const kind of this.#options.kinds) {
      const present = new Set<string>()
      for (const domid of await this.#numbers(this.#root(kind), MAX_DOMID)) {
        for (const devid of await this.#numbers(`${this.#root(kind)}/${domid}`, MAX_DEVID)) {
          present.add(key(kind, domid, devid))
          await this.#discover(kind, domid, devid)
        }
      }
      for (const [name, device] of this.#devices) {
        if (device.address.kind === kind && !present.has(name)) this.#options.onMissing(device)
      }
      for (const name of this.#foreign) {
        if (name.startsWith(`${kind}/`) && !present.has(name)) this.#foreign.delete(name)
      }
    }
  }

  async #discover(kind: string, domid: number, devid: number): Promise<void> {
    const name = key(kind, domid, devid)
    if (this.#devices.has(name)) return
    const { store, domid: backendDomid } = this.#options
    const device = new Device(store, { backendDomid, kind, domid, devid })
    const state = await store.tryRead(`${device.paths.backend}/state`)
    // A directory without a state is a remnant, or being made outside of a transaction: its state will wake us.
    if (state === undefined) return
    // That of another backend, unless it begins: then it may be a new one, and another's.
    if (this.#foreign.has(name) && state !== String(XenbusState.Initialising)) return
    if (this.#closed || this.#devices.has(name)) return
    this.#foreign.delete(name)
    this.#devices.set(name, device)
    this.#options.onDevice(device)
  }

  /** Names of children that are plain numbers; a directory has no other that concerns us. */
  async #numbers(path: string, most: number): Promise<number[]> {
    const names = await this.#options.store.tryList(path)
    return names
      .filter((name) => /^(0|[1-9][0-9]{0,9})$/.test(name) && Number(name) <= most)
      .map(Number)
  }

  async #countDomains(): Promise<void> {
    const domids = new Set(this.devices().map((device) => device.address.domid))
    const alive = new Map<number, boolean>()
    for (const domid of domids) {
      alive.set(domid, await this.#options.store.isDomainIntroduced(domid))
    }
    for (const device of this.devices()) {
      device.alive = alive.get(device.address.domid) ?? device.alive
      this.#options.onRecheck(device)
    }
    this.#options.onDomains()
  }
}

function key(kind: string, domid: number, devid: number): string {
  return `${kind}/${domid}/${devid}`
}
