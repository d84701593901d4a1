/**
 * FakeEngine: an engine that moves nothing and remembers everything: which disks are open, which vbds hold which
 * rings. It fails on demand, and complains about a caller that breaks the contract of lib/engine/engine.ts.
 */
import type {
  Connection,
  DiskInfo,
  DiskSpec,
  Engine,
  EngineDisk,
  EngineEvent,
  EngineVbd,
  StageState,
  TraceBatch,
  Transfer,
  Tunables,
  VbdCounters,
  VbdFeatures,
} from '../../lib/engine/engine.js'
import { VbdError } from '../../lib/errors.js'
import { EMPTY_COUNTERS } from '../../lib/vbd/stats.js'

type VbdOptions = Parameters<Engine['createVbd']>[0]

/** The information of a plain disk. */
export function diskInfo(changes: Partial<DiskInfo> = {}): DiskInfo {
  return {
    sizeBytes: 1 << 20,
    sectorSize: 512,
    physicalSectorSize: 4096,
    readOnly: false,
    canFlush: true,
    canDiscard: true,
    canSecureDiscard: false,
    discardGranularity: 4096,
    discardAlignment: 0,
    description: 'fake',
    ...changes,
  }
}

export class FakeEngine implements Engine {
  readonly kind = 'native'
  readonly disks = new Set<FakeDisk>()
  readonly vbds = new Set<FakeVbd>()
  readonly violations: string[] = []
  /** The next connects fail with these. */
  readonly connectFailures: VbdError[] = []
  /** So many of the next disconnects fail. */
  disconnectFailures = 0
  openFailure: VbdError | undefined
  tuned: Partial<Tunables> = {}
  closed = false

  get mapped(): number {
    return [...this.vbds].filter((vbd) => vbd.connection !== undefined).length
  }

  heartbeats(): [] {
    return []
  }

  async openDisk(spec: DiskSpec): Promise<EngineDisk> {
    await turns(1)
    if (this.openFailure !== undefined) throw this.openFailure
    const sizeBytes = 'sizeBytes' in spec ? spec.sizeBytes : 1 << 20
    const readOnly = spec.driver === 'file' && spec.readOnly === true
    const disk = new FakeDisk(this, diskInfo({ sizeBytes, readOnly }))
    this.disks.add(disk)
    return disk
  }

  createVbd(options: VbdOptions): EngineVbd {
    if (!this.disks.has(options.disk as FakeDisk)) this.violations.push('a vbd on a closed disk')
    const vbd = new FakeVbd(this, options)
    this.vbds.add(vbd)
    return vbd
  }

  tune(tunables: Partial<Tunables>): void {
    this.tuned = { ...this.tuned, ...tunables }
  }

  async close(): Promise<void> {
    this.closed = true
    if (this.vbds.size > 0) this.violations.push('closed with vbds')
    if (this.disks.size > 0) this.violations.push('closed with open disks')
  }
}

export class FakeDisk implements EngineDisk {
  readonly #engine: FakeEngine
  info: DiskInfo
  tuned: Record<string, number> = {}

  constructor(engine: FakeEngine, info: DiskInfo) {
    this.#engine = engine
    this.info = info
  }

  stages(): readonly StageState[] {
    return [{ kind: 'throttle', values: { iops: 0, ...this.tuned } }]
  }

  tuneStage(_stage: number, setting: string, value: number): void {
    this.tuned = { ...this.tuned, [setting]: value }
  }

  async resize(sizeBytes: number): Promise<DiskInfo> {
    await turns(1)
    this.info = { ...this.info, sizeBytes }
    return this.info
  }

  async close(): Promise<void> {
    for (const vbd of this.#engine.vbds) {
      if (vbd.options.disk === this) this.#engine.violations.push('a disk closed under its vbd')
    }
    if (!this.#engine.disks.delete(this)) this.#engine.violations.push('a disk closed twice')
  }
}

export class FakeVbd implements EngineVbd {
  readonly #engine: FakeEngine
  options: VbdOptions
  tracing = false
  /** What the next `takeTrace` gives out. */
  readonly traced: number[][] = []
  connection: Connection | undefined
  tunables: Partial<Tunables>
  connects = 0
  /** What the next disconnects say. */
  drained = true
  #busy = false
  #closed = false

  constructor(engine: FakeEngine, options: VbdOptions) {
    this.#engine = engine
    this.options = options
    this.tunables = options.tunables
  }

  get features(): VbdFeatures {
    return this.options.features
  }

  emit(event: EngineEvent): void {
    this.options.onEvent(event)
  }

  async connect(connection: Connection): Promise<{ transfer: Transfer }> {
    this.#enter('connect')
    if (this.connection !== undefined) this.#engine.violations.push('connected twice')
    await turns(2)
    this.#busy = false
    const failure = this.#engine.connectFailures.shift()
    if (failure !== undefined) throw failure
    if (this.#closed) this.#engine.violations.push('connected after close')
    this.connection = connection
    this.connects++
    return { transfer: connection.persistent ? 'persistent' : 'copy' }
  }

  async disconnect(): Promise<boolean> {
    this.#enter('disconnect')
    await turns(2)
    this.#busy = false
    if (this.#engine.disconnectFailures > 0) {
      this.#engine.disconnectFailures--
      throw new VbdError('ERR_VBD_GRANT', 'unmap failed')
    }
    this.connection = undefined
    return this.drained
  }

  tune(tunables: Partial<Tunables>): void {
    this.tunables = { ...this.tunables, ...tunables }
  }

  counters(): VbdCounters {
    return EMPTY_COUNTERS
  }

  useDisk(disk: EngineDisk): void {
    if (this.connection !== undefined)
      this.#engine.violations.push('a disk changed while connected')
    this.options = { ...this.options, disk }
  }

  trace(on: boolean): void {
    this.tracing = on
  }

  takeTrace(): TraceBatch {
    const records = this.traced.splice(0)
    return { records: new Float64Array(records.flat()), dropped: 0 }
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    await turns(1)
    this.connection = undefined
    this.#engine.vbds.delete(this)
  }

  #enter(call: string): void {
    if (this.#busy) this.#engine.violations.push(`${call} during another call`)
    this.#busy = true
  }
}

async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn++) await new Promise((resolve) => setImmediate(resolve))
}
