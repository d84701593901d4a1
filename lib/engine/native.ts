/**
 * The native engine: the C++ addon behind the Engine contract. Runs on the JavaScript thread; the addon's reactors run
 * on their own and come back only through promises and `onEvent`. Whoever calls `createNativeEngine` owns the engine
 * and closes it before the XenConnection that it was given.
 */
import { withLayers } from '../disk/overlay.js'
import { type ReadableDisk, resolvePartitions } from '../disk/partition_table.js'
import { planOf } from '../disk/plan.js'
import { type OverlaySpec, pathOf } from '../disk/spec.js'
import { VbdError, type VbdErrorOptions } from '../errors.js'
import type { NativeDisk, NativeEngine, NativeVbd, NativeXen } from './addon.js'
import type {
  Connection,
  DiskSpec,
  Engine,
  EngineDisk,
  EngineEvent,
  EngineVbd,
  Heartbeat,
  OverlayAct,
  Placement,
  TraceBatch,
  Transfer,
  Tunables,
  VbdCounters,
  XenConnection,
} from './engine.js'
import { loadAddon } from './load_addon.js'
import { NativeDiskAdapter, withKeys } from './native_disk.js'
import { guard, guardAsync, text } from './native_errors.js'
import { ScriptEngineDisk } from './script/script_disk.js'

/** What the native engine needs of a XenConnection: the addon's own handle. */
export interface NativeXenConnection extends XenConnection {
  readonly native: NativeXen
  /** Has `listener` told of guests whose grant calls sleep in the kernel; absent where none can. */
  onSlowGuest?(listener: (domid: number) => void): void
}

/**
 * Joins a mock Xen as domain `domid`.
 *
 * @param socketPath the broker's socket, `mockPaths(dir).xen`
 * @param domid 0..32751; 0 is where backends usually live
 * @throws ERR_VBD_NO_XEN when no mock listens there
 */
export function openMockXen(socketPath: string, domid = 0): NativeXenConnection {
  const addon = loadAddon()
  let native: NativeXen
  try {
    native = addon.connectMock(socketPath, domid)
  } catch (cause) {
    throw new VbdError('ERR_VBD_NO_XEN', `no mock Xen answers on ${socketPath}: ${text(cause)}`, {
      path: socketPath,
      remedy: 'start one with `vbdkit mock DIR`',
      cause,
    })
  }
  let open = true
  return {
    kind: 'mock',
    domid,
    native,
    close() {
      if (!open) return
      open = false
      native.close()
    },
  }
}

export interface NativeEngineOptions {
  readonly xen: NativeXenConnection
  /** Reactor threads, 1..64; with the placement `guest`, at most so many for each guest. */
  readonly reactors: number
  /** By default `guest` on a Xen host, and `shared` on the mock, where no grant call sleeps. */
  readonly placement?: Placement
  readonly tunables: Tunables
  /** For thread names and messages. */
  readonly name: string
}

/**
 * Starts the reactors of the native engine.
 *
 * @throws ERR_VBD_UNSUPPORTED without an addon, ERR_VBD_ARGUMENT for options out of range
 */
export function createNativeEngine(options: NativeEngineOptions): Engine {
  const { xen, reactors, tunables, name } = options
  const placement = options.placement ?? (xen.kind === 'host' ? 'guest' : 'shared')
  const native = guard({}, () =>
    loadAddon().createEngine({ xen: xen.native, reactors, placement, tunables, name }),
  )
  const engine = new NativeEngineAdapter(native)
  if (placement === 'shared') xen.onSlowGuest?.((domid) => engine.serveApart(domid))
  return engine
}

/** What the JavaScript engine has C++ do: stages that only C++ has, and the clients of native disks. */
export interface NativeStages {
  readonly engine: NativeEngine
  /** Opens what does not run in this thread. @throws as `Engine.openDisk` */
  open(spec: DiskSpec): Promise<OpenNativeDisk>
  /** The same disk with what the partition tables in it say, and the layers of its overlays. */
  resolve(spec: DiskSpec): Promise<DiskSpec>
  changeOverlay(act: OverlayAct, spec: OverlaySpec): Promise<string>
  close(): Promise<void>
}

/** Native disks without anybody to serve: no thread but those of the disks. */
export function createNativeStages(
  options: Pick<NativeEngineOptions, 'xen' | 'tunables'>,
): NativeStages {
  const { xen, tunables } = options
  const create = {
    xen: xen.native,
    reactors: 1,
    placement: 'guest',
    tunables,
    name: 'stages',
  } as const
  return new NativeEngineAdapter(guard({}, () => loadAddon().createEngine(create)))
}

/** Engine disks made here, to find the addon's handle again without widening the contract. */
const nativeDisks = new WeakMap<EngineDisk, NativeDisk>()

function handleOf(disk: EngineDisk, vbd: string): NativeDisk {
  const handle = nativeDisks.get(disk)
  if (handle !== undefined) return handle
  throw new VbdError('ERR_VBD_INTERNAL', 'the disk belongs to another engine', { vbd })
}

/** An open disk of the native engine, with the addon's handle. */
export type OpenNativeDisk = EngineDisk & { readonly native: NativeDisk }

class NativeEngineAdapter implements Engine, NativeStages {
  readonly kind = 'native'
  readonly engine: NativeEngine
  /** Shared reactors: guests whose grant calls have slept, each served on threads of its own from then on. */
  readonly #apart = new Set<number>()
  readonly #vbds = new Set<NativeVbdAdapter>()
  #closed: Promise<void> | undefined

  constructor(native: NativeEngine) {
    this.engine = native
  }

  /** A sleeping grant call holds up all that share its thread: this guest's vbds move to one that is only theirs. */
  serveApart(domid: number): void {
    if (this.#apart.has(domid)) return
    this.#apart.add(domid)
    for (const vbd of this.#vbds) vbd.moveApart(domid)
  }

  async openDisk(spec: DiskSpec): Promise<EngineDisk> {
    const disk = await this.open(await this.resolve(spec))
    nativeDisks.set(disk, disk.native)
    return disk
  }

  async resolve(spec: DiskSpec): Promise<DiskSpec> {
    const layersOf = (scratch: string) =>
      guard({ path: scratch }, () => loadAddon().overlayLayers(scratch))
    return resolvePartitions(withLayers(spec, layersOf), (below, use) => this.#read(below, use))
  }

  async changeOverlay(act: OverlayAct, spec: OverlaySpec): Promise<string> {
    const context = { path: spec.scratch! }
    // The disk below is needed for a commit alone.
    const whole = act === 'commit' ? { ...spec, base: await this.resolve(spec.base) } : spec
    return guardAsync(context, () =>
      withKeys(whole, (keyed) => loadAddon().changeOverlay(act, keyed)),
    )
  }

  async open(spec: DiskSpec): Promise<OpenNativeDisk> {
    const path = pathOf(spec)
    const context = path === undefined ? {} : { path }
    if (planOf(spec).runsIn === 'native') {
      const native = await guardAsync(context, () =>
        withKeys(spec, (keyed) => this.engine.openDisk(keyed)),
      )
      return new NativeDiskAdapter(native, spec, context)
    }
    const world = { engine: this.engine, open: (below: DiskSpec) => this.open(below) }
    return guardAsync(context, () => ScriptEngineDisk.open(spec, loadAddon(), world))
  }

  async #read<T>(spec: DiskSpec, use: (disk: ReadableDisk) => Promise<T>): Promise<T> {
    const disk = await this.open(spec)
    try {
      const { sizeBytes, sectorSize } = disk.info
      const read = (at: number, bytes: number) => guardAsync({}, () => disk.native.read(at, bytes))
      return await use({ sizeBytes, sectorSize, read })
    } finally {
      await disk.close()
    }
  }

  createVbd(options: Parameters<Engine['createVbd']>[0]): EngineVbd {
    const { name, disk, features, tunables, onEvent } = options
    const handle = handleOf(disk, name)
    const vbd = new NativeVbdAdapter({
      name,
      create: (listener) =>
        guard({ vbd: name }, () =>
          this.engine.createVbd(name, handle, features, tunables, listener),
        ),
      isApart: (domid) => this.#apart.has(domid),
      onEvent,
      onClosed: () => this.#vbds.delete(vbd),
    })
    this.#vbds.add(vbd)
    return vbd
  }

  tune(tunables: Partial<Tunables>): void {
    guard({}, () => this.engine.tune(tunables))
  }

  heartbeats(): readonly Heartbeat[] {
    return guard({}, () => this.engine.heartbeats())
  }

  /** What the engine holds, for leak checks. */
  resources(): ReturnType<NativeEngine['resources']> {
    return this.engine.resources()
  }

  close(): Promise<void> {
    this.#closed ??= guardAsync({}, () => this.engine.close())
    return this.#closed
  }
}

interface NativeVbdOptions {
  readonly name: string
  create(onEvent: (event: EngineEvent) => void): NativeVbd
  isApart(domid: number): boolean
  onEvent(event: EngineEvent): void
  onClosed(): void
}

class NativeVbdAdapter implements EngineVbd {
  readonly #native: NativeVbd
  readonly #o: NativeVbdOptions
  readonly #context: VbdErrorOptions
  /** Connecting and disconnecting happen one after the other, whoever asked. */
  #turn: Promise<unknown> = Promise.resolve()
  #connection: Connection | undefined
  /** The ring is corrupt: it cannot be taken up again where it is. */
  #corrupt = false
  /** A flush failed, on this disk: there may be some that are never answered. */
  #flushFailed = false
  #last: VbdCounters | undefined
  #closed: Promise<void> | undefined

  constructor(options: NativeVbdOptions) {
    this.#o = options
    this.#context = { vbd: options.name }
    this.#native = options.create((event) => {
      if (event.type === 'flush-failed') this.#flushFailed = true
      else this.#corrupt = true
      options.onEvent(event)
    })
  }

  connect(connection: Connection): Promise<{ transfer: Transfer }> {
    return this.#inTurn(async () => {
      const apart = connection.apart === true || this.#o.isApart(connection.domid)
      return await this.#connect({ ...connection, apart })
    })
  }

  disconnect(): Promise<boolean> {
    return this.#inTurn(() => this.#disconnect())
  }

  /** Every request that was taken is answered first, and the ring taken up again after the last answer. */
  moveApart(domid: number): void {
    void this.#inTurn(async () => {
      const connection = this.#connection
      if (connection?.domid !== domid || connection.apart) return
      if (this.#corrupt || this.#flushFailed) return
      if (!(await this.#disconnect())) throw new VbdError('ERR_VBD_STATE', 'not all was answered')
      await this.#connect({ ...connection, apart: true })
    }).catch((thrown: VbdError) => {
      const message = `the rings could not be moved to a thread of their own: ${thrown.message}`
      this.#o.onEvent({ type: 'ring-corrupt', queue: 0, message })
    })
  }

  tune(tunables: Partial<Tunables>): void {
    guard(this.#context, () => this.#native.tune(tunables))
  }

  /** After close: the last counters, because readers of statistics outlive the vbd. */
  counters(): VbdCounters {
    return this.#last ?? guard(this.#context, () => this.#native.counters())
  }

  useDisk(disk: EngineDisk): void {
    guard(this.#context, () => this.#native.useDisk(handleOf(disk, this.#o.name)))
    this.#flushFailed = false
  }

  trace(on: boolean): void {
    if (this.#last === undefined) this.#native.trace(on)
  }

  takeTrace(): TraceBatch {
    if (this.#last !== undefined) return { records: new Float64Array(0), dropped: 0 }
    return guard(this.#context, () => this.#native.takeTrace())
  }

  close(): Promise<void> {
    this.#closed ??= this.#inTurn(async () => {
      this.#o.onClosed()
      await this.#disconnect()
      this.#last = this.#native.counters()
      await this.#native.close()
    })
    return this.#closed
  }

  #inTurn<T>(act: () => Promise<T>): Promise<T> {
    const done = this.#turn.then(() => guardAsync(this.#context, act))
    this.#turn = done.catch(() => {})
    return done
  }

  async #connect(connection: Connection): Promise<{ transfer: Transfer }> {
    this.#corrupt = false
    const connected = await this.#native.connect(connection)
    const { takeOver: _once, ...ours } = connection
    this.#connection = ours
    return connected
  }

  async #disconnect(): Promise<boolean> {
    this.#connection = undefined
    return await this.#native.disconnect()
  }
}
