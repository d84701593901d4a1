/**
 * The native engine: the C++ addon behind the Engine contract. The only module that loads the addon; lib/mock takes the
 * raw exports from `loadAddon`. Runs on the JavaScript thread; the addon's reactors run on their own and come back only
 * through promises and `onEvent`. Whoever calls `createNativeEngine` owns the engine and closes it before the
 * XenConnection that it was given.
 */
import { existsSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { getSystemErrorName } from 'node:util'
import { planOf } from '../disk/plan.js'
import { pathOf } from '../disk/spec.js'
import { VbdError, type VbdErrorCode, type VbdErrorOptions } from '../errors.js'
import type { Addon, NativeDisk, NativeEngine, NativeError, NativeVbd, NativeXen } from './addon.js'
import type {
  Connection,
  DiskInfo,
  DiskSpec,
  Engine,
  EngineDisk,
  EngineEvent,
  EngineVbd,
  Heartbeat,
  Placement,
  TraceBatch,
  Transfer,
  Tunables,
  VbdCounters,
  XenConnection,
} from './engine.js'
import { ScriptEngineDisk } from './script/script_disk.js'

let loaded: Addon | undefined

/**
 * The addon, loaded once: from `build/Release` of a checkout, else from the package's prebuilt binaries.
 *
 * @throws ERR_VBD_UNSUPPORTED when there is none for this machine
 */
export function loadAddon(): Addon {
  if (loaded !== undefined) return loaded
  const root = packageRoot()
  const require = createRequire(import.meta.url)
  try {
    const nodeGypBuild = require('node-gyp-build') as (directory: string) => unknown
    loaded = nodeGypBuild(root) as Addon
  } catch (cause) {
    throw new VbdError('ERR_VBD_UNSUPPORTED', 'the native addon cannot be loaded', {
      path: root,
      remedy: 'build it with `npm run build`, or install the package on linux x64 or arm64',
      cause,
    })
  }
  return loaded
}

/** The nearest folder upwards with our package.json: this file runs from lib/ and from dist/lib/. */
function packageRoot(): string {
  const start = dirname(fileURLToPath(import.meta.url))
  for (let directory = start; ; directory = dirname(directory)) {
    const manifest = join(directory, 'package.json')
    if (existsSync(manifest)) {
      const { name } = JSON.parse(readFileSync(manifest, 'utf8')) as { name?: unknown }
      if (name === 'vbdkit') return directory
    }
    if (directory === dirname(directory)) {
      throw new VbdError('ERR_VBD_INTERNAL', 'the package.json of vbdkit is missing', {
        path: start,
      })
    }
  }
}

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

/** Engine disks made here, to find the addon's handle again without widening the contract. */
const nativeDisks = new WeakMap<EngineDisk, NativeDisk>()

function handleOf(disk: EngineDisk, vbd: string): NativeDisk {
  const handle = nativeDisks.get(disk)
  if (handle !== undefined) return handle
  throw new VbdError('ERR_VBD_INTERNAL', 'the disk belongs to another engine', { vbd })
}

class NativeEngineAdapter implements Engine {
  readonly kind = 'native'
  readonly #native: NativeEngine
  /** Shared reactors: guests whose grant calls have slept, each served on threads of its own from then on. */
  readonly #apart = new Set<number>()
  readonly #vbds = new Set<NativeVbdAdapter>()
  #closed: Promise<void> | undefined

  constructor(native: NativeEngine) {
    this.#native = native
  }

  /** A sleeping grant call holds up all that share its thread: this guest's vbds move to one that is only theirs. */
  serveApart(domid: number): void {
    if (this.#apart.has(domid)) return
    this.#apart.add(domid)
    for (const vbd of this.#vbds) vbd.moveApart(domid)
  }

  async openDisk(spec: DiskSpec): Promise<EngineDisk> {
    const disk = await this.#open(spec)
    nativeDisks.set(disk, disk.native)
    return disk
  }

  async #open(spec: DiskSpec): Promise<EngineDisk & { readonly native: NativeDisk }> {
    const path = pathOf(spec)
    const context = path === undefined ? {} : { path }
    if (planOf(spec).runsIn === 'native') {
      const native = guard(context, () => this.#native.openDisk(spec))
      return new NativeDiskAdapter(native, context)
    }
    const world = { engine: this.#native, open: (below: DiskSpec) => this.#open(below) }
    return guardAsync(context, () => ScriptEngineDisk.open(spec, loadAddon(), world))
  }

  createVbd(options: Parameters<Engine['createVbd']>[0]): EngineVbd {
    const { name, disk, features, tunables, onEvent } = options
    const handle = handleOf(disk, name)
    const vbd = new NativeVbdAdapter({
      name,
      create: (listener) =>
        guard({ vbd: name }, () =>
          this.#native.createVbd(name, handle, features, tunables, listener),
        ),
      isApart: (domid) => this.#apart.has(domid),
      onEvent,
      onClosed: () => this.#vbds.delete(vbd),
    })
    this.#vbds.add(vbd)
    return vbd
  }

  tune(tunables: Partial<Tunables>): void {
    guard({}, () => this.#native.tune(tunables))
  }

  heartbeats(): readonly Heartbeat[] {
    return guard({}, () => this.#native.heartbeats())
  }

  /** What the engine holds, for leak checks. */
  resources(): ReturnType<NativeEngine['resources']> {
    return this.#native.resources()
  }

  close(): Promise<void> {
    this.#closed ??= guardAsync({}, () => this.#native.close())
    return this.#closed
  }
}

class NativeDiskAdapter implements EngineDisk {
  readonly native: NativeDisk
  readonly #context: VbdErrorOptions
  #info: DiskInfo
  #open = true

  constructor(native: NativeDisk, context: VbdErrorOptions) {
    this.native = native
    this.#context = context
    this.#info = native.info()
  }

  get info(): DiskInfo {
    return this.#info
  }

  async resize(sizeBytes: number): Promise<DiskInfo> {
    this.#info = guard(this.#context, () => this.native.resize(sizeBytes))
    return this.#info
  }

  async close(): Promise<void> {
    if (!this.#open) return
    this.#open = false
    guard(this.#context, () => this.native.close())
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
  /** The ring is corrupt, or holds flushes that are never answered: it cannot be taken up again where it is. */
  #stuck = false
  #last: VbdCounters | undefined
  #closed: Promise<void> | undefined

  constructor(options: NativeVbdOptions) {
    this.#o = options
    this.#context = { vbd: options.name }
    this.#native = options.create((event) => {
      this.#stuck = true
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
      if (connection?.domid !== domid || connection.apart || this.#stuck) return
      await this.#disconnect()
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
    this.#stuck = false
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

const CODES: Readonly<Record<string, VbdErrorCode>> = {
  xen: 'ERR_VBD_GRANT',
  ring: 'ERR_VBD_PROTOCOL',
  backing: 'ERR_VBD_BACKING',
  'invalid-argument': 'ERR_VBD_ARGUMENT',
  unsupported: 'ERR_VBD_UNSUPPORTED',
  'no-memory': 'ERR_VBD_UNSUPPORTED',
}

const REMEDIES: Readonly<Record<string, string>> = {
  ENOENT: 'check the path',
  EACCES: 'run as a user who may open it, or serve it read-only',
  EPERM: 'run as a user who may open it, or serve it read-only',
  EROFS: 'serve it read-only',
  EISDIR: 'name an image file or a block device',
  EBUSY: 'stop what else is using it',
  ENOSPC: 'free space in the file system that holds it',
  ENOMEM: 'free memory, or raise the limit on locked memory (ulimit -l)',
}

/** Runs a call of the addon; what it throws leaves as a VbdError. */
function guard<T>(context: VbdErrorOptions, call: () => T): T {
  try {
    return call()
  } catch (thrown) {
    throw translate(thrown, context)
  }
}

async function guardAsync<T>(context: VbdErrorOptions, call: () => Promise<T>): Promise<T> {
  try {
    return await call()
  } catch (thrown) {
    throw translate(thrown, context)
  }
}

/** The VbdError that an error of the addon stands for. */
export function translate(thrown: unknown, context: VbdErrorOptions): VbdError {
  if (thrown instanceof VbdError) return thrown
  const { kind, errno } = (thrown ?? {}) as Partial<NativeError>
  const code = CODES[String(kind)] ?? 'ERR_VBD_INTERNAL'
  const options: VbdErrorOptions = { ...context, cause: thrown }
  const remedy = errno ? REMEDIES[getSystemErrorName(-Math.abs(errno))] : undefined
  if (remedy !== undefined) options.remedy = remedy
  return new VbdError(code, text(thrown), options)
}

function text(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown)
}
