/**
 * Backend: the way in. Opens a hypervisor's xenstore and an engine, serves disks to guests, and tells what happens to
 * them.
 *
 *     await using backend = await Backend.open({ xen: 'mock:/run/lab' })
 *     const vbd = await backend.serve('1:xvda', file('disk.img'))
 *     await vbd.resize('20GiB')
 *
 * Owns the platform, the bus, the open disks and every vbd; `close` gives all of it back.
 */
import { onAbort } from './deadline.js'
import type { Disk } from './disk/disk.js'
import { Emitter, type Listener } from './emitter.js'
import type { Heartbeat, Placement } from './engine/engine.js'
import { DEFAULT_TUNABLES } from './engine/engine.js'
import { throwIfAborted, toVbdError, VbdError } from './errors.js'
import type { MockHost } from './mock/mock_host.js'
import {
  defaultReactors,
  type EngineChoice,
  type JsIo,
  openPlatform,
  type Platform,
} from './platform.js'
import type { XenChoice } from './store.js'
import { formatVbdId, parseVbdId, type VbdId } from './units.js'
import {
  Attachment,
  type CloseOptions,
  closeAttached,
  type Keeper,
  type ToolstackChoice,
} from './vbd/attachment.js'
import { Caretaker } from './vbd/caretaker.js'
import { DiskPool } from './vbd/disk_pool.js'
import { type BackendEvents, FORWARDED } from './vbd/events.js'
import { Offers } from './vbd/offers.js'
import { checkKinds, checkWhole, resolveVbdOptions, type VbdOptions } from './vbd/options.js'
import { checkTunables, engineTunables } from './vbd/tunables.js'
import { Vbd, type VbdTunables } from './vbd/vbd.js'
import { Bus } from './xenbus/bus.js'
import { type Device, isConnectionLoss } from './xenbus/device.js'
import { Limiter } from './xenbus/limiter.js'
import { ATTACH_MARK, Directories, Toolstack } from './xenbus/toolstack.js'

export interface BackendOptions {
  /** Where Xen is; `auto` by default. */
  readonly xen?: XenChoice
  /** What moves the data; `native` by default. */
  readonly engine?: EngineChoice
  /** How the engine `js` does file I/O: `fs`, through node:fs (default), or `uring`, by one io_uring call a pass. */
  readonly jsIo?: JsIo
  /** Kinds of backend directories to serve, most wanted first; `['vbd']` by default. */
  readonly kinds?: readonly string[]
  /** Reactor threads, 1..64; half of the processors by default, 1 to 4. With the placement `guest`, for each guest. */
  readonly reactors?: number
  /** Whose reactors serve a guest: by default its own (`guest`) on a Xen host, everybody's (`shared`) on the mock. */
  readonly placement?: Placement
  /** Settings of every vbd that says nothing else. */
  readonly tunables?: Partial<VbdTunables>
  /** Milliseconds between two complete looks at xenstore, 100..10,000; 5000 by default. */
  readonly reconcileMs?: number
  /**
   * A private folder on a tmpfs: should this process be killed, the next one with this folder goes on with guests that
   * have requests under way. By default there is none, and they begin again.
   */
  readonly journals?: string
  /** Closes the backend when it fires. */
  readonly signal?: AbortSignal
  /** A platform made elsewhere, instead of `xen` and `engine`; it is closed with the backend. */
  readonly platform?: Platform
}

export interface ServeOptions extends VbdOptions {
  /** Who makes the xenstore directories; `auto` by default: we do where no toolstack did. */
  readonly toolstack?: ToolstackChoice
  /** Kind of the directories that we make; the first of the backend's by default. */
  readonly kind?: string
  /** Settings that differ from the backend's. */
  readonly tunables?: Partial<VbdTunables>
  /** Closes the vbd when it fires. */
  readonly signal?: AbortSignal
}

type Settings = BackendOptions &
  Required<Pick<BackendOptions, 'kinds' | 'reconcileMs'>> & { readonly tunables: VbdTunables }

/** Serves disks to guests. Made by `Backend.open`. */
export class Backend {
  readonly #platform: Platform
  readonly #settings: Settings
  readonly #bus: Bus
  readonly #offers: Offers
  readonly #disks: DiskPool
  readonly #emitter = new Emitter<BackendEvents>()
  readonly #vbds = new Map<string, Vbd>()
  readonly #attachments = new Map<Vbd, Keeper>()
  readonly #warnings = new Limiter()
  #tunables: VbdTunables
  #lost = false
  #closing: Promise<void> | undefined
  readonly #unsubscribe: (() => void)[]

  /**
   * Opens a backend.
   *
   * @throws ERR_VBD_NO_XEN where there is no Xen, ERR_VBD_UNSUPPORTED for what this build cannot do, ERR_VBD_ARGUMENT
   *   for options out of range, ERR_VBD_ABORTED
   */
  static async open(options: BackendOptions = {}): Promise<Backend> {
    const { signal, kinds = ['vbd'], reconcileMs = 5000 } = options
    throwIfAborted(signal)
    checkKinds(kinds)
    checkWhole('reconcileMs', reconcileMs, 100, 10_000)
    const reactors = options.reactors ?? defaultReactors()
    checkWhole('reactors', reactors, 1, 64)
    const tunables = { ...DEFAULT_TUNABLES, logStats: 0, ...checkTunables(options.tunables ?? {}) }
    const platform =
      options.platform ??
      (await openPlatform({
        xen: options.xen ?? 'auto',
        engine: options.engine ?? 'native',
        ...(options.jsIo === undefined ? {} : { jsIo: options.jsIo }),
        reactors,
        ...(options.placement === undefined ? {} : { placement: options.placement }),
        tunables: engineTunables(tunables),
      }))
    const backend = new Backend(platform, { ...options, kinds, reconcileMs, tunables })
    try {
      await backend.#bus.start()
      throwIfAborted(signal)
    } catch (thrown) {
      await backend.close()
      throw thrown
    }
    backend.#unsubscribe.push(onAbort(signal, () => backend.#background(backend.close())))
    return backend
  }

  private constructor(platform: Platform, settings: Settings) {
    const { kinds, reconcileMs, tunables } = settings
    this.#platform = platform
    this.#settings = settings
    this.#tunables = tunables
    this.#disks = new DiskPool(platform.engine)
    this.#offers = new Offers({
      bus: () => this.#bus,
      wanted: () => this.#emitter.has('vbd'),
      emit: (offer) => this.#emitter.emit('vbd', offer),
      serve: (device, disk, options) =>
        this.#serve(device.address, disk, { ...options, toolstack: 'wait' }, device),
      servedAs: ({ address }) => this.#vbds.get(key(address)),
      background: (promise) => this.#background(promise),
    })
    this.#bus = new Bus({
      store: platform.store,
      domid: platform.domid,
      kinds,
      reconcileMs,
      onDevice: (device) => this.#found(device),
      onRecheck: (device) => {
        this.#ownerOf(device)?.lifecycle.poke()
        this.#offers.poke(device)
        this.#found(device)
      },
      onMissing: (device) => this.#missing(device),
      onDomains: () => {
        for (const attachment of this.#attachments.values()) attachment.poke()
      },
      onError: (thrown) => this.#busError(thrown),
    })
    this.#unsubscribe = [platform.store.onConnection((state) => this.#connection(state))]
    platform.onSlowGuest?.((domid, elapsedMs) => {
      const slept = `a grant call slept ${(elapsedMs / 1000).toFixed(1)} s`
      this.#warn(`domain ${domid}: its memory is paged out: ${slept}`)
    })
  }

  /** With `xen: 'mock'`, the mock Xen in this process: make guests on it. */
  get mock(): MockHost | undefined {
    return this.#platform.mock
  }

  /** Our own domain. */
  get domid(): number {
    return this.#platform.domid
  }

  /** `native` or `js`. */
  get engine(): string {
    return this.#platform.engine.kind
  }

  /** The signs of life of every thread that moves data, for a watchdog. Asking wakes them. */
  heartbeats(): readonly Heartbeat[] {
    return this.#platform.engine.heartbeats()
  }

  /** Has `listener` called for every such event; what it throws ends as a process warning. Returns what ends that. */
  on<K extends keyof BackendEvents>(event: K, listener: Listener<BackendEvents[K]>): () => void {
    const off = this.#emitter.on(event, listener)
    if (event === 'vbd') for (const device of this.#bus.devices()) this.#found(device)
    return off
  }

  /**
   * Serves a disk to a guest, from now until the vbd is closed, however often the guest comes and goes. The disk is
   * opened at once. Resolves when the device waits for its guest in xenstore, or for its guest's domain.
   *
   * @param id `DOMAIN:DEVICE`, for example `1:xvda`
   * @throws ERR_VBD_BACKING when the disk cannot be opened, ERR_VBD_BUSY when the device or the image is in use,
   *   ERR_VBD_ARGUMENT, ERR_VBD_XENSTORE, ERR_VBD_ABORTED, ERR_VBD_STATE after close
   */
  serve(id: string, disk: Disk, options: ServeOptions = {}): Promise<Vbd> {
    return this.#serve(parseVbdId(id), disk, options)
  }

  /**
   * @param id `1:xvda`, or any other spelling of the same device
   * @throws ERR_VBD_NOT_FOUND when it is not served, ERR_VBD_ARGUMENT
   */
  vbd(id: string): Vbd {
    const parsed = parseVbdId(id)
    const vbd = this.#vbds.get(key(parsed))
    if (vbd === undefined) {
      const served = this.vbds().map((each) => each.id)
      throw new VbdError('ERR_VBD_NOT_FOUND', `${formatVbdId(parsed)} is not served`, {
        vbd: formatVbdId(parsed),
        remedy: served.length > 0 ? `served are: ${served.join(', ')}` : 'no disk is served',
      })
    }
    return vbd
  }

  /** Every vbd that is served. */
  vbds(): Vbd[] {
    return [...this.#vbds.values()]
  }

  /**
   * Changes settings at once, for every vbd that is served and those to come.
   *
   * @throws ERR_VBD_ARGUMENT naming the setting that is out of range; then nothing has changed
   */
  tune(tunables: Partial<VbdTunables>): void {
    this.#requireOpen()
    const checked = checkTunables(tunables)
    this.#tunables = { ...this.#tunables, ...checked }
    const { logStats: _logStats, ...engine } = checked
    this.#platform.engine.tune(engine)
    for (const vbd of this.#vbds.values()) vbd.tune(checked)
  }

  /**
   * Closes every vbd as `Vbd.close` does, then everything else. Nothing is mapped, bound or open afterwards.
   * Idempotent.
   *
   * @param options.timeoutMs how long guests may take, together; 10,000 by default
   */
  close(options: CloseOptions = {}): Promise<void> {
    this.#closing ??= this.#close(options)
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #close(options: CloseOptions): Promise<void> {
    const closed = await Promise.allSettled(this.vbds().map((vbd) => vbd.close(options)))
    for (const unsubscribe of this.#unsubscribe) unsubscribe()
    try {
      await this.#offers.close()
      await this.#bus.close()
    } finally {
      await this.#platform.close()
    }
    const failed = closed.find((result) => result.status === 'rejected')
    if (failed !== undefined) throw failed.reason
  }

  /** @param offered the device that it is for: nothing is served without it */
  async #serve(id: VbdId, disk: Disk, options: ServeOptions, offered?: Device): Promise<Vbd> {
    this.#requireOpen()
    throwIfAborted(options.signal)
    const vbd = this.#makeVbd(id, disk, options, offered !== undefined)
    try {
      await vbd.lifecycle.open()
      await this.#attach(vbd, disk, options)
      const device = offered ?? this.#bus.find(id.domid, id.devid)
      if (offered !== undefined) {
        this.#offers.requirePresent(offered)
        this.#takeCare(vbd, offered)
      }
      if (device !== undefined) vbd.lifecycle.bind(device)
      throwIfAborted(options.signal)
      this.#requireOpen()
    } catch (thrown) {
      await vbd.close({ timeoutMs: 0 }).catch(() => {})
      throw toVbdError(thrown)
    }
    vbd.on(
      'closed',
      onAbort(options.signal, () => this.#background(vbd.close())),
    )
    return vbd
  }

  #makeVbd(id: VbdId, disk: Disk, options: ServeOptions, once: boolean): Vbd {
    const name = formatVbdId(id)
    if (this.#vbds.has(key(id))) {
      throw new VbdError('ERR_VBD_BUSY', `${name} is served already`, {
        vbd: name,
        remedy: 'close it first, or serve another device',
      })
    }
    const tunables = { ...this.#tunables, ...checkTunables(options.tunables ?? {}) }
    const vbd: Vbd = new Vbd({
      id,
      engine: this.#platform.engine,
      disks: this.#disks,
      disk,
      options: resolveVbdOptions(options),
      tunables: engineTunables(tunables),
      journals: this.#settings.journals,
      logStats: tunables.logStats,
      once,
      onDropped: (device) => {
        if (once) this.#background(vbd.close(), vbd)
        this.#bus.forget(device)
      },
      onSettled: () => this.#attachments.get(vbd)?.settled(),
      onClose: (closing, how) => this.#closeVbd(id, closing, how),
    })
    for (const event of FORWARDED) {
      vbd.on(event, (value) => this.#emitter.emit(event, value as never))
    }
    this.#vbds.set(key(id), vbd)
    return vbd
  }

  async #attach(vbd: Vbd, disk: Disk, options: ServeOptions): Promise<void> {
    const { toolstack: choice = 'auto', kind = this.#settings.kinds[0]! } = options
    if (choice === 'wait') return
    if (!this.#settings.kinds.includes(kind)) {
      throw new VbdError('ERR_VBD_ARGUMENT', `kind '${kind}' is not served by this backend`, {
        remedy: `use one of ${this.#settings.kinds.join(', ')}`,
      })
    }
    // Made by a toolstack under any kind: it is used as it is.
    await this.#bus.scan()
    const existing = this.#bus.find(vbd.domid, vbd.devid)
    const toolstack = new Toolstack(
      this.#platform.store,
      {
        backendDomid: this.#platform.domid,
        kind: existing?.address.kind ?? kind,
        domid: vbd.domid,
        devid: vbd.devid,
      },
      {
        name: vbd.vdev,
        params: disk.params,
        readOnly: options.readOnly === true || vbd.disk.readOnly,
        cdrom: options.cdrom === true,
        removable: options.removable === true,
        discard: options.discard !== false,
      },
    )
    const attachment = new Attachment({
      name: vbd.id,
      choice,
      toolstack,
      bus: this.#bus,
      lifecycle: vbd.lifecycle,
      onWarning: (message) => this.#emitter.emit('warning', { vbd, message }),
    })
    await attachment.start()
    this.#attachments.set(vbd, attachment)
  }

  #takeCare(vbd: Vbd, { address }: Device): void {
    const directories = new Directories(this.#platform.store, address, ATTACH_MARK)
    this.#attachments.set(vbd, new Caretaker(directories, vbd.lifecycle))
  }

  async #closeVbd(id: VbdId, vbd: Vbd, options: CloseOptions): Promise<void> {
    const attachment = this.#attachments.get(vbd)
    try {
      const how = this.#lost ? { ...options, timeoutMs: 0 } : options
      await closeAttached(attachment, vbd.lifecycle, how)
    } finally {
      this.#attachments.delete(vbd)
      this.#vbds.delete(key(id))
      // Made again while the vbd of the one before was closing: nobody has taken it.
      const device = this.#bus.find(id.domid, id.devid)
      if (device !== undefined && device !== vbd.lifecycle.device) this.#found(device)
    }
  }

  #found(device: Device): void {
    const vbd = this.#vbds.get(key(device.address))
    if (vbd === undefined) this.#offers.found(device)
    // Else it is looked at again when that one is out of the way.
    else if (!vbd.closing) vbd.lifecycle.bind(device)
  }

  #missing(device: Device): void {
    const owner = this.#ownerOf(device)
    if (owner !== undefined) owner.lifecycle.poke()
    else this.#offers.missing(device)
  }

  #ownerOf(device: Device): Vbd | undefined {
    const vbd = this.#vbds.get(key(device.address))
    return vbd?.lifecycle.device === device ? vbd : undefined
  }

  #connection(state: 'connected' | 'lost'): void {
    this.#lost = state === 'lost'
    this.#emitter.emit('xenstore', { state })
  }

  #busError(thrown: unknown): void {
    const { message } = toVbdError(thrown)
    if (!isConnectionLoss(thrown)) this.#warn(`looking for devices failed: ${message}`)
  }

  #warn(message: string): void {
    if (this.#warnings.allow() !== undefined) this.#emitter.emit('warning', { message })
  }

  /** Something that nobody waits for. */
  #background(promise: Promise<unknown>, vbd?: Vbd): void {
    promise.catch((thrown) => {
      if (this.#closing !== undefined || isConnectionLoss(thrown)) return
      const error = toVbdError(thrown)
      this.#emitter.emit('error', vbd === undefined ? { error } : { vbd, error })
    })
  }

  #requireOpen(): void {
    if (this.#closing === undefined) return
    throw new VbdError('ERR_VBD_STATE', 'the backend has been closed')
  }
}

function key({ domid, devid }: VbdId): string {
  return `${domid}:${devid}`
}
