/**
 * The contract of disks in TypeScript: what `defineDisk` takes. A disk is a few functions; those that are not there are
 * not offered to the guest. Pure types, but for DiskError.
 */
/** What a disk may answer a request with, besides success. */
export type DiskErrorCode = 'EIO' | 'ENOSPC' | 'EOPNOTSUPP'

const ERRNOS: Readonly<Record<DiskErrorCode, number>> = { EIO: 5, ENOSPC: 28, EOPNOTSUPP: 95 }

/** Thrown by a disk's functions: answers the request with this error, and nobody is told but the guest. */
export class DiskError extends Error {
  override readonly name = 'DiskError'
  readonly code: DiskErrorCode

  constructor(code: DiskErrorCode, message: string = code) {
    super(message)
    this.code = code
  }
}

/** The errno of a DiskError, of whichever copy of this package; undefined for everything else. */
export function errnoOf(thrown: unknown): number | undefined {
  if (!(thrown instanceof Error) || thrown.name !== 'DiskError') return undefined
  return ERRNOS[(thrown as DiskError).code]
}

/** What is known of one request besides its range. */
export interface RequestIo<State = undefined> {
  /** Fires when nobody waits for the answer any more: its deadline has passed, or the disk closes. */
  readonly signal: AbortSignal
  /**
   * The write has to be on stable storage when it is answered. Asked for by guests that have no flush; where the disk
   * has `flush`, that is called after such a write anyway.
   */
  readonly fua: boolean
  /** Whose request it is: `1:xvda`. */
  readonly vbd: string
  /** Counts up, for logs. */
  readonly tag: number
  /** What `open` returned. */
  readonly state: State
}

/** What `open` is told. */
export interface OpenContext {
  /** Fires when the disk closes, or could not be opened to the end. */
  readonly signal: AbortSignal
}

/** A part of a disk, as `extents` tells it. */
export interface Extent {
  readonly offset: number
  readonly length: number
  /** `hole`: reads as zeroes and takes no space. */
  readonly type: 'data' | 'hole'
}

/** Bytes, or as `parseSize` takes it. */
export type Size = string | number | bigint
/** Milliseconds, or as `parseDuration` takes it. */
export type Duration = string | number
type Awaitable<T> = T | Promise<T>

/**
 * A disk. Offsets and lengths are bytes, multiples of the sector size, within the disk, and writes come only where the
 * disk may be written: all of that is checked before a function is called. A buffer is lent until the answer: fill or
 * read it, keep a copy if you want to keep it. Its length is at most 1 MiB.
 *
 * What a function throws fails the request: a DiskError as it says; anything else with EIO, and as an `error` event of
 * the vbd.
 */
export interface DiskDefinition<State = undefined> {
  /** For people: `clock`. */
  readonly name: string
  /**
   * Called once before everything else; what it returns is `io.state` from then on. A disk that is served to several
   * guests is opened once.
   */
  open?(context: OpenContext): Awaitable<State>
  /** `'10GiB'` or bytes, a multiple of the sector size; or a function that finds out, called after `open`. */
  readonly size: Size | ((state: State) => Awaitable<Size>)
  /** Logical sector size: 512 (default), which every guest understands, or 4096. */
  readonly sectorSize?: 512 | 4096
  /** What the storage writes at once, for the guest to align to; as `sectorSize` by default. */
  readonly physicalSectorSize?: number
  /** Refuse writes, although `write` is there. */
  readonly readOnly?: boolean
  /**
   * Requests that are given to the functions at a time, 1 to 256; 32 by default. 1: each is answered before the next
   * comes. Functions that are not async come one after the other in any case.
   */
  readonly concurrency?: number
  /** A request that is not answered by then fails with EIO, and the vbd says so: `'30s'` by default. */
  readonly deadline?: Duration
  /** What discards are best aligned to, in bytes. */
  readonly discardGranularity?: number
  /** Fills all of `buf` with what is at `offset`. What it leaves out is zeroes. */
  read(buf: Buffer, offset: number, io: RequestIo<State>): Awaitable<void>
  /** Without it the disk is read-only. */
  write?(buf: Buffer, offset: number, io: RequestIo<State>): Awaitable<void>
  /** Returns when every write that was answered before is on stable storage. */
  flush?(io: RequestIo<State>): Awaitable<void>
  /** The guest does not need this range any more. */
  discard?(offset: number, length: number, io: RequestIo<State>): Awaitable<void>
  /** Makes the range zeroes; for filters and tools. Without it they write zeroes. */
  zero?(offset: number, length: number, io: RequestIo<State>): Awaitable<void>
  /** Makes the disk `size` bytes long. Without it the disk keeps its size. */
  resize?(size: number, state: State): Awaitable<void>
  /** Which parts of the range hold data; for filters and tools. Without it all of it does. */
  extents?(offset: number, length: number, io: RequestIo<State>): Awaitable<Iterable<Extent>>
  /** Called once, after the last request. */
  close?(state: State): Awaitable<void>
}

/** What a filter passes on with a request, or leaves out. */
export interface ForwardedIo {
  readonly signal?: AbortSignal
  /** The write is on stable storage when its promise resolves. */
  readonly fua?: boolean
  readonly vbd?: string
  readonly tag?: number
}

/**
 * A disk that is open: what a filter has below it. Offsets and lengths are bytes and multiples of the sector size;
 * buffers may have any length. What is undefined it cannot do. Promises reject with a DiskError, or with a RangeError
 * for what is not on the disk.
 *
 * Every property is a disk's own: `{ ...next, read }` is the same disk with another `read`.
 */
export interface OpenDisk {
  readonly name: string
  /** Bytes. A disk that was resized has another size from then on. */
  readonly size: number
  readonly sectorSize: 512 | 4096
  readonly physicalSectorSize: number
  readonly discardGranularity: number
  readonly readOnly: boolean
  read(buf: Uint8Array, offset: number, io?: ForwardedIo): Promise<void>
  write?(buf: Uint8Array, offset: number, io?: ForwardedIo): Promise<void>
  flush?(io?: ForwardedIo): Promise<void>
  discard?(offset: number, length: number, io?: ForwardedIo): Promise<void>
  /** Makes the range zeroes; writes them where the disk below knows nothing better. */
  zero?(offset: number, length: number, io?: ForwardedIo): Promise<void>
  /** All of it is data where the disk below does not tell. */
  extents(offset: number, length: number, io?: ForwardedIo): Promise<Iterable<Extent>>
  resize?(size: number): Promise<void>
}

/** A disk out of the open disk below it. */
export type MakeFilter<State = undefined> = (next: OpenDisk) => DiskDefinition<State>

/** A disk in a module of its own, which runs on a thread of its own: a busy main loop does not slow it. */
export interface DiskModule {
  /**
   * The module: `new URL('./disk.js', import.meta.url)`. Its default export is what `defineDisk` returned or takes, or
   * a function of `options` that gives one.
   */
  readonly module: URL | string
  /** Given to a default export that is a function; anything that can be sent to a worker. */
  readonly options?: unknown
  /** For people; the module's file name by default. */
  readonly name?: string
}
