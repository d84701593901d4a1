/**
 * The addon's exports, as C++ gives them (native/node/). Raw: native.ts wraps the engine part, lib/mock the mock part.
 * Calls throw an Error with `kind` (`xen`, `ring`, `backing`, `invalid-argument`, `unsupported`, `no-memory`) and
 * `errno`.
 */
import type {
  Connection,
  DiskInfo,
  EngineEvent,
  Heartbeat,
  Placement,
  TraceBatch,
  Transfer,
  Tunables,
  VbdCounters,
  VbdFeatures,
} from './engine.js'
import type { OpenPrimitives } from './primitives.js'

export interface NativeError extends Error {
  readonly kind: string
  readonly errno: number
}

/** Opaque: a vbd::xen::Xen. */
export interface NativeXen {
  close(): void
}

export interface NativeDisk {
  info(): DiskInfo
  /** One at a time. */
  resize(sizeBytes: number): Promise<DiskInfo>
  /** Every stage with its settings and counters, outermost first, each before the disks below it. */
  stages(): { kind: string; values: Record<string, number> }[]
  tuneStage(stage: number, setting: string, value: number): void
  /**
   * What a `log` has kept: for each request seven numbers, when it began (monotonic nanoseconds), how long it took,
   * the operation, offset and length in bytes, errno, and 1 for FUA. `lost`: requests that found no room.
   */
  takeRecords(stage: number): { records: Float64Array; lost: number }
  /** Whole sectors, at most 64 MiB; for the control plane. */
  read(offset: number, length: number): Promise<Buffer>
  /** Flushes through all stages. */
  flush(): Promise<void>
  /** Writes out what stages hold back, then closes. No vbd may use it any more. */
  close(): Promise<void>
}

/** The script's end of a script disk's channel; see native/block/script_channel.h. For the thread that attached it. */
export interface NativeScriptEnd {
  /** Requests that the script may have at a time. */
  readonly slots: number
  readonly slotBytes: number
  readonly submissionEntries: number
  readonly answerEntries: number
  /** Both rings and the descriptors. */
  readonly control: ArrayBuffer
  /** The slots' memory, one after the other. */
  readonly pool: ArrayBuffer
  /** Takes the answers that are on the ring. */
  kick(): void
  /** `1:xvda` of a descriptor's number. */
  clientName(client: number): string
  /** Fails what the script has, and all that comes. Idempotent. */
  detach(): void
}

/** A script's end of a disk that it reads and writes; see native/block/disk_client.h. */
export interface NativeDiskClient {
  /** Requests that may be at work at a time. */
  readonly slots: number
  readonly slotBytes: number
  /** Of each of the two rings. */
  readonly entries: number
  readonly control: ArrayBuffer
  /** The slots' memory, one after the other. */
  readonly pool: ArrayBuffer
  /** There are submissions. */
  kick(): void
  /** Waits for what is at the device. Idempotent. */
  close(): void
}

/** What a script disk is, for the engine. */
export interface ScriptGeometry {
  readonly sizeBytes: number
  readonly sectorSize: number
  readonly physicalSectorSize: number
  readonly readOnly: boolean
  readonly canFlush: boolean
  readonly canDiscard: boolean
  readonly discardGranularity: number
  readonly concurrency: number
  readonly deadlineMs: number
  readonly description: string
}

/** A request that a script did not answer in time. */
export interface OverdueRequest {
  readonly operation: 'read' | 'write' | 'flush' | 'discard'
  readonly offset: number
  readonly length: number
  /** `1:xvda` */
  readonly vbd: string
}

export interface NativeVbd {
  connect(connection: Connection): Promise<{ transfer: Transfer }>
  /** True: every request that was taken was answered. */
  disconnect(): Promise<boolean>
  tune(tunables: Partial<Tunables>): void
  counters(): VbdCounters
  useDisk(disk: NativeDisk): void
  trace(on: boolean): void
  takeTrace(): TraceBatch
  close(): Promise<void>
}

export interface NativeEngine {
  /** `spec`: a DiskSpec without partitions, whose keys are Buffers. */
  openDisk(spec: object): Promise<NativeDisk>
  /** A disk whose requests go to whoever attaches to its `channel`. */
  openScript(
    geometry: ScriptGeometry,
    onOverdue: (request: OverdueRequest) => void,
  ): NativeDisk & { readonly channel: number }
  /** Makes this thread a client of a disk. `onBell` is called when there are answers. */
  openClient(disk: NativeDisk, slots: number, onBell: () => void): NativeDiskClient
  createVbd(
    name: string,
    disk: NativeDisk,
    features: VbdFeatures,
    tunables: Tunables,
    onEvent: (event: EngineEvent) => void,
  ): NativeVbd
  tune(tunables: Partial<Tunables>): void
  /** Threads, file descriptors aside: what the engine holds, for leak checks. */
  resources(): { reactors: number; vbds: number; disks: number }
  heartbeats(): Heartbeat[]
  close(): Promise<void>
}

/** One domain as the broker accounts for it. */
export interface MockDomain {
  readonly domid: number
  readonly pages: number
  /** Its owner is gone, but peers still map its pages. */
  readonly dying: boolean
  /** Pins that peers hold on this domain's grants (mapped pages, counted per mapping). */
  readonly grantsMapped: number
  /** Event channel ports of this domain that are bound to a peer. */
  readonly portsBound: number
}

/** A rule that makes calls fail, or late. Counted over all processes of the mock. */
export interface MockFault {
  readonly call: 'map' | 'unmap' | 'copy' | 'bind' | 'notify' | 'alloc-unbound'
  /** Only calls towards this domain; any when absent. */
  readonly domid?: number
  /** Only this grant reference (map, copy). */
  readonly ref?: number
  /** Let this many matching calls pass first. 0 by default. */
  readonly skip?: number
  /** Then fail this many; for ever when absent. */
  readonly count?: number
  /** errno of a failing call (EINVAL = 22, ENOMEM = 12). For copy: absent means per-segment `status`. */
  readonly errno?: number
  /** Per-segment GNTST_* status of a failing copy, e.g. -3. */
  readonly status?: number
  /** The call sleeps so long first, 0..60,000, as for a page that is paged out; without an errno it then succeeds. */
  readonly delayMs?: number
}

/** The hypervisor's part of the mock, on a thread of its own in this process. */
export interface NativeMockBroker {
  createDomain(domid: number, pages: number): void
  /** As `xl destroy`: the domain is dying until its pages are unmapped. */
  destroyDomain(domid: number): void
  domains(): MockDomain[]
  setFaults(faults: readonly MockFault[]): void
  close(): void
}

/** A guest's own hands: its memory, its grant table, its event channels. */
export interface NativeMockGuest {
  readonly domid: number
  /** All of the guest's memory, shared with whoever maps its grants; page n is bytes n*4096. */
  readonly memory: ArrayBuffer
  /** Makes `ref` (8..32767) a grant of page `page` to `domid`. */
  grant(ref: number, page: number, domid: number, readOnly: boolean): void
  /** Ends a grant. False: a peer still maps it, nothing was changed. */
  endAccess(ref: number): boolean
  /** A new port that `domid` may bind. */
  allocUnbound(domid: number): number
  notify(port: number): void
  /** Lets the next event of this port through to `onEvent`. */
  unmask(port: number): void
  closePort(port: number): void
  /** Runs the native load generator until `durationMs` has passed; see LoadOptions. */
  runLoad(options: LoadOptions): Promise<LoadResult>
  /** Kills the domain when this handle made it. */
  close(): void
}

/** One queue of a guest that a load drives; the ring is initialised, the frontend Connected, its doorbells quiet. */
export interface LoadQueue {
  /** Byte offset of the ring in guest memory (its pages are contiguous). */
  readonly ringOffset: number
  readonly ringPages: number
  readonly port: number
  /** First of depth × segments granted data pages: reference and page number rise by one each. */
  readonly firstRef: number
  readonly firstPage: number
  /** With indirect requests: first of `depth` × ceil(`segments` / 512) descriptor pages. */
  readonly firstIndirectRef?: number
  readonly firstIndirectPage?: number
  /** A queue of another guest of this process, for loads that poll; the load's own guest when absent. */
  readonly guest?: NativeMockGuest
}

export interface LoadOptions {
  readonly queues: readonly LoadQueue[]
  readonly protocol: 'x86_64-abi' | 'x86_32-abi'
  readonly operation: 'read' | 'write' | 'mixed'
  readonly pattern: 'random' | 'sequential'
  /** Requests kept in flight per queue. */
  readonly depth: number
  /** 4 KiB segments per request. */
  readonly segments: number
  readonly indirect: boolean
  readonly diskSectors: number
  readonly durationMs: number
  /** Spin for responses instead of sleeping for events. */
  readonly poll: boolean
  readonly seed: number
  /** Pin the load's thread to this processor; -1: not. */
  readonly cpu: number
}

export interface LoadResult {
  readonly requests: number
  readonly errors: number
  readonly elapsedNs: number
  /** CPU time of the load's own thread. */
  readonly cpuNs: number
  readonly notifications: number
  /** Requests answered, by queue. */
  readonly queueRequests: readonly number[]
  readonly latencyNs: import('./engine.js').HistogramCounters
}

/** What became of one of Xen's libraries. */
export interface HostLibrary {
  /** `libxengnttab.so.1` */
  readonly soname: string
  /** The file that was loaded, its links followed; empty when none was. */
  readonly path: string
  /** Why none was loaded; empty when one was. */
  readonly error: string
  /** Functions that it lacks and that are needed. */
  readonly missing: string[]
}

/** What this machine has of what a backend on real Xen needs. */
export interface HostProbe {
  readonly gnttab: HostLibrary
  readonly evtchn: HostLibrary
  /** /dev/xen/gntdev and /dev/xen/evtchn; `errno` of opening each, 0 where it opens. */
  readonly devices: { readonly path: string; readonly errno: number }[]
  /** The kernel copies grants by itself. Without it (or where nothing opens) copying costs a mapping per page. */
  readonly grantCopy: boolean
  /** The kernel's pages are Xen's 4 KiB. */
  readonly smallPages: boolean
  /** All that keeps guests from being served, one phrase each. */
  readonly problems: string[]
}

/** /dev/xen/xenbus, open. Keeps the process alive. */
export interface NativeXenbusDevice {
  /** Queues one whole packet. Never blocks. Quietly nothing after close(). */
  write(packet: Uint8Array): void
  close(): void
}

export interface Addon {
  /** How many layers the overlay at this path has; 0 where there is none. */
  overlayLayers(scratch: string): number
  /** Of an overlay that nobody has open; of a snapshot it resolves to the path of the new layer. */
  changeOverlay(act: string, spec: object): Promise<string>
  readonly version: string
  /** What this kernel allows. */
  probe(): { ioUring: boolean; ioUringReason: string; memlockBytes: number }
  /**
   * Joins the mock whose broker listens on `socketPath`, as `domid`. `onClose` is told once when the broker is gone;
   * from then on nothing can be mapped, copied or bound, while what is mapped or bound stays so.
   */
  connectMock(socketPath: string, domid: number, onClose?: () => void): NativeXen
  /** `onDomain` is told of every domain that appears, starts dying and disappears, in order. */
  startMockBroker(
    socketPath: string,
    onDomain: (event: 'created' | 'dying' | 'destroyed', domid: number) => void,
  ): NativeMockBroker
  /** Joins as guest `domid`, making the domain with `pages` pages of memory when there is none. */
  connectMockGuest(
    socketPath: string,
    domid: number,
    pages: number,
    onEvent: (ports: number[]) => void,
    onClose: () => void,
  ): NativeMockGuest
  /**
   * This machine's Xen. `onSlow` is told of every grant call that slept in the kernel, with the guest that it was for.
   * Throws `unsupported` with all that is missing in the message.
   */
  openHostXen(onSlow?: (domid: number, elapsedMs: number) => void): NativeXen
  /** Looks what there is of Xen here; leaves nothing open. */
  probeHost(): HostProbe
  /**
   * Opens the xenbus device at `path`. `onData` gets bytes as they come, not packets; `onRefused` a packet that the
   * device answered with an errno instead of an answer; `onLost` comes once, with the errno of reading or 0.
   */
  openXenbusDevice(
    path: string,
    onData: (chunk: Buffer) => void,
    onRefused: (packet: Buffer, errno: number) => void,
    onLost: (errno: number) => void,
  ): NativeXenbusDevice
  /** Sends `text` to the service manager's socket, abstract where the path begins with `@`. Never blocks. */
  sdNotify(socketPath: string, text: string): void
  /** Makes this thread the script of a channel, for good. `onBell` is called when there is something to take. */
  attachScript(channel: number, onBell: () => void): NativeScriptEnd
  createEngine(options: {
    xen: NativeXen
    /** 1..64; with the placement `guest`, at most so many for each guest. */
    reactors: number
    placement: Placement
    tunables: Tunables
    name: string
  }): NativeEngine
  /** Ends the process and joins no thread of it. */
  exitAtOnce(code: number): never
  /** What the JavaScript engine stands on. */
  openPrimitives: OpenPrimitives
}
