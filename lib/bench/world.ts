/**
 * World: what vbdkit is measured in: a mock Xen in this process, one process for each backend, one for all guests, each
 * on its own processor. Owns all of it.
 *
 *   guests, on one processor ──rings, grants, events──► backend with one reactor, on the other
 *        └──────────── mock Xen and xenstore, in this process, idle while anything is measured ─────┘
 */

import type { TransferChoice } from '../engine/engine.js'
import { loadAddon } from '../engine/load_addon.js'
import { VbdError } from '../errors.js'
import { MockHost } from '../mock/mock_host.js'
import type { EngineChoice } from '../platform.js'
import type { LoadDiskOptions, Workload } from '../testing/load.js'
import type { BackendHandlers, MeasuredDisk } from './backend_process.js'
import { Child } from './child.js'
import type { GuestHandlers } from './guest_process.js'
import type { Processors } from './machine.js'
import type { Contender, Sample } from './sample.js'

/** `js` does its I/O through node:fs, `js-uring` through io_uring. */
export type MeasuredEngine = EngineChoice | 'js-uring'

export interface RingsOptions {
  readonly engine?: MeasuredEngine
  readonly disk: MeasuredDisk
  readonly transfer?: TransferChoice
  /** How many guests, each with the same disk. 1 by default. */
  readonly guests?: number
  readonly load?: Omit<LoadDiskOptions, 'signal'>
}

/**
 * Who sleeps. `polling`: the guest spins, the backend polls for at most 50 µs after its last work, as by default.
 * `adaptive`: the guest sleeps whenever it has nothing to do, the backend is as by default. `sleeping`: both sleep.
 * `yielding`: the guest spins, the backend sleeps, for what shares a processor with it.
 */
export type LoadMode = 'polling' | 'adaptive' | 'sleeping' | 'yielding'

/** What to do on the rings. */
export interface RingsLoad {
  readonly series: string
  readonly write?: boolean
  readonly sequential?: boolean
  /** Requests in flight on each ring; as many as it holds by default. */
  readonly depth?: number
  readonly mode: LoadMode
}

const VDEV = 'xvda'
const POLL_US = 50
const GUEST_BYTES = 2 * 1024 * 1024
const PAGE_BYTES = 4096

type Backend = Child<BackendHandlers>

/** See the header. Made by `start`, ended by `close`. */
export class World {
  readonly mock: MockHost
  readonly cpus: Processors
  readonly guests: Child<GuestHandlers>
  readonly #backends = new Map<MeasuredEngine, Promise<Backend>>()
  readonly #pollUs = new Map<Backend, number>()
  #lastDomid = 0

  static async start(cpus: Processors): Promise<World> {
    const addon = loadAddon()
    const mock = await MockHost.start({ broker: addon.startMockBroker.bind(addon) })
    return new World(mock, cpus)
  }

  private constructor(mock: MockHost, cpus: Processors) {
    this.mock = mock
    this.cpus = cpus
    this.guests = new Child('guests', './guest_process.js', cpus.guest)
  }

  /**
   * The backend with this engine; started when first asked for.
   *
   * @throws ERR_VBD_UNSUPPORTED where this build has no such engine
   */
  backend(engine: MeasuredEngine): Promise<Backend> {
    let backend = this.#backends.get(engine)
    if (backend === undefined) {
      backend = this.#open(engine)
      this.#backends.set(engine, backend)
      backend.catch(() => {})
    }
    return backend
  }

  async #open(engine: MeasuredEngine): Promise<Backend> {
    const child: Backend = new Child(`${engine} backend`, './backend_process.js', this.cpus.backend)
    try {
      await child.call('open', {
        dir: this.mock.dir,
        engine: engine === 'native' ? 'native' : 'js',
        ...(engine === 'js-uring' && { jsIo: 'uring' }),
        tunables: { pollUs: POLL_US },
      })
      this.#pollUs.set(child, POLL_US)
      return child
    } catch (thrown) {
      await child.stop()
      throw thrown
    }
  }

  /** Makes guests, serves each of them the disk and connects them. */
  async connect(options: RingsOptions): Promise<Rings> {
    const backend = await this.backend(options.engine ?? 'native')
    const rings = new Rings(this, backend)
    try {
      const attached = Array.from({ length: options.guests ?? 1 }, () =>
        this.#attach(rings, backend, options),
      )
      // All of them end before a failure is told: nothing is attached behind the caller's back.
      await Promise.allSettled(attached)
      await Promise.all(attached)
    } catch (thrown) {
      await rings.close()
      throw thrown
    }
    return rings
  }

  async #attach(rings: Rings, backend: Backend, options: RingsOptions): Promise<void> {
    const { disk, transfer = 'auto', load = {} } = options
    const domid = this.takeDomid()
    const id = `${domid}:${VDEV}`
    await backend.call('serve', {
      id,
      disk,
      options: { transfer, queues: 1, indirectSegments: 4096 },
    })
    rings.add(domid, id)
    const entries = 32 * 2 ** (load.ringOrder ?? 0)
    const pages = (load.depth ?? entries) * ((load.segments ?? 1) + 1)
    await this.guests.call('open', {
      dir: this.mock.dir,
      domid,
      vdev: VDEV,
      memoryBytes: GUEST_BYTES + pages * PAGE_BYTES,
      options: { ...load },
    })
  }

  /** Looks at data through a ring, untimed. Resolves to the number of blocks. */
  async verify(options: {
    engine?: MeasuredEngine
    disk: MeasuredDisk
    transfer: TransferChoice
    blocks: number
    filled: boolean
    writable: boolean
  }): Promise<number> {
    const { engine = 'native', disk, transfer, ...what } = options
    const backend = await this.backend(engine)
    const domid = this.takeDomid()
    const id = `${domid}:${VDEV}`
    await backend.call('serve', { id, disk, options: { transfer, queues: 1 } })
    try {
      return await this.guests.call('verify', { dir: this.mock.dir, domid, vdev: VDEV, ...what })
    } finally {
      await backend.call('unserve', id)
    }
  }

  /** A domain number that no guest has had. */
  takeDomid(): number {
    return ++this.#lastDomid
  }

  /** Lets the backend's reactors poll for so long after their last work. */
  async poll(backend: Backend, pollUs: number): Promise<void> {
    if (this.#pollUs.get(backend) === pollUs) return
    await backend.call('tune', { pollUs })
    this.#pollUs.set(backend, pollUs)
  }

  /** Idempotent, never rejects. */
  async close(): Promise<void> {
    await this.guests.stop()
    for (const opening of this.#backends.values()) {
      await opening.then(
        (backend) => backend.stop(),
        () => {},
      )
    }
    await this.mock.close()
  }
}

/** Connected disks of some guests, driven together. */
export class Rings {
  readonly backend: Backend
  readonly #world: World
  readonly #domids: number[] = []
  readonly #ids: string[] = []

  constructor(world: World, backend: Backend) {
    this.#world = world
    this.backend = backend
  }

  add(domid: number, id: string): void {
    this.#domids.push(domid)
    this.#ids.push(id)
  }

  /** These rings under this load. */
  contender(load: RingsLoad): Contender {
    return {
      series: load.series,
      measure: (milliseconds) => this.measure(load, milliseconds),
    }
  }

  /** @throws ERR_VBD_IO when a request failed: such a sample is none */
  async measure(load: RingsLoad, milliseconds: number): Promise<Sample> {
    const { cpus, guests } = this.#world
    const { mode } = load
    await this.#world.poll(this.backend, mode === 'polling' || mode === 'adaptive' ? POLL_US : 0)
    const workload: Workload = {
      operation: load.write ? 'write' : 'read',
      pattern: load.sequential ? 'sequential' : 'random',
      durationMs: Math.max(1, Math.round(milliseconds)),
      poll: mode === 'polling' || mode === 'yielding',
      cpu: cpus.guest,
      seed: Math.floor(Math.random() * 2 ** 31),
      ...(load.depth !== undefined && { depth: load.depth }),
    }
    const cpuBefore = this.backend.cpuNs()
    const sample = await guests.call('run', { domids: this.#domids, workload })
    const cpuNs = this.backend.cpuNs() - cpuBefore
    if (sample.errors > 0) {
      throw new VbdError('ERR_VBD_IO', `${sample.errors} requests failed`, { vbd: this.#ids[0]! })
    }
    return { ...sample, cpuNs }
  }

  /**
   * Writes every disk from its start to its end, so that there is something to read. Each run begins at the start: it
   * takes one that is long enough for the slowest.
   */
  async fill(sizeBytes: number, bytesEach: number): Promise<void> {
    const load: RingsLoad = { series: 'fill', write: true, sequential: true, mode: 'polling' }
    for (let milliseconds = 50; ; ) {
      const { shares = [] } = await this.measure(load, milliseconds)
      const filled = (Math.min(...shares) * bytesEach) / sizeBytes
      if (filled >= 1) return
      milliseconds *= Math.min(100, 1.3 / filled)
    }
  }

  async close(): Promise<void> {
    await Promise.all(this.#domids.map((domid) => this.#world.guests.call('close', domid)))
    await Promise.all(this.#ids.map((id) => this.backend.call('unserve', id)))
  }
}
