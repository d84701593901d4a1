/**
 * MemoryDisk: a disk in this process's memory; gone with it. Sparse: a chunk that was never written, or was discarded
 * whole, takes no memory and reads as zeroes.
 *
 *   #chunks   chunk number → its pages, each a view of 4096 bytes made once, so that a whole page moves without
 *             another view being made for it; undefined: zeroes
 */
import { VbdError } from '../../errors.js'
import type { DiskInfo } from '../engine.js'
import { IO } from '../primitives.js'
import { DiskQueue, ERRNO } from './disk_queue.js'
import type { InFlight } from './in_flight.js'
import { checkDiskSize, JsDisk } from './js_disk.js'
import { PAGE_BYTES } from './wire.js'

const CHUNK_PAGES = 64
const CHUNK_BYTES = CHUNK_PAGES * PAGE_BYTES
const LARGEST_BYTES = 2 ** 46

type Chunk = readonly Uint8Array[]

/** The bytes of the disk. */
class SparseBytes {
  readonly #chunks = new Map<number, Chunk>()

  /** Moves bytes between the disk at `offset` and memory. Both may be anywhere; neither crosses its end. */
  read(offset: number, bytes: Uint8Array, start: number, length: number): void {
    for (let moved = 0; moved < length; ) {
      const page = this.#find(offset + moved)
      const from = (offset + moved) % PAGE_BYTES
      const part = Math.min(length - moved, PAGE_BYTES - from)
      if (page === undefined) bytes.fill(0, start + moved, start + moved + part)
      else bytes.set(part === PAGE_BYTES ? page : page.subarray(from, from + part), start + moved)
      moved += part
    }
  }

  write(offset: number, bytes: Uint8Array, start: number, length: number): void {
    for (let moved = 0; moved < length; ) {
      const page = this.#find(offset + moved) ?? this.#make(offset + moved)
      const to = (offset + moved) % PAGE_BYTES
      const part = Math.min(length - moved, PAGE_BYTES - to)
      const at = start + moved
      page.set(part === bytes.length ? bytes : bytes.subarray(at, at + part), to)
      moved += part
    }
  }

  /** Makes bytes zeroes; whole chunks go. */
  clear(offset: number, length: number): void {
    const end = offset + length
    const firstWhole = Math.ceil(offset / CHUNK_BYTES)
    const lastWhole = Math.floor(end / CHUNK_BYTES)
    if (firstWhole >= lastWhole) {
      this.#zero(offset, end)
      return
    }
    this.#zero(offset, firstWhole * CHUNK_BYTES)
    this.#zero(lastWhole * CHUNK_BYTES, end)
    if (lastWhole - firstWhole < this.#chunks.size) {
      for (let chunk = firstWhole; chunk < lastWhole; chunk++) this.#chunks.delete(chunk)
      return
    }
    for (const chunk of this.#chunks.keys()) {
      if (chunk >= firstWhole && chunk < lastWhole) this.#chunks.delete(chunk)
    }
  }

  #zero(begin: number, end: number): void {
    for (let at = begin; at < end; ) {
      const from = at % PAGE_BYTES
      const part = Math.min(end - at, PAGE_BYTES - from)
      this.#find(at)?.fill(0, from, from + part)
      at += part
    }
  }

  #find(offset: number): Uint8Array | undefined {
    const chunk = this.#chunks.get(Math.floor(offset / CHUNK_BYTES))
    return chunk?.[Math.floor(offset / PAGE_BYTES) % CHUNK_PAGES]
  }

  #make(offset: number): Uint8Array {
    const memory = new ArrayBuffer(CHUNK_BYTES)
    const chunk: Uint8Array[] = []
    for (let page = 0; page < CHUNK_PAGES; page++) {
      chunk.push(new Uint8Array(memory, page * PAGE_BYTES, PAGE_BYTES))
    }
    this.#chunks.set(Math.floor(offset / CHUNK_BYTES), chunk)
    return chunk[Math.floor(offset / PAGE_BYTES) % CHUNK_PAGES]!
  }
}

class MemoryQueue extends DiskQueue {
  readonly #bytes: SparseBytes

  constructor(bytes: SparseBytes, onComplete: () => void) {
    super(onComplete)
    this.#bytes = bytes
  }

  submit(batch: readonly InFlight[]): void {
    for (let i = 0; i < batch.length; i++) {
      const item = batch[i]!
      this.complete(item, this.#run(item))
    }
  }

  close(): void {}

  #run(item: InFlight): number {
    switch (item.io) {
      case IO.read:
      case IO.write:
      case IO.durableWrite:
        this.#move(item)
        return 0
      case IO.discard:
        this.#bytes.clear(item.offset, item.length)
        return 0
      // As durable as this disk gets.
      case IO.flush:
        return 0
      default:
        return ERRNO.opNotSupp
    }
  }

  #move(item: InFlight): void {
    const { regions, starts, lengths } = item.arrays
    const reads = item.io === IO.read
    let { offset } = item
    for (let i = 0; i < item.pieceCount; i++) {
      const { bytes } = regions[i]!
      const length = lengths[i]!
      if (reads) this.#bytes.read(offset, bytes, starts[i]!, length)
      else this.#bytes.write(offset, bytes, starts[i]!, length)
      offset += length
    }
  }
}

export class MemoryDisk extends JsDisk {
  readonly #bytes = new SparseBytes()

  /** @throws ERR_VBD_ARGUMENT for a size that no disk has, ERR_VBD_UNSUPPORTED for one that is too large */
  constructor(sizeBytes: number, sectorSize: number, onClose: (disk: JsDisk) => void) {
    checkMemoryDiskSize(sizeBytes, sectorSize)
    super(
      {
        sizeBytes,
        sectorSize,
        physicalSectorSize: PAGE_BYTES,
        readOnly: false,
        canFlush: true,
        canDiscard: true,
        canSecureDiscard: false,
        discardGranularity: PAGE_BYTES,
        discardAlignment: 0,
        description: `memory(${sizeBytes} bytes)`,
      },
      onClose,
    )
  }

  openQueue(_vbd: string, onComplete: () => void): DiskQueue {
    return new MemoryQueue(this.#bytes, onComplete)
  }

  /** What is cut off is freed, and zeroes if the disk grows again. */
  protected resized(sizeBytes: number): DiskInfo {
    checkMemoryDiskSize(sizeBytes, this.info.sectorSize)
    const before = this.info.sizeBytes
    if (sizeBytes < before) this.#bytes.clear(sizeBytes, before - sizeBytes)
    return { ...this.info, sizeBytes }
  }

  protected shut(): void {
    this.#bytes.clear(0, this.info.sizeBytes)
  }
}

function checkMemoryDiskSize(sizeBytes: number, sectorSize: number): void {
  checkDiskSize(sizeBytes, sectorSize)
  if (sizeBytes <= LARGEST_BYTES) return
  const message = `a memory disk has at most ${LARGEST_BYTES} bytes`
  throw new VbdError('ERR_VBD_UNSUPPORTED', message, { remedy: 'make it smaller' })
}
