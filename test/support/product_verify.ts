/**
 * VerifiedDisk: random reads, writes, flushes and discards on a disk, each read checked against what must be there.
 *
 * Each sector's bytes follow from its number and its generation, so that a sector of another place or of another time
 * is told apart; the model is one generation per sector. Ranges in flight at the same time never overlap, as under a
 * file system. Deterministic for a seed, but for the order in which answers come.
 */
import type { DiskIo } from '../../lib/testing/disk_io.js'

const SECTOR = 512
const WORDS = SECTOR / 4

/** xorshift32: small, fast, the same everywhere. */
export class Random {
  #state: number

  constructor(seed: number) {
    this.#state = (seed | 0) === 0 ? 0x9e3779b9 : seed | 0
  }

  /** 0 .. below-1. */
  below(below: number): number {
    let x = this.#state
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    this.#state = x
    return (x >>> 0) % below
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)]!
  }
}

/** What a VerifiedDisk needs of a disk; a Frontend has it. */
export type Target = Pick<DiskIo, 'read' | 'write' | 'flush' | 'discard' | 'has'>

export interface VerifyOptions {
  readonly seed: number
  /** The part of the disk that is used. */
  readonly firstSector?: number
  readonly sectors: number
  /** Of the largest operation, in sectors. 256 by default. */
  readonly maxSectors?: number
  /** Of every offset and length, in sectors. 1 by default. */
  readonly alignment?: number
  /** Discards as well, in multiples of 4 KiB. True by default. */
  readonly discards?: boolean
  /** Flushes and writes with FUA as well. True by default. */
  readonly flushes?: boolean
}

/** Generation of sectors that were discarded: zeroes, or what was there before. */
interface Discarded {
  readonly before: number
}

export class VerifiedDisk {
  readonly #disk: Target
  readonly #options: Required<VerifyOptions>
  readonly #random: Random
  readonly #generations: Uint32Array
  readonly #discarded = new Map<number, Discarded>()
  readonly #busy = new Set<{ readonly from: number; readonly to: number }>()
  #generation = 0
  /** Operations done. */
  done = 0

  constructor(disk: Target, options: VerifyOptions) {
    this.#disk = disk
    this.#options = {
      firstSector: 0,
      maxSectors: 256,
      alignment: 1,
      discards: true,
      flushes: true,
      ...options,
    }
    this.#random = new Random(options.seed)
    this.#generations = new Uint32Array(options.sectors)
  }

  /** Takes in more of the disk, which must be zeroes. */
  grow(sectors: number): VerifiedDisk {
    const grown = new VerifiedDisk(this.#disk, { ...this.#options, sectors })
    grown.#generations.set(this.#generations)
    for (const [sector, before] of this.#discarded) grown.#discarded.set(sector, before)
    grown.#generation = this.#generation
    return grown
  }

  /** The same disk reached in another way: through another guest, or another backend. */
  on(disk: Target): VerifiedDisk {
    const moved = new VerifiedDisk(disk, {
      ...this.#options,
      seed: this.#random.below(2 ** 31) + 1,
    })
    moved.#generations.set(this.#generations)
    for (const [sector, before] of this.#discarded) moved.#discarded.set(sector, before)
    moved.#generation = this.#generation
    return moved
  }

  /** `depth` operations at a time, `count` in all, or until the signal fires. Rejects with the first wrong byte. */
  async run(limits: { count?: number; depth?: number; signal?: AbortSignal }): Promise<void> {
    const { count = Number.POSITIVE_INFINITY, depth = 8, signal } = limits
    let started = 0
    let failed = false
    const worker = async () => {
      while (!failed && started < count && signal?.aborted !== true) {
        started++
        try {
          await this.#one()
        } catch (error) {
          failed = true
          throw error
        }
        this.done++
      }
    }
    const results = await Promise.allSettled(Array.from({ length: depth }, worker))
    for (const result of results) if (result.status === 'rejected') throw result.reason
  }

  /** Reads everything once more. */
  async check(): Promise<void> {
    const { sectors } = this.#options
    const step = 1024
    for (let from = 0; from < sectors; from += step) {
      await this.#read(from, Math.min(step, sectors - from))
    }
  }

  async #one(): Promise<void> {
    const range = this.#choose()
    // A depth that no room is left for simply waits for its turn.
    if (range === undefined) return await new Promise<void>((resolve) => setImmediate(resolve))
    this.#busy.add(range)
    try {
      await this.#act(range.from, range.to - range.from)
    } finally {
      this.#busy.delete(range)
    }
  }

  #choose(): { from: number; to: number } | undefined {
    const { sectors, maxSectors, alignment } = this.#options
    for (let attempt = 0; attempt < 20; attempt++) {
      const most = this.#random.below(4) === 0 ? maxSectors : Math.min(16, maxSectors)
      const length = (1 + this.#random.below(Math.ceil(most / alignment))) * alignment
      const from = this.#random.below(Math.floor(sectors / alignment)) * alignment
      const to = Math.min(sectors, from + length)
      if (![...this.#busy].some((other) => from < other.to && other.from < to)) return { from, to }
    }
    return undefined
  }

  async #act(from: number, count: number): Promise<void> {
    const { flushes, discards } = this.#options
    const dice = this.#random.below(100)
    if (dice < 45) return await this.#read(from, count)
    if (dice < 90) return await this.#write(from, count, flushes && dice < 48)
    if (dice < 95 && flushes) return await this.#disk.flush()
    if (discards && this.#disk.has('discard')) return await this.#discard(from, count)
    await this.#write(from, count, false)
  }

  async #write(from: number, count: number, fua: boolean): Promise<void> {
    const generation = ++this.#generation
    const data = Buffer.alloc(count * SECTOR)
    for (let i = 0; i < count; i++) this.#fill(data, i, from + i, generation)
    await this.#disk.write(this.#offset(from), data, { fua })
    for (let i = 0; i < count; i++) {
      this.#generations[from + i] = generation
      this.#discarded.delete(from + i)
    }
  }

  async #discard(from: number, count: number): Promise<void> {
    const absolute = this.#options.firstSector + from
    const start = Math.ceil(absolute / 8) * 8 - this.#options.firstSector
    const end = Math.floor((absolute + count) / 8) * 8 - this.#options.firstSector
    if (end <= start) return
    await this.#disk.discard(this.#offset(start), (end - start) * SECTOR)
    for (let sector = start; sector < end; sector++) {
      const before = this.#discarded.get(sector)?.before ?? this.#generations[sector]!
      this.#discarded.set(sector, { before })
    }
  }

  async #read(from: number, count: number): Promise<void> {
    const found = await this.#disk.read(this.#offset(from), count * SECTOR)
    const wanted = Buffer.alloc(count * SECTOR)
    for (let i = 0; i < count; i++) this.#fill(wanted, i, from + i, this.#generations[from + i]!)
    if (found.equals(wanted)) return
    for (let i = 0; i < count; i++) this.#checkSector(found, i, from + i)
  }

  #checkSector(found: Buffer, at: number, sector: number): void {
    const bytes = found.subarray(at * SECTOR, (at + 1) * SECTOR)
    const wanted = Buffer.alloc(SECTOR)
    const discarded = this.#discarded.get(sector)
    if (discarded !== undefined && bytes.equals(wanted)) return
    const generation = discarded?.before ?? this.#generations[sector]!
    this.#fill(wanted, 0, sector, generation)
    if (bytes.equals(wanted)) return
    const absolute = this.#options.firstSector + sector
    const wrong = bytes.findIndex((byte, i) => byte !== wanted[i])
    const start = bytes.subarray(0, 16).toString('hex')
    throw new Error(
      `sector ${absolute} byte ${wrong} is wrong: want generation ${generation}, ${wanted.subarray(0, 16).toString('hex')}, found ${start}`,
    )
  }

  #offset(sector: number): number {
    return (this.#options.firstSector + sector) * SECTOR
  }

  /** Generation 0 is zeroes: what was never written. */
  #fill(buffer: Buffer, at: number, sector: number, generation: number): void {
    if (generation === 0) return
    const words = new Uint32Array(buffer.buffer, buffer.byteOffset + at * SECTOR, WORDS)
    const absolute = this.#options.firstSector + sector
    words[0] = absolute
    words[1] = generation
    let x =
      Math.imul(absolute + 1, 0x9e3779b1) ^ Math.imul(generation, 0x85ebca6b) ^ this.#options.seed
    for (let i = 2; i < WORDS; i++) {
      x = (Math.imul(x, 1664525) + 1013904223) | 0
      words[i] = x
    }
  }
}
