/**
 * Vbd: one virtual block device as a program sees it: its states, its size, its statistics, its settings. A thin face
 * of a Lifecycle, which does the work; made by `Backend.serve`, closed by its own `close` or with its backend.
 */
import { eventually } from '../deadline.js'
import type { Disk } from '../disk/disk.js'
import { Emitter, type Listener } from '../emitter.js'
import type { DiskInfo, Engine, EngineDisk, OverlayAct, Tunables } from '../engine/engine.js'
import type { TracedBatch, TracedRequest } from '../engine/traced.js'
import { VbdError } from '../errors.js'
import { formatVbdId, formatVdev, type VbdId } from '../units.js'
import type { Device } from '../xenbus/device.js'
import { stateName, type XenbusStateName } from '../xenbus/state.js'
import type { CloseOptions } from './attachment.js'
import type { DiskPool } from './disk_pool.js'
import { Explanation } from './explain.js'
import type { VbdInfo } from './info.js'
import { journalPath } from './journal.js'
import { Lifecycle } from './lifecycle.js'
import type { ResolvedVbdOptions } from './options.js'
import type { ConnectionInfo } from './reporter.js'
import { checkResize, type ResizeOptions } from './resize.js'
import { type NamedStage, namedStages, tuneStage } from './stages.js'
import {
  EMPTY_COUNTERS,
  makeStats,
  type Reading,
  type StatsStreamOptions,
  statsLine,
  streamStats,
  type VbdStats,
} from './stats.js'
import { checkReset, type SwapOptions } from './swap.js'
import { type TraceOptions, Tracer } from './trace.js'
import { type TraceHeader, type TraceSummary, writeTrace } from './trace_file.js'
import { checkTunables } from './tunables.js'

/** Settings that may change at any time: the engine's, and how often a line of statistics is logged. */
export interface VbdTunables extends Tunables {
  /** Seconds between two `log` events with a line of statistics; 0 switches them off, `true` means 10. 0 by default. */
  logStats: number | boolean
}

/** What happens to a vbd; `vbd` is the one concerned. */
export interface VbdEvents {
  /** Either side's xenbus state changed, `none`: its directory is gone. At most 120 a minute. */
  state: { vbd: Vbd; side: 'backend' | 'frontend'; state: XenbusStateName | 'none' }
  connected: { vbd: Vbd; connection: ConnectionInfo }
  disconnected: { vbd: Vbd }
  resized: { vbd: Vbd; disk: DiskInfo }
  /** A guest's mistake, or something passing; at most ten a minute. */
  warning: { vbd: Vbd; message: string }
  error: { vbd: Vbd; error: VbdError }
  /** A line of statistics, see `logStats`. */
  log: { vbd: Vbd; line: string }
  closed: { vbd: Vbd }
}

export interface VbdSetup {
  readonly id: VbdId
  readonly engine: Engine
  readonly disks: DiskPool
  readonly disk: Disk
  readonly options: ResolvedVbdOptions
  readonly tunables: Tunables
  readonly logStats: number | boolean
  /** The folder of journals (journal.ts). */
  readonly journals: string | undefined
  /** It is for one device, and ends with that. */
  readonly once: boolean
  /** Told when a device's directory is gone. */
  readonly onDropped: (device: Device) => void
  /** Told when there is nothing left to do for now. */
  readonly onSettled: () => void
  /** Closes the lifecycle, and what the backend made around it. */
  readonly onClose: (vbd: Vbd, options: CloseOptions) => Promise<void>
}

const LOG_STATS_SECONDS = 10

/** A disk that is served to one guest. Made by `Backend.serve`. */
export class Vbd {
  /** `1:xvda` */
  readonly id: string
  readonly domid: number
  readonly devid: number
  /** `xvda` */
  readonly vdev: string
  readonly #setup: VbdSetup
  readonly #lifecycle: Lifecycle
  readonly #emitter = new Emitter<VbdEvents>()
  readonly #closed = new AbortController()
  readonly #tracer = new Tracer(() => this.#lifecycle.backing.vbd)
  readonly #born: Reading = { counters: EMPTY_COUNTERS, time: Date.now() }
  #tunables: Tunables
  #logTimer: NodeJS.Timeout | undefined
  #closing: Promise<void> | undefined

  /** Use `Backend.serve`. */
  constructor(setup: VbdSetup) {
    this.#setup = setup
    this.#tunables = setup.tunables
    this.id = formatVbdId(setup.id)
    this.domid = setup.id.domid
    this.devid = setup.id.devid
    this.vdev = formatVdev(setup.id.devid)
    const emit = this.#emitter.emit.bind(this.#emitter)
    this.#lifecycle = new Lifecycle({
      name: this.id,
      engine: setup.engine,
      disks: setup.disks,
      disk: setup.disk,
      options: setup.options,
      tunables: setup.tunables,
      once: setup.once,
      ...(setup.journals === undefined ? {} : { journal: journalPath(setup.journals, setup.id) }),
      events: {
        state: (side, state) => emit('state', { vbd: this, side, state }),
        connected: (connection) => emit('connected', { vbd: this, connection }),
        disconnected: () => emit('disconnected', { vbd: this }),
        resized: (disk) => emit('resized', { vbd: this, disk }),
        warning: (message) => emit('warning', { vbd: this, message }),
        error: (error) => emit('error', { vbd: this, error }),
        dropped: (device) => setup.onDropped(device),
        settled: () => setup.onSettled(),
      },
    })
    this.#setLogStats(setup.logStats)
  }

  /** For the backend that made it. */
  get lifecycle(): Lifecycle {
    return this.#lifecycle
  }

  /** `close` has been called: it takes no further device. */
  get closing(): boolean {
    return this.#closing !== undefined
  }

  /** Our xenbus state; `none` while no toolstack has attached the device. */
  get state(): XenbusStateName | 'none' {
    const { state } = this.#lifecycle
    return state === undefined ? 'none' : stateName(state)
  }

  /** The frontend's xenbus state as last seen; `none` while there is no frontend. */
  get frontendState(): XenbusStateName | 'none' {
    const { frontState } = this.#lifecycle
    return frontState === undefined ? 'none' : stateName(frontState)
  }

  /** What both sides agreed on; undefined unless both are Connected. */
  get connection(): ConnectionInfo | undefined {
    return this.#lifecycle.connection
  }

  get connected(): boolean {
    return this.connection !== undefined
  }

  /** The disk as it is; sizes in bytes. */
  get disk(): DiskInfo {
    return this.#lifecycle.diskInfo!
  }

  /** Everything about it at this moment. */
  info(): VbdInfo {
    const { connection } = this
    const path = this.#lifecycle.device?.paths.backend
    return {
      vbd: this.id,
      domid: this.domid,
      devid: this.devid,
      vdev: this.vdev,
      state: this.state,
      frontendState: this.frontendState,
      engine: this.#setup.engine.kind,
      disk: this.disk,
      ...(connection === undefined ? {} : { connection }),
      ...(path === undefined ? {} : { path }),
      tunables: { ...this.#tunables },
    }
  }

  /** How it is served: the stages of its disk, where each of them runs, and what was agreed on with its guest. */
  explain(): Explanation {
    return new Explanation({
      vbd: this.id,
      engine: this.#setup.engine.kind,
      state: this.state,
      disk: this.disk,
      spec: this.#lifecycle.backing.spec,
      connection: this.connection,
    })
  }

  /** Has `listener` called for every such event; what it throws ends as a process warning. Returns what ends that. */
  on<K extends keyof VbdEvents>(event: K, listener: Listener<VbdEvents[K]>): () => void {
    return this.#emitter.on(event, listener)
  }

  /**
   * Resolves when a frontend is connected; at once when one is.
   *
   * @throws ERR_VBD_TIMEOUT, ERR_VBD_ABORTED, and ERR_VBD_STATE when the vbd is closed instead
   */
  async whenConnected(
    options: { signal?: AbortSignal; timeoutMs?: number } = {},
  ): Promise<ConnectionInfo> {
    this.#requireOpen()
    if (this.connection !== undefined) return this.connection
    return eventually<ConnectionInfo>(
      (resolve, reject) => {
        const offs = [
          this.on('connected', ({ connection }) => resolve(connection)),
          this.on('closed', () => reject(this.#closedError())),
        ]
        return () => {
          for (const off of offs) off()
        }
      },
      { what: `waiting for the guest to connect ${this.id}`, ...options },
    )
  }

  /**
   * Resizes the disk, and tells every guest that has it. Resolves when a guest of this vbd that is connected has been
   * told.
   *
   * @param size as `parseSize` takes it: bytes, or `'2GiB'`; a multiple of the sector size
   * @throws ERR_VBD_ARGUMENT for a size that cannot be, or a smaller one without `shrink`; ERR_VBD_UNSUPPORTED for a
   *   read-only disk; ERR_VBD_BACKING when the file or device refuses; ERR_VBD_STATE after close
   */
  async resize(size: string | number | bigint, options: ResizeOptions = {}): Promise<DiskInfo> {
    this.#requireOpen()
    const sizeBytes = checkResize(this.id, this.disk, size, options)
    return this.#lifecycle.change((backing) => backing.resize(sizeBytes))
  }

  /** Whether `pause` holds the guest's requests back. */
  get paused(): boolean {
    return this.#lifecycle.backing.paused
  }

  /**
   * Holds the guest's requests back until `resume`: those that were taken are answered first, then the disk is at rest
   * and nothing of the guest is held. The guest waits; what it makes of a long wait is its own affair (Linux complains
   * after 120 s). A guest may connect and leave meanwhile, but is connected only after `resume`. What a `cache` holds
   * is written back. Idempotent.
   *
   * @throws ERR_VBD_STATE after close, and when the rings ended in failure; ERR_VBD_BACKING when a cache cannot be
   *   written back: then the guest is served on
   */
  async pause(): Promise<void> {
    this.#requireOpen()
    await this.#lifecycle.backing.pause()
  }

  /** Ends a pause. Idempotent. */
  async resume(): Promise<void> {
    this.#requireOpen()
    await this.#lifecycle.backing.resume()
  }

  /**
   * Puts another disk in place of this one, under a connected guest that sees nothing but a short wait: for an image
   * that has moved, or a medium that changed. What the new disk holds is the caller's affair.
   *
   * @throws ERR_VBD_ARGUMENT when the new disk cannot do what the guest was told, or is smaller without `shrink`;
   *   ERR_VBD_BACKING, ERR_VBD_BUSY as from `Backend.serve`; ERR_VBD_STATE. Then the old disk is served on.
   */
  async swap(disk: Disk, options: SwapOptions = {}): Promise<DiskInfo> {
    this.#requireOpen()
    return this.#lifecycle.change((backing) => backing.swap(disk, options))
  }

  /**
   * Freezes what an overlay has as a layer, and goes on with an empty one above it; the guest sees a short wait. Its
   * file systems are in the layer as after a loss of power. Resolves to the layer's path.
   *
   * @throws ERR_VBD_UNSUPPORTED unless the disk has one overlay with a scratch file; ERR_VBD_BACKING; ERR_VBD_STATE
   */
  snapshot(): Promise<string> {
    return this.#changeOverlay('snapshot')
  }

  /** Writes what an overlay has, layers too, into the disk below it, and empties it. @throws as `snapshot` */
  async commit(): Promise<void> {
    await this.#changeOverlay('commit')
  }

  /**
   * Takes an overlay back to its last snapshot, or to the disk below. @throws as `snapshot`; ERR_VBD_STATE while a
   * guest is connected, which would find other data under it, without `force`
   */
  async reset({ force = false }: { force?: boolean } = {}): Promise<void> {
    checkReset(this.id, this.connected, force)
    await this.#changeOverlay('reset')
  }

  /**
   * The guest's requests, each after its answer, from now on: `for await (const request of vbd.trace())`. Ends when the
   * signal fires or the vbd is closed.
   *
   * @throws ERR_VBD_STATE when requests came faster than they were taken, unless `onDropped` is given
   */
  trace(options: TraceOptions = {}): AsyncGenerator<TracedRequest, void, undefined> {
    this.#requireOpen()
    return this.#tracer.listen(options, this.#closed.signal)
  }

  /** Statistics: one snapshot about the time since the vbd was made. */
  stats(): VbdStats
  /**
   * Statistics at an interval, each about the time since the one before: `for await (const s of vbd.stats({ every:
   * '1s' }))`. A slow reader gets fewer, never old ones. Ends when the signal fires or the vbd is closed.
   *
   * @throws ERR_VBD_ARGUMENT for an interval that `parseDuration` refuses
   */
  stats(options: StatsStreamOptions): AsyncGenerator<VbdStats, void, undefined>
  stats(options?: StatsStreamOptions): VbdStats | AsyncGenerator<VbdStats, void, undefined> {
    if (options === undefined) return makeStats(this.id, this.connected, this.#born, this.#read())
    return streamStats(
      {
        vbd: this.id,
        read: () => this.#read(),
        connected: () => this.connected,
        closed: this.#closed.signal,
      },
      options,
    )
  }

  /** As `trace`, in batches as they come, with the number of requests that are missing before each. */
  traceBatches(options: { signal?: AbortSignal } = {}): AsyncGenerator<TracedBatch> {
    this.#requireOpen()
    return this.#tracer.batches(options.signal, this.#closed.signal)
  }

  /**
   * Writes the trace to a file, for `vbdkit replay`, until the signal fires or the vbd is closed.
   *
   * @throws ERR_VBD_BACKING when the file cannot be written
   */
  async traceTo(path: string, options: { signal?: AbortSignal } = {}): Promise<TraceSummary> {
    return writeTrace(path, this.traceHeader(), this.traceBatches(options))
  }

  /** What a trace of it begins with. */
  traceHeader(): TraceHeader {
    const { sizeBytes, sectorSize } = this.disk
    return { vbd: this.id, sizeBytes, sectorSize: sectorSize === 4096 ? 4096 : 512 }
  }

  /**
   * Changes settings at once, for this vbd.
   *
   * @throws ERR_VBD_ARGUMENT naming the setting that is out of range; then nothing has changed
   */
  tune(tunables: Partial<VbdTunables>): void {
    this.#requireOpen()
    const { logStats, ...engine } = checkTunables(tunables)
    this.#tunables = { ...this.#tunables, ...engine }
    this.#lifecycle.tune(engine)
    if (logStats !== undefined) this.#setLogStats(logStats)
  }

  /** The drivers and filters of its disk with their settings and counters, from the guest towards the disk. */
  stages(): readonly NamedStage[] {
    return namedStages(this.#openDisk())
  }

  /**
   * Changes settings of a driver or filter at once, while guests use the disk:
   * `vbd.tuneStage('throttle', { iops: 500 })`.
   *
   * @param stage as `stages()` names it
   * @throws ERR_VBD_NOT_FOUND, ERR_VBD_UNSUPPORTED for a setting that it does not have, ERR_VBD_ARGUMENT for a value
   *   out of range
   */
  tuneStage(stage: string, settings: Readonly<Record<string, number>>): void {
    tuneStage(this.#openDisk(), this.id, stage, settings)
  }

  /**
   * Stops serving: asks the frontend to close, waits for it, lets go of every guest page, and takes away the xenstore
   * directories if we made them. A guest that does not close in time finds its disk gone. Idempotent.
   */
  close(options: CloseOptions = {}): Promise<void> {
    this.#closing ??= this.#close(options)
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #close(options: CloseOptions): Promise<void> {
    clearInterval(this.#logTimer)
    try {
      await this.#setup.onClose(this, options)
    } finally {
      this.#closed.abort()
      this.#emitter.emit('closed', { vbd: this })
    }
  }

  #changeOverlay(act: OverlayAct): Promise<string> {
    this.#requireOpen()
    return this.#lifecycle.backing.changeOverlay(act)
  }

  #openDisk(): EngineDisk {
    this.#requireOpen()
    const { disk } = this.#lifecycle.backing
    if (disk === undefined) throw this.#closedError()
    return disk
  }

  #requireOpen(): void {
    if (this.#closing !== undefined) throw this.#closedError()
  }

  #closedError(): VbdError {
    return new VbdError('ERR_VBD_STATE', `${this.id} has been closed`, { vbd: this.id })
  }

  #read(): Reading {
    const counters = this.#lifecycle.backing.vbd?.counters() ?? EMPTY_COUNTERS
    return { counters, time: Date.now() }
  }

  #setLogStats(logStats: number | boolean): void {
    clearInterval(this.#logTimer)
    const seconds = logStats === true ? LOG_STATS_SECONDS : Number(logStats)
    if (seconds === 0) return
    let before = this.#read()
    this.#logTimer = setInterval(() => {
      const after = this.#read()
      const stats = makeStats(this.id, this.connected, before, after)
      this.#emitter.emit('log', { vbd: this, line: statsLine(stats, before.counters) })
      before = after
    }, seconds * 1000)
    this.#logTimer.unref()
  }
}
