/**
 * Engine: what moves a guest's requests to a disk. Two implementations, one contract: native.ts (the C++ addon) and
 * js/ (TypeScript on thin native primitives). Control calls only; nothing here is on the data path.
 */
import type { DiskSpec, OverlaySpec } from '../disk/spec.js'
import type { VbdError } from '../errors.js'

export type { DiskSpec }

/** `arm-abi` is byte-identical to `x86_64-abi` (xen/include/public/io/protocols.h). */
export type Protocol = 'x86_64-abi' | 'x86_32-abi' | 'arm-abi'

/** How guest pages are reached; `auto`: persistent where the frontend offers it, else copy. */
export type TransferChoice = 'auto' | 'persistent' | 'copy' | 'map'
export type Transfer = Exclude<TransferChoice, 'auto'>

/** One ring as the frontend published it. */
export interface RingLayout {
  /** 1, 2, 4, 8 or 16 grant references of the ring's pages, in order. */
  readonly ringRefs: readonly number[]
  /** The frontend's unbound event channel port. */
  readonly eventChannel: number
}

/** Everything negotiated for one connection; nothing is re-read from xenstore after it. */
export interface Connection {
  readonly domid: number
  readonly protocol: Protocol
  readonly rings: readonly RingLayout[]
  /** Both sides said `feature-persistent`. */
  readonly persistent: boolean
  /**
   * Serve the guest on threads of its own although guests share the engine's (Placement), because its grant calls
   * were found to sleep. False by default.
   */
  readonly apart?: boolean
  /**
   * The rings are in use: another process served them, and this one goes on at their rsp_prod. `drained`: that process
   * answered all that it took. `idle`: it may have died at any moment, so `connect` rejects with ERR_VBD_PROTOCOL where
   * any ring holds a request without a response. `journaled`: likewise, but what it took and did not answer is in the
   * journals, and is done again; where they are not to be had it is as with `idle`. Either way each ring's frontend is
   * notified once, because the last one may have died before it did.
   */
  readonly takeOver?: 'drained' | 'idle' | 'journaled'
  /**
   * Where to note what is taken and not answered, so that it is known after this process was killed: a path, to which
   * each ring adds its number, and what names these rings. The engine `js` does without.
   */
  readonly journal?: { readonly path: string; readonly rings: string }
}

/** What the engine was told to offer; the same for every connection of a vbd. */
export interface VbdFeatures {
  readonly transfer: TransferChoice
  /** 0: indirect requests are not offered; at most 4096 (8 pages). */
  readonly maxIndirectSegments: number
  readonly flush: boolean
  readonly barrier: boolean
  readonly discard: boolean
  readonly secureDiscard: boolean
  /** Writes and discards are answered with errors although the disk could take them. */
  readonly readOnly?: boolean
  /** What happens to the vbd when a flush fails: its flushes are never answered, or it is closed. */
  readonly onFlushFailure: 'hold' | 'close'
}

/** Settings that may change while guests are connected. */
export interface Tunables {
  /** Persistent grants kept per ring. 0..1,000,000; 1056 by default. */
  maxPersistentGrants: number
  /** Seconds a persistent grant may stay unused; 0: for ever. 60 by default. */
  persistentGrantIdleSeconds: number
  /** Free pages that the page pool of a reactor keeps. 1024 by default. */
  maxBufferPages: number
  /** Bytes of guest data that one ring may have in flight before it stops consuming. 64 MiB by default. */
  maxInFlightBytes: number
  /** Microseconds that a reactor polls after its last work before it sleeps; 0: sleeps at once. 50 by default. */
  pollUs: number
}

export const DEFAULT_TUNABLES: Readonly<Tunables> = {
  maxPersistentGrants: 1056,
  persistentGrantIdleSeconds: 60,
  maxBufferPages: 1024,
  maxInFlightBytes: 64 * 1024 * 1024,
  pollUs: 50,
}

/** What an open disk is. Sizes in bytes. */
export interface DiskInfo {
  readonly sizeBytes: number
  readonly sectorSize: number
  readonly physicalSectorSize: number
  readonly readOnly: boolean
  readonly canFlush: boolean
  readonly canDiscard: boolean
  readonly canSecureDiscard: boolean
  readonly discardGranularity: number
  readonly discardAlignment: number
  /** For people: `file(/srv/a.raw, io_uring, O_DIRECT)`. */
  readonly description: string
}

/** A driver or filter of an open disk, as it is at this moment. */
export interface StageState {
  /** `throttle`, `file`, ... */
  readonly kind: string
  /** Settings and counters by name: `iops`, `delayed`, ... */
  readonly values: Readonly<Record<string, number>>
}

/** An open disk; vbds may share it. */
export interface EngineDisk {
  readonly info: DiskInfo
  /** Its stages, outermost first, each before the disks below it. */
  stages(): readonly StageState[]
  /**
   * Changes a setting of a stage, by its place in `stages()`, while guests use the disk.
   *
   * @throws ERR_VBD_UNSUPPORTED where the stage has no such setting, ERR_VBD_ARGUMENT for a value out of range
   */
  tuneStage(stage: number, setting: string, value: number): void
  /** Makes the disk `sizeBytes` long; resolves to its new info. */
  resize(sizeBytes: number): Promise<DiskInfo>
  /**
   * A flush through all stages. Absent where no stage can hold anything back.
   *
   * @throws ERR_VBD_BACKING where it failed; what was not flushed is kept where it was
   */
  flush?(): Promise<void>
  /**
   * Brings what stages hold back to stable storage first.
   *
   * @throws ERR_VBD_BACKING where that failed; then that is lost, and the disk closed all the same
   */
  close(): Promise<void>
  /**
   * Has `listener` told of what fails in a script disk's functions, with the vbd whose request it was (`1:xvda`), or ''
   * where it concerns all of them. Absent where there are no such functions.
   */
  onError?(listener: (error: VbdError, vbd: string) => void): void
}

/** Log-linear histogram: 16 buckets per power of two; see native/base/histogram.h. */
export interface HistogramCounters {
  readonly count: number
  readonly sum: number
  readonly min: number
  readonly max: number
  /** Counts per bucket, trailing empty buckets left out. */
  readonly buckets: readonly number[]
}

export interface OperationCounters {
  /** Requests answered OK. */
  readonly requests: number
  readonly sectors: number
  readonly bytes: number
  /** Requests answered otherwise after they were accepted. */
  readonly errors: number
  /** Nanoseconds from consuming a request to publishing its response. */
  readonly latencyNs: HistogramCounters
}

/** Totals since the vbd was made, over all rings and connections. */
export interface VbdCounters {
  readonly read: OperationCounters
  readonly write: OperationCounters
  readonly flush: OperationCounters
  readonly discard: OperationCounters
  /** Requests answered unexecuted, by reason (`segment-bounds`, `range`, ...). */
  readonly rejected: Readonly<Record<string, number>>
  /** Requests failed by a grant operation, and by the disk. */
  readonly grantErrors: number
  readonly diskErrors: number
  /** Times the ring had requests but no free in-flight entry, page or byte budget was left. */
  readonly outOfRequests: number
  readonly inFlight: number
  readonly persistentGrants: number
  readonly persistentGrantsCap: number
  /** Segments copied because the persistent cache was full. */
  readonly persistentGrantsOverflow: number
  readonly persistentGrantsPurged: number
  readonly grantMaps: number
  readonly grantUnmaps: number
  readonly grantCopies: number
  /** Calls (batches) behind the three figures above. */
  readonly grantCalls: number
  readonly notificationsSent: number
  readonly notificationsSaved: number
  readonly eventsReceived: number
  readonly spuriousEvents: number
  readonly wakeups: number
  readonly poolPagesInUse: number
  readonly poolPagesFree: number
  /** Requests found per ring pass. */
  readonly ringUtilisation: HistogramCounters
  readonly segmentsPerRequest: HistogramCounters
}

export type EngineEvent =
  /** The frontend broke the ring; the ring is stopped for good. */
  | { readonly type: 'ring-corrupt'; readonly queue: number; readonly message: string }
  /** A flush did not reach the disk; the vbd fails its writes and holds its flushes. */
  | { readonly type: 'flush-failed'; readonly message: string }

/** Numbers per request in `TraceBatch.records`, in the order of their names. */
export const TRACE_FIELDS = [
  /** Monotonic nanoseconds of when the request was taken from its ring. */
  'startedNs',
  'queue',
  /** As on the wire: 0 read, 1 write, 2 barrier, 3 flush, 5 discard; of an indirect request the inner one. */
  'operation',
  /** As the guest got it: 0, -1 (error) or -2 (not supported). */
  'status',
  /** In units of 512 bytes, like the next. */
  'sector',
  'sectors',
  'segments',
  'latencyNs',
] as const

/** Requests that were answered while tracing was on. */
export interface TraceBatch {
  /** `TRACE_FIELDS.length` numbers per request; in order of their answers per queue. */
  readonly records: Float64Array
  /** Requests that were not recorded because nobody took them in time, since tracing first began. */
  readonly dropped: number
}

/**
 * Whose reactors serve a guest. `guest`: its own, so that a grant call which sleeps in the kernel (a page of the guest
 * is paged out) holds up nobody else. `shared`: the same few serve all.
 */
export type Placement = 'guest' | 'shared'

/** One reactor's sign of life. */
export interface Heartbeat {
  /** Never that of another reactor of the same engine. */
  readonly id: number
  /** Of its thread. */
  readonly name: string
  /** How often it has turned. Asking wakes it: the same figure at the next asking, some seconds later, is a hang. */
  readonly beats: number
  /** It is held up by a guest, inside a grant call that the kernel will end: no hang. */
  readonly inGuestCall: boolean
}

export interface EngineVbd {
  /**
   * Maps the rings, binds the event channels and starts serving. Resolves with the transfer that is used. Rejects with
   * ERR_VBD_GRANT or ERR_VBD_PROTOCOL; then nothing is left mapped or bound.
   */
  connect(connection: Connection): Promise<{ transfer: Transfer }>
  /**
   * Stops intake, waits for the disk, unmaps and unbinds all. Idempotent; resolves when no guest page is held. True:
   * every request that the last connection took was answered, so that its rings can be gone on with at their rsp_prod;
   * not so after a failed flush or on a corrupt ring.
   */
  disconnect(): Promise<boolean>
  tune(tunables: Partial<Tunables>): void
  counters(): VbdCounters
  /**
   * Serves another disk of the same engine from the next connect on.
   *
   * @throws ERR_VBD_ARGUMENT while connected
   */
  useDisk(disk: EngineDisk): void
  /** Records every request that is answered from now on, for `takeTrace`; or ends that. */
  trace(on: boolean): void
  takeTrace(): TraceBatch
  /** Disconnects and frees. */
  close(): Promise<void>
}

/** What is done to an overlay that is not open. */
export type OverlayAct = 'snapshot' | 'commit' | 'reset'

export interface Engine {
  readonly kind: 'native' | 'js'
  openDisk(spec: DiskSpec): Promise<EngineDisk>
  /**
   * Changes an overlay, over its base as that may be written. Of a snapshot it resolves to the new layer's path.
   *
   * @throws ERR_VBD_BACKING, ERR_VBD_UNSUPPORTED; then it can be asked for again
   */
  changeOverlay?(act: OverlayAct, spec: OverlaySpec): Promise<string>
  createVbd(options: {
    /** `1:51712`, for thread names and messages. */
    name: string
    disk: EngineDisk
    features: VbdFeatures
    tunables: Tunables
    onEvent: (event: EngineEvent) => void
  }): EngineVbd
  /** Applies to every vbd made later, and to what vbds share. */
  tune(tunables: Partial<Tunables>): void
  /** Of every thread that moves data; none where the JavaScript thread itself does. Nothing after close. */
  heartbeats(): readonly Heartbeat[]
  /** Closes every vbd and disk, joins every thread. */
  close(): Promise<void>
}

/** One connection of this process to a hypervisor; made by `openMockXen` (and on a Xen host by its counterpart). */
export interface XenConnection {
  readonly kind: 'mock' | 'host'
  /** Our own domain. */
  readonly domid: number
  close(): void
}
