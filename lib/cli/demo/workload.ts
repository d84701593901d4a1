/**
 * Workload: random reads, writes, flushes and discards on a guest's disk, every byte that comes back compared with what
 * must be there. Runs in the guest's process; owns the shadow copy of the scratch area, and nothing else.
 *
 *   0 ............................ scratchFrom ............................ size (grows)
 *   │ the image: reads; writes of │ scratch: reads, writes of random bytes, │
 *   │ the very bytes it holds     │ discards; what must be there is shadowed│
 *
 * What the image must hold is read from a second copy of it. So its filesystem is written to all the time, and is
 * unchanged in the end; a write that went to the wrong place shows in either half.
 */
import type { FileHandle } from 'node:fs/promises'
import { VbdError } from '../../errors.js'
import { Random } from './random.js'

/** The disk as the guest has it. */
export interface GuestDisk {
  readonly properties: {
    readonly sizeBytes: number
    readonly sectorSize: number
    readonly discard: boolean
  }
  read(offset: number, length: number): Promise<Uint8Array>
  write(offset: number, data: Uint8Array): Promise<void>
  flush(): Promise<void>
  discard(offset: number, length: number): Promise<void>
}

export interface WorkloadOptions {
  /** What the disk holds below `scratchFrom`. */
  readonly reference: FileHandle
  /** First byte of the scratch area, a multiple of the sector size; the area reads as zeroes at first. */
  readonly scratchFrom: number
  readonly seconds: number
  /** It goes on, however long, until the disk has so many bytes: who resizes it may be late. */
  readonly untilBytes: number
  readonly seed: number
  /** Operations in flight. */
  readonly depth: number
  readonly signal: AbortSignal
  onProgress(tally: Tally): void
}

export interface Tally {
  readonly reads: number
  readonly writes: number
  readonly flushes: number
  readonly discards: number
  readonly bytesRead: number
  readonly bytesWritten: number
  readonly elapsedMs: number
}

type Kind = 'read' | 'write' | 'rewrite' | 'flush' | 'discard'

/** How often each kind comes, of a hundred. */
const MIX: readonly (readonly [Kind, number])[] = [
  ['read', 50],
  ['write', 25],
  ['rewrite', 10],
  ['discard', 10],
  ['flush', 5],
]

const MAX_OPERATION_BYTES = 256 * 1024
const PROGRESS_MS = 100

interface Range {
  readonly from: number
  readonly to: number
  readonly writes: boolean
}

/** One run on one disk. */
export class Workload {
  readonly #disk: GuestDisk
  readonly #options: WorkloadOptions
  readonly #random: Random
  /** Only ranges that touch no other that is being written are in flight together. */
  readonly #busy = new Set<Range>()
  readonly #tally = { reads: 0, writes: 0, flushes: 0, discards: 0, bytesRead: 0, bytesWritten: 0 }
  #shadow = Buffer.alloc(0)
  #startedMs = 0
  #toldMs = 0

  constructor(disk: GuestDisk, options: WorkloadOptions) {
    this.#disk = disk
    this.#options = options
    this.#random = new Random(options.seed)
  }

  /**
   * Runs for `seconds` and until the disk has grown, or until `signal` fires. Rejects with ERR_VBD_IO at the first
   * wrong byte, and with the disk's own errors.
   */
  async run(): Promise<Tally> {
    const { depth, seconds, untilBytes, signal } = this.#options
    this.#startedMs = performance.now()
    const endMs = this.#startedMs + seconds * 1000
    let failed = false
    const isOver = () => performance.now() >= endMs && this.#disk.properties.sizeBytes >= untilBytes
    const lane = async () => {
      while (!isOver() && !signal.aborted && !failed) {
        try {
          await this.#step()
        } catch (thrown) {
          failed = true
          throw thrown
        }
      }
    }
    const lanes = await Promise.allSettled(Array.from({ length: depth }, lane))
    const broken = lanes.find((one) => one.status === 'rejected')
    if (broken !== undefined) throw broken.reason
    return this.tally
  }

  get tally(): Tally {
    return { ...this.#tally, elapsedMs: performance.now() - this.#startedMs }
  }

  /**
   * Reads the whole disk once more, from front to back; of one of more than `leastBytes` only what it can in
   * `seconds`, and those. Resolves to the bytes that were compared.
   */
  async verify(seconds: number, leastBytes: number): Promise<number> {
    const endMs = performance.now() + seconds * 1000
    // The resize may have come after the last operation.
    this.#grow()
    const { sizeBytes } = this.#disk.properties
    const { scratchFrom, signal } = this.#options
    let at = 0
    const isLate = () => at >= leastBytes && performance.now() >= endMs
    while (at < sizeBytes && !isLate() && !signal.aborted) {
      const end = at < scratchFrom ? scratchFrom : sizeBytes
      const length = Math.min(1024 * 1024, end - at)
      await this.#compare(at, await this.#disk.read(at, length))
      at += length
    }
    return at
  }

  async #step(): Promise<void> {
    this.#grow()
    const kind = this.#pick()
    if (kind === 'flush') {
      await this.#disk.flush()
      this.#tally.flushes++
    } else {
      const range = this.#reserve(kind)
      try {
        await this.#perform(kind, range.from, range.to - range.from)
      } finally {
        this.#busy.delete(range)
      }
    }
    this.#tell()
  }

  async #perform(kind: Kind, offset: number, length: number): Promise<void> {
    const tally = this.#tally
    if (kind === 'read') {
      await this.#compare(offset, await this.#disk.read(offset, length))
      tally.reads++
      tally.bytesRead += length
    } else if (kind === 'discard') {
      await this.#disk.discard(offset, length)
      // The image is a file: what is discarded is punched out of it, and reads as zeroes.
      this.#shadowOf(offset, length).fill(0)
      tally.discards++
    } else {
      const data =
        kind === 'write' ? this.#random.bytes(length) : await this.#expected(offset, length)
      await this.#disk.write(offset, data)
      if (kind === 'write') this.#shadowOf(offset, length).set(data)
      tally.writes++
      tally.bytesWritten += length
    }
  }

  #pick(): Kind {
    let dice = this.#random.below(100)
    const kind = MIX.find(([, share]) => {
      dice -= share
      return dice < 0
    })![0]
    const { discard } = this.#disk.properties
    return kind === 'discard' && !discard ? 'write' : kind
  }

  /** A free range for an operation of this kind. There always is one: far fewer are in flight than fit. */
  #reserve(kind: Kind): Range {
    const { sizeBytes, sectorSize } = this.#disk.properties
    const { scratchFrom } = this.#options
    const scratch =
      kind === 'write' || kind === 'discard' || (kind === 'read' && this.#random.below(2) === 0)
    const first = scratch ? scratchFrom : 0
    const end = scratch ? sizeBytes : scratchFrom
    const writes = kind !== 'read'
    for (;;) {
      const sectors = (end - first) / sectorSize
      const count = 1 + this.#random.below(Math.min(MAX_OPERATION_BYTES / sectorSize, sectors))
      const from = first + this.#random.below(sectors - count + 1) * sectorSize
      const range = { from, to: from + count * sectorSize, writes }
      if ([...this.#busy].every((other) => !clash(range, other))) {
        this.#busy.add(range)
        return range
      }
    }
  }

  /** The scratch area follows the disk when it was resized: what is new holds zeroes. */
  #grow(): void {
    const bytes = this.#disk.properties.sizeBytes - this.#options.scratchFrom
    if (bytes <= this.#shadow.length) return
    const grown = Buffer.alloc(bytes)
    this.#shadow.copy(grown)
    this.#shadow = grown
  }

  /** Looked up when it is needed and not before: growing replaces the buffer. */
  #shadowOf(offset: number, length: number): Buffer {
    const from = offset - this.#options.scratchFrom
    return this.#shadow.subarray(from, from + length)
  }

  async #expected(offset: number, length: number): Promise<Buffer> {
    if (offset >= this.#options.scratchFrom) return this.#shadowOf(offset, length)
    const data = Buffer.alloc(length)
    const { bytesRead } = await this.#options.reference.read(data, 0, length, offset)
    if (bytesRead !== length) {
      throw new VbdError(
        'ERR_VBD_IO',
        `the second copy of the image ends at byte ${offset + bytesRead}`,
      )
    }
    return data
  }

  async #compare(offset: number, got: Uint8Array): Promise<void> {
    const expected = await this.#expected(offset, got.length)
    if (expected.equals(got)) return
    const at = expected.findIndex((byte, i) => byte !== got[i])
    throw new VbdError(
      'ERR_VBD_IO',
      `wrong byte ${offset + at} in a read of ${got.length} bytes at ${offset}: ${got[at]}, not ${expected[at]} ` +
        `(seed ${this.#options.seed})`,
    )
  }

  #tell(): void {
    const nowMs = performance.now()
    if (nowMs - this.#toldMs < PROGRESS_MS) return
    this.#toldMs = nowMs
    this.#options.onProgress(this.tally)
  }
}

function clash(a: Range, b: Range): boolean {
  return (a.writes || b.writes) && a.from < b.to && b.from < a.to
}
