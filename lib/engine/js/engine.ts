/**
 * The JavaScript engine: the Engine contract in TypeScript, on a few thin native primitives (primitives.ts). It
 * serves the same guests by the same rules as the native engine, on the thread that everything else in the process
 * shares: the other half of a comparison, the oracle for the other engine's answers, and the protocol to read.
 *
 *   guest's slot ─► back_ring ─► request ─► transfer ─► null_disk | memory_disk | file_disk ─► transfer ─► back_ring
 *                   └──────────────── queue, one per ring; loop runs them all ──────────────────────────┘
 */
import { planOf } from '../../disk/plan.js'
import type { OverlaySpec } from '../../disk/spec.js'
import { VbdError } from '../../errors.js'
import type {
  DiskSpec,
  Engine,
  EngineDisk,
  EngineVbd,
  Heartbeat,
  OverlayAct,
  Tunables,
} from '../engine.js'
import { loadAddon } from '../load_addon.js'
import { createNativeStages, type NativeStages, type NativeXenConnection } from '../native.js'
import { translate } from '../native_errors.js'
import type { NativePrimitives } from '../primitives.js'
import { openScriptStage } from '../script/chain.js'
import { DiskClient } from '../script/client.js'
import type { ErrorListener } from '../script/host.js'
import { FileDisk, type JsIo } from './file_disk.js'
import { Tags } from './in_flight.js'
import { IoBatch } from './io_batch.js'
import type { JsDisk } from './js_disk.js'
import { Loop } from './loop.js'
import { MemoryDisk } from './memory_disk.js'
import { NullDisk } from './null_disk.js'
import { PagePool } from './page_pool.js'
import { NativeStagesDisk, ScriptDisk } from './script_disk.js'
import type { Services } from './services.js'
import { SCRATCH_PAGES } from './transfer.js'
import { JsVbd } from './vbd.js'
import { VbdShared } from './vbd_shared.js'

/** 1 GiB of address space; the budgets of bytes in flight bound the memory. */
const ARENA_PAGES = 1 << 18

export type { JsIo }

export interface JsEngineOptions {
  readonly xen: NativeXenConnection
  readonly tunables: Tunables
  /** How files are read and written whose description leaves it open: node:fs, or io_uring, one call a pass. */
  readonly io: JsIo
}

/**
 * Starts the JavaScript engine.
 *
 * @throws ERR_VBD_UNSUPPORTED without an addon
 */
export function createJsEngine(options: JsEngineOptions): JsEngine {
  return new JsEngine(options)
}

/** The engine, with what its contract does not tell. */
export class JsEngine implements Engine {
  readonly kind = 'js'
  readonly #o: JsEngineOptions
  readonly #io: JsIo
  /** Made for the first disk that needs it. */
  #stages: NativeStages | undefined
  readonly #primitives: NativePrimitives
  readonly #services: Services
  readonly #loop: Loop
  readonly #disks = new Set<JsDisk>()
  readonly #vbds = new Set<JsVbd>()
  #closed: Promise<void> | undefined

  constructor(options: JsEngineOptions) {
    const { xen, tunables, io } = options
    this.#o = options
    this.#io = io
    try {
      this.#primitives = loadAddon().openPrimitives(xen.native, ARENA_PAGES, (channels) =>
        this.#loop.onReady(channels),
      )
    } catch (thrown) {
      throw translate(thrown, {})
    }
    const tags = new Tags()
    this.#services = {
      primitives: this.#primitives,
      pool: new PagePool(this.#primitives, SCRATCH_PAGES, tunables.maxBufferPages),
      tags,
      io: new IoBatch(this.#primitives, tags),
      wakeUp: () => this.#loop.wakeUp(),
    }
    this.#loop = new Loop(this.#services, tunables)
  }

  async openDisk(spec: DiskSpec): Promise<EngineDisk> {
    if (this.#closed !== undefined) throw closed('the engine')
    const disk = await this.#makeDisk(spec)
    this.#disks.add(disk)
    if (this.#closed !== undefined) {
      await disk.close()
      throw closed('the engine')
    }
    return disk
  }

  changeOverlay(act: OverlayAct, spec: OverlaySpec): Promise<string> {
    this.#stages ??= createNativeStages(this.#o)
    return this.#stages.changeOverlay(act, spec)
  }

  createVbd(options: Parameters<Engine['createVbd']>[0]): EngineVbd {
    const { name, disk, features, tunables, onEvent } = options
    const ours = this.#ours(disk, name)
    this.tune(tunables)
    const shared = new VbdShared(name, ours, features, tunables, onEvent)
    const vbd = new JsVbd(shared, this.#services, this.#loop, {
      tune: (changed) => this.tune(changed),
      ours: (other, asker) => this.#ours(other, asker),
      forget: (gone) => void this.#vbds.delete(gone),
    })
    this.#vbds.add(vbd)
    return vbd
  }

  /** What vbds share: the poll window, and how many pages the pool keeps. */
  tune(tunables: Partial<Tunables>): void {
    this.#loop.tune(tunables)
    if (tunables.maxBufferPages !== undefined) {
      this.#services.pool.maxFree = tunables.maxBufferPages
    }
  }

  /** None: the JavaScript thread moves the data. */
  heartbeats(): readonly Heartbeat[] {
    return []
  }

  /** What the engine holds, for leak checks; `reactors` is the one thread that waits for events. */
  resources(): { reactors: number; vbds: number; disks: number } {
    const reactors = this.#closed === undefined ? 1 : 0
    return { reactors, vbds: this.#vbds.size, disks: this.#disks.size }
  }

  close(): Promise<void> {
    this.#closed ??= this.#close()
    return this.#closed
  }

  #ours(disk: EngineDisk, vbd: string): JsDisk {
    const ours = disk as JsDisk
    if (this.#disks.has(ours)) return ours
    throw new VbdError('ERR_VBD_INTERNAL', 'the disk belongs to another engine', { vbd })
  }

  async #close(): Promise<void> {
    await Promise.all([...this.#vbds].map((vbd) => vbd.close()))
    await Promise.all([...this.#disks].map((disk) => disk.close()))
    await this.#stages?.close()
    this.#primitives.close()
  }

  async #makeDisk(spec: DiskSpec): Promise<JsDisk> {
    const forget = (disk: JsDisk) => void this.#disks.delete(disk)
    switch (spec.driver) {
      case 'null':
        return new NullDisk(spec, forget)
      case 'memory':
        return new MemoryDisk(spec.sizeBytes, spec.sectorSize ?? 512, forget)
      case 'file':
        return FileDisk.open(spec, this.#io, this.#services, forget)
      default:
        return await this.#openStages(spec, forget)
    }
  }

  /** A disk of several stages, or of one that is a script or that only C++ has. */
  async #openStages(spec: DiskSpec, forget: (disk: JsDisk) => void): Promise<JsDisk> {
    this.#stages ??= createNativeStages(this.#o)
    const { engine } = this.#stages
    const open = (below: DiskSpec) => this.#stages!.open(below)
    const plain = await this.#stages.resolve(spec)
    const plan = planOf(plain)
    if (plan.runsIn === 'script') {
      const listeners = new Set<ErrorListener>()
      const onError: ErrorListener = (error, vbd) => {
        for (const listener of listeners) listener(error, vbd)
      }
      const opened = await openScriptStage(plain, { engine, open, onError })
      return new ScriptDisk(plain, opened, listeners, forget)
    }
    const below = await open(plain)
    try {
      const client = new DiskClient(plan.name, below, below.native, engine)
      return new NativeStagesDisk(below, client, forget)
    } catch (thrown) {
      await below.close()
      throw thrown
    }
  }
}

function closed(what: string): VbdError {
  return new VbdError('ERR_VBD_STATE', `${what} is closed`)
}
