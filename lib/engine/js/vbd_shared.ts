/**
 * VbdShared: what the rings of one vbd share. WRITE_BARRIER lives here: everything that any ring of the vbd took
 * earlier completes, then flush, write, flush; nothing taken later by any ring starts before that. A barrier holds
 * the gate from the moment it waits for the others until it is done.
 */
import type { EngineEvent, Tunables, VbdFeatures } from '../engine.js'
import { QueueCounters } from './counters.js'
import type { JsDisk } from './js_disk.js'
import type { Queue } from './queue.js'
import { alignmentMaskOf, type Limits } from './request.js'
import { TraceRing } from './trace_ring.js'
import { SECTOR_BYTES } from './wire.js'

export class VbdShared {
  /** `1:51712` */
  readonly name: string
  /** For the next connection; constant during one. */
  disk: JsDisk
  readonly features: VbdFeatures
  /** Read once per pass; they may change at any time. */
  readonly tunables: Tunables
  readonly onEvent: (event: EngineEvent) => void
  /** By ring, kept over connections. */
  readonly counters: QueueCounters[] = []
  readonly traces: TraceRing[] = []
  /** Requests that the present connection, or the last one, took and never answered. */
  unanswered = 0
  #tracing = false
  #queues: readonly Queue[] = []
  /** A flush failed: no write is trusted to become durable any more. */
  flushFailed = false
  #barrierOwner: Queue | undefined

  constructor(
    name: string,
    disk: JsDisk,
    features: VbdFeatures,
    tunables: Tunables,
    onEvent: (event: EngineEvent) => void,
  ) {
    this.name = name
    this.disk = disk
    this.features = features
    this.tunables = { ...tunables }
    this.onEvent = onEvent
  }

  /** The rings of the present connection. */
  get queues(): readonly Queue[] {
    return this.#queues
  }

  /** Records every request that is answered from now on, or ends that. */
  trace(on: boolean): void {
    this.#tracing = on
    for (const ring of this.traces) ring.set(on)
  }

  traceOf(ring: number): TraceRing {
    const known = this.traces[ring]
    if (known !== undefined) return known
    const trace = new TraceRing(ring)
    trace.set(this.#tracing)
    this.traces[ring] = trace
    return trace
  }

  /** The rings of another connection, or none. */
  connected(queues: readonly Queue[]): void {
    this.#queues = queues
    this.#barrierOwner = undefined
  }

  countersOf(ring: number): QueueCounters {
    this.counters[ring] ??= new QueueCounters()
    return this.counters[ring]
  }

  /** Another ring's barrier is under way. */
  gateClosed(queue: Queue): boolean {
    return this.#barrierOwner !== undefined && this.#barrierOwner !== queue
  }

  /** Takes the gate for a barrier. False: another ring has it, or requests of others are still at the disk. */
  closeGate(queue: Queue): boolean {
    if (this.gateClosed(queue)) return false
    this.#barrierOwner = queue
    return this.queues.every((other) => other === queue || other.atDisk === 0)
  }

  /** Nothing where it is closed for another ring. */
  openGate(queue: Queue): void {
    if (this.#barrierOwner === queue) this.#barrierOwner = undefined
  }

  /** A ring has nothing at the disk any more, or opened the gate: whoever waits for that looks again. */
  wakeOthers(queue: Queue): void {
    for (const other of this.queues) if (other !== queue) other.wake()
  }

  /** What the vbd offers and its disk allows, for one ring to keep. */
  limits(): Limits {
    const { features } = this
    const limits = {
      capacitySectors: 0,
      alignmentMask: 0,
      maxIndirectSegments: features.maxIndirectSegments,
      readOnly: false,
      flush: features.flush,
      barrier: features.barrier,
      discard: features.discard,
      secureDiscard: features.secureDiscard,
    }
    this.refresh(limits)
    return limits
  }

  /** What may change while a guest is connected: a disk grows. */
  refresh(limits: Limits): void {
    const { info } = this.disk
    limits.capacitySectors = Math.floor(info.sizeBytes / SECTOR_BYTES)
    limits.alignmentMask = alignmentMaskOf(info.sectorSize)
    limits.readOnly = info.readOnly || this.features.readOnly === true
  }
}
