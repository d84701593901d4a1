/**
 * FsQueue: a file through node:fs, whose calls wait on libuv's threads. What costs most here is not the file but the
 * way there and back, so neighbouring pages go as one buffer, and files in memory (tmpfs), whose calls never wait, are
 * read and written at once.
 *
 *   read           fs.read | fs.readv, again from where it stopped
 *   write          fs.write | fs.writev; a durable one is followed by a sync
 *   flush          fdatasync, shared with all that ask meanwhile (file_sync.ts)
 *   discard        node:fs has no call for it: the addon's batch
 */
import { read, readSync, readv, readvSync, write, writeSync, writev, writevSync } from 'node:fs'
import { IO, type NativeFile } from '../primitives.js'
import { DiskQueue, ERRNO, isTransient, MAX_RETRIES } from './disk_queue.js'
import type { FileSync } from './file_sync.js'
import type { InFlight } from './in_flight.js'
import type { IoBatch } from './io_batch.js'

type Moved = (error: NodeJS.ErrnoException | null, bytes: number) => void

export class FsQueue extends DiskQueue {
  readonly #file: NativeFile
  readonly #sync: FileSync
  readonly #batch: IoBatch
  /** By tag, made with an entry's first use: what node:fs calls back, and the buffers of its last call. */
  readonly #callbacks: (Moved | undefined)[] = []
  readonly #views: (Uint8Array[] | undefined)[] = []

  constructor(file: NativeFile, sync: FileSync, batch: IoBatch, onComplete: () => void) {
    super(onComplete)
    this.#file = file
    this.#sync = sync
    this.#batch = batch
  }

  submit(batch: readonly InFlight[]): void {
    for (let i = 0; i < batch.length; i++) this.#start(batch[i]!)
  }

  close(): void {}

  #start(item: InFlight): void {
    item.done = 0
    item.tries = 0
    if (item.io !== IO.read && this.#sync.failed) {
      this.complete(item, ERRNO.io)
      return
    }
    switch (item.io) {
      case IO.read:
      case IO.write:
      case IO.durableWrite:
        if (this.#file.inMemory) this.#moveNow(item)
        else this.#move(item)
        break
      case IO.flush:
        this.#askSync(item)
        break
      default:
        this.#batch.add(this, this.#file.file, item)
    }
  }

  /** Asks for what is left of the transfer. */
  #move(item: InFlight): void {
    this.#callbacks[item.tag] ??= (error, bytes) => {
      const errno = error === null ? this.#advance(item, bytes) : this.#failed(item, error)
      if (errno === AGAIN) this.#move(item)
      else this.#finish(item, errno)
    }
    const done = this.#callbacks[item.tag]!
    const { fd } = this.#file
    const reads = item.io === IO.read
    const position = item.offset + item.done
    if (item.pieceCount === 1) {
      const { regions, starts, lengths } = item.arrays
      const { bytes } = regions[0]!
      const start = starts[0]! + item.done
      const length = lengths[0]! - item.done
      if (reads) read(fd, bytes, start, length, position, done)
      else write(fd, bytes, start, length, position, done)
      return
    }
    const views = this.#viewsOf(item)
    if (reads) readv(fd, views, position, done)
    else writev(fd, views, position, done)
  }

  /** The same, on a file whose calls never wait. */
  #moveNow(item: InFlight): void {
    let errno: number
    do {
      try {
        errno = this.#advance(item, this.#moveSync(item))
      } catch (error) {
        errno = this.#failed(item, error as NodeJS.ErrnoException)
      }
    } while (errno === AGAIN)
    this.#finish(item, errno, true)
  }

  #moveSync(item: InFlight): number {
    const { fd } = this.#file
    const reads = item.io === IO.read
    const position = item.offset + item.done
    if (item.pieceCount > 1) {
      const views = this.#viewsOf(item)
      return reads ? readvSync(fd, views, position) : writevSync(fd, views, position)
    }
    const { regions, starts, lengths } = item.arrays
    const { bytes } = regions[0]!
    const start = starts[0]! + item.done
    const length = lengths[0]! - item.done
    return reads
      ? readSync(fd, bytes, start, length, position)
      : writeSync(fd, bytes, start, length, position)
  }

  /** Views of the memory that is left, in an array that the entry keeps for its next call. */
  #viewsOf(item: InFlight): Uint8Array[] {
    this.#views[item.tag] ??= []
    const views = this.#views[item.tag]!
    views.length = 0
    const { regions, starts, lengths } = item.arrays
    let skip = item.done
    for (let i = 0; i < item.pieceCount; i++) {
      const length = lengths[i]!
      if (skip < length) {
        const { bytes } = regions[i]!
        const start = starts[i]!
        const whole = skip === 0 && length === bytes.length
        views.push(whole ? bytes : bytes.subarray(start + skip, start + length))
      }
      skip = Math.max(0, skip - length)
    }
    return views
  }

  /** After a call that moved bytes: 0 when all are moved, AGAIN, or the errno that the transfer ends with. */
  #advance(item: InFlight, bytes: number): number {
    item.tries = 0
    if (item.done + bytes >= item.length) return 0
    // No progress is the end of the file, and an error for a disk.
    const usable = bytes - (bytes % this.#file.granule)
    if (usable === 0) return ERRNO.io
    item.done += usable
    return AGAIN
  }

  #failed(item: InFlight, error: NodeJS.ErrnoException): number {
    const errno = Math.abs(error.errno ?? ERRNO.io)
    return isTransient(errno) && item.tries++ < MAX_RETRIES ? AGAIN : errno
  }

  #finish(item: InFlight, errno: number, submitting = false): void {
    const durable = item.io === IO.durableWrite || (item.io === IO.write && this.#file.writeThrough)
    if (errno === 0 && durable) this.#askSync(item)
    else if (submitting) this.complete(item, errno)
    else this.completeLater(item, errno)
  }

  #askSync(item: InFlight): void {
    this.#sync.ask((errno) => this.completeLater(item, errno))
  }
}

/** Not an errno: the transfer goes on. */
const AGAIN = -1
