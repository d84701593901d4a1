/**
 * What the JavaScript engine has the addon do (native/node/primitives.h), as types: reach guest pages, bind event
 * channels and be woken by them, and hand a batch of I/O to the kernel. Nothing in it knows blkif. Calls throw a
 * NativeError, as all of the addon's do.
 *
 * Memory that both sides reach is a *region* with a number: the arena of our own pages is region 0, every mapping of
 * guest pages gets one of its own. Its ArrayBuffer is detached when the memory goes, so that no view of it dangles.
 */
import type { NativeXen } from './addon.js'
import type { DiskInfo, DiskSpec } from './engine.js'

/** Guest pages, mapped. */
export interface NativeMapping {
  readonly region: number
  readonly buffer: ArrayBuffer
}

/** One handle on the grant table, for one ring. */
export interface NativeGrants {
  /** Maps the first `count` references at one place, all or none. */
  map(domid: number, refs: Uint32Array, count: number, writable: boolean): NativeMapping
  /** Detaches the ArrayBuffer and unmaps. False: refused; the pages go with close(). */
  unmap(region: number): boolean
  /**
   * One grant copy call of `count` segments between guest pages and the arena. A segment is 4 words of `table`:
   * reference, offset in the guest's page, length, offset in the arena. `statuses` gets one GNTST_* each, never more
   * than 0; all failures where the call failed as a whole, which returns false.
   */
  copy(
    domid: number,
    toGuest: boolean,
    count: number,
    table: Uint32Array,
    statuses: Int16Array,
  ): boolean
  /** Unmaps what is left. */
  close(): void
}

/**
 * An image file or block device, open and locked. Reads and writes may use `fd`; what has no call in node:fs, turnIo.
 */
export interface NativeFile {
  /** Its number for `turnIo`. */
  readonly file: number
  readonly fd: number
  /** A transfer that stopped early goes on at a multiple of this many bytes. */
  readonly granule: number
  /** On tmpfs: calls never wait. */
  readonly inMemory: boolean
  /** Opened with O_DIRECT. */
  readonly direct: boolean
  readonly writeThrough: boolean
  info(): DiskInfo
  resize(sizeBytes: number): DiskInfo
  close(): void
}

/** The kinds of operations of `turnIo`. */
export const IO = {
  read: 0,
  write: 1,
  flush: 2,
  discard: 3,
  secureDiscard: 4,
  durableWrite: 5,
} as const

/** Numbers per element of `turnIo`'s tables. */
export const IO_OPERATION_NUMBERS = 6
export const IO_VECTOR_NUMBERS = 3
export const IO_RESULT_NUMBERS = 2

export interface NativePrimitives {
  /** Pages of our own, through which grant copies go: address space, of which memory is what was touched. */
  readonly arena: ArrayBuffer
  /** Gives whole pages of the arena back to the system; they read as zeroes then. */
  giveBack(offset: number, bytes: number): void
  openGrants(): NativeGrants
  /** Binds an event channel that a guest left unbound for us; its number. One event is pending then. */
  bind(domid: number, remotePort: number): number
  notify(channel: number): void
  /** Lets the next event of this channel through to `onReady`. */
  unmask(channel: number): void
  unbind(channel: number): void
  /** @param uring through io_uring in `turnIo`, else by the caller itself through node:fs */
  openFile(spec: DiskSpec, uring: boolean): NativeFile
  /**
   * A whole pass's I/O in one call: queues the operations, enters the kernel once, and fills `results` with tag and
   * errno of what has completed. Returns how many. An operation is file, kind (IO), tag, offset, length, and how many
   * of the `vectors` are its; a vector is region, start, length.
   */
  turnIo(
    operations: Float64Array,
    operationCount: number,
    vectors: Float64Array,
    vectorCount: number,
    results: Int32Array,
  ): number
  /** Has the next completion told to `onReady`. False: turnIo has some now. */
  armIo(): boolean
  close(): void
}

/**
 * `onReady` is called on the JavaScript thread with the channels whose events were taken (each is masked until
 * `unmask`), and whether I/O has completed.
 */
export type OpenPrimitives = (
  xen: NativeXen,
  arenaPages: number,
  onReady: (channels: readonly number[], io: boolean) => void,
) => NativePrimitives
