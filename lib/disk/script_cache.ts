/**
 * `cache` as a script, for chains in which a script lies below it: the same behaviour as native/stages/cache.h. Blocks
 * are kept with the sectors of them that are there, and those that are newer than below. Writing back, flushing,
 * discarding and resizing come one at a time; reads and writes at any time between.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { DiskError, type ForwardedIo, type MakeFilter, type OpenDisk } from './script.js'
import { settled } from './settled.js'

/** What `cache` is told. */
export interface CacheStage {
  readonly memoryBytes: number
  readonly writeBackMs: number
}

const BLOCK = 4096
/** Bytes that go up or down at a time. */
const RUN = 128 * 1024
const RUNS_AT_A_TIME = 8
const RETRY_MS = 1000

/** Of the sectors of a block, a bit each. */
type Mask = number

interface Block {
  readonly number: number
  readonly data: Buffer
  valid: Mask
  dirty: Mask
  /** On their way down, besides being here. */
  writing: Mask
  /** Reads of the whole block on their way up; they do not bring what is stale. */
  fillers: number
  stale: Mask
}

/** Write-back, in bounded memory. */
export function cacheStage(stage: CacheStage): MakeFilter<unknown> {
  return (next) => {
    const cache = new ScriptCache(next, stage)
    const {
      read: _read,
      write,
      flush: _flush,
      discard,
      zero: _zero,
      extents: _extents,
      ...rest
    } = next
    return {
      ...rest,
      read: (buf, offset, io) => cache.read(buf, offset, io),
      ...(write && {
        write: (buf, offset) => cache.write(buf, offset),
        flush: () => cache.flush(),
      }),
      ...(discard && { discard: (offset, length, io) => cache.discard(offset, length, io) }),
      ...(next.resize && { resize: (size) => cache.resize(size) }),
      ...(write && { close: () => cache.close() }),
    }
  }
}

class ScriptCache {
  readonly #next: OpenDisk
  readonly #sector: number
  readonly #capacity: number
  readonly #writeBackMs: number
  /** Those that were not used for the longest time first. */
  readonly #blocks = new Map<number, Block>()
  readonly #dirty = new Set<Block>()
  /** What is done one at a time. */
  #turn: Promise<unknown> = Promise.resolve()
  #timer: NodeJS.Timeout | undefined
  /** Writing back that was begun because somebody needs room. */
  #making: Promise<void> | undefined
  /** Of the last time that something could not be written back; it is not tried again before `until`. */
  #failure: { readonly thrown: unknown; readonly until: number } | undefined
  /** Nothing of what the disk below has is known to be durable. */
  #flushFailed = false

  constructor(next: OpenDisk, { memoryBytes, writeBackMs }: CacheStage) {
    this.#next = next
    this.#sector = next.sectorSize
    this.#capacity = Math.max(Math.floor(memoryBytes / BLOCK), 1)
    this.#writeBackMs = writeBackMs
  }

  async read(buf: Uint8Array, offset: number, io: ForwardedIo): Promise<void> {
    const end = offset + buf.length
    const running: Promise<void>[] = []
    for (let at = offset; at < end; ) {
      const stop = Math.min(end, blockEnd(at))
      if (this.#copyOut(buf.subarray(at - offset, stop - offset), at)) {
        at = stop
        continue
      }
      // Blocks in a row that are not here.
      let last = stop
      while (last < end && last - at < RUN && !this.#has(last, Math.min(end, blockEnd(last)))) {
        last = Math.min(end, blockEnd(last))
      }
      running.push(this.#fill(buf.subarray(at - offset, last - offset), at, io))
      at = last
    }
    await settled(running)
  }

  /** In memory alone: what has to be durable is followed by a flush. */
  async write(buf: Uint8Array, offset: number): Promise<void> {
    for (let at = offset; at < offset + buf.length; ) {
      const stop = Math.min(offset + buf.length, blockEnd(at))
      if (this.#flushFailed) throw new DiskError('EIO', 'an earlier flush failed')
      const block = this.#make(Math.floor(at / BLOCK))
      if (block === undefined) {
        // What is on its way up or down makes room in a later turn.
        await (this.#dirty.size > 0 ? this.#makeRoom() : nextTurn())
        continue
      }
      const inside = at % BLOCK
      block.data.set(buf.subarray(at - offset, stop - offset), inside)
      const sectors = this.#mask(inside, stop - at)
      block.valid |= sectors
      this.#markDirty(block, sectors)
      at = stop
    }
    if (this.#dirty.size > this.#capacity / 2) void this.#makeRoom().catch(() => {})
  }

  /** All that was written before is below, and that has flushed. */
  flush(): Promise<void> {
    return this.#inTurn(async () => {
      if (this.#flushFailed) throw new DiskError('EIO', 'an earlier flush failed')
      await this.#writeBack()
      try {
        await this.#next.flush?.()
      } catch (thrown) {
        this.#flushFailed = true
        throw thrown
      }
    })
  }

  /** Nothing is on its way down meanwhile, so nothing that is discarded comes back. */
  discard(offset: number, length: number, io: ForwardedIo): Promise<void> {
    return this.#inTurn(async () => {
      if (this.#flushFailed) throw new DiskError('EIO', 'an earlier flush failed')
      await this.#next.discard!(offset, length, io)
      this.#drop(offset, offset + length)
    })
  }

  resize(size: number): Promise<void> {
    return this.#inTurn(async () => {
      await this.#next.resize!(size)
      this.#drop(size, Number.POSITIVE_INFINITY)
    })
  }

  async close(): Promise<void> {
    try {
      await this.flush()
    } catch (cause) {
      const bytes = this.#dirty.size * BLOCK
      throw new Error(
        `the cache could not be written back: what was written since the last flush, ${bytes} bytes of it in the ` +
          'cache, is lost',
        { cause },
      )
    } finally {
      clearTimeout(this.#timer)
    }
  }

  #inTurn<T>(act: () => Promise<T>): Promise<T> {
    const done = this.#turn.then(act)
    this.#turn = done.catch(() => {})
    return done
  }

  /** What is dirty now, written below in runs; what fails stays dirty. */
  async #writeBack(): Promise<void> {
    const blocks = [...this.#dirty].sort((a, b) => a.number - b.number)
    clearTimeout(this.#timer)
    this.#timer = undefined
    const runs = this.#runsOf(blocks)
    const failures: unknown[] = []
    const worker = async () => {
      for (let run = runs.next(); !run.done; run = runs.next()) {
        try {
          await this.#writeRun(run.value)
        } catch (thrown) {
          failures.push(thrown)
        }
      }
    }
    await Promise.all(Array.from({ length: RUNS_AT_A_TIME }, worker))
    const failed = failures.length > 0
    this.#failure = failed
      ? { thrown: failures[0], until: performance.now() + RETRY_MS }
      : undefined
    if (this.#dirty.size > 0) this.#remind(failed ? RETRY_MS : this.#writeBackMs)
    if (failed) throw failures[0]
  }

  /** Dirty sectors in a row, each with its block; what lies beyond the end of the disk is dropped. */
  *#runsOf(blocks: readonly Block[]): Generator<[Block, Mask][]> {
    let run: [Block, Mask][] = []
    let end = -1
    for (const block of blocks) {
      for (const [first, sectors] of this.#parts(block)) {
        const begin = block.number * BLOCK + first * this.#sector
        if (begin >= this.#next.size) {
          this.#forget(block, sectors)
          continue
        }
        if (run.length > 0 && (begin !== end || run.length * BLOCK >= RUN)) {
          yield run
          run = []
        }
        run.push([block, sectors])
        end = begin + bits(sectors) * this.#sector
      }
    }
    if (run.length > 0) yield run
  }

  /** The dirty sectors of a block, in rows. */
  *#parts(block: Block): Generator<[number, Mask]> {
    const { dirty } = block
    const sectors = BLOCK / this.#sector
    for (let first = 0; first < sectors; first++) {
      let part = 0
      const begin = first
      for (; first < sectors && (dirty & (1 << first)) !== 0; first++) part |= 1 << first
      if (part !== 0) yield [begin, part]
    }
  }

  async #writeRun(run: readonly [Block, Mask][]): Promise<void> {
    const parts = run.map(([block, sectors]) => {
      const inside = first(sectors) * this.#sector
      block.writing |= sectors
      this.#markClean(block, sectors)
      return Buffer.from(block.data.subarray(inside, inside + bits(sectors) * this.#sector))
    })
    const [block, sectors] = run[0]!
    let written = false
    try {
      const offset = block.number * BLOCK + first(sectors) * this.#sector
      await this.#next.write!(parts.length === 1 ? parts[0]! : Buffer.concat(parts), offset)
      written = true
    } finally {
      for (const [each, mask] of run) {
        each.writing &= ~mask
        if (!written) this.#markDirty(each, mask)
      }
    }
  }

  /** Brings whole blocks, and keeps what nobody has changed meanwhile. */
  async #fill(buf: Uint8Array, offset: number, io: ForwardedIo): Promise<void> {
    const begin = offset - (offset % BLOCK)
    const end = Math.min(blockEnd(offset + buf.length - 1), this.#next.size)
    const blocks: (Block | undefined)[] = []
    for (let at = begin; at < end; at += BLOCK) {
      const block = this.#make(at / BLOCK)
      if (block !== undefined) block.fillers++
      blocks.push(block)
    }
    const data = Buffer.alloc(end - begin)
    let read = false
    try {
      await this.#next.read(data, begin, io)
      read = true
    } finally {
      for (const [i, block] of blocks.entries()) {
        if (block !== undefined) this.#filled(block, read ? data.subarray(i * BLOCK) : undefined)
      }
    }
    buf.set(data.subarray(offset - begin, offset - begin + buf.length))
  }

  /** What was written meanwhile is newer than what was read, for who asked, too. */
  #filled(block: Block, data: Buffer | undefined): void {
    const sectors = Math.min((data?.length ?? 0) / this.#sector, BLOCK / this.#sector)
    for (let i = 0; i < sectors; i++) {
      const [begin, end] = [i * this.#sector, (i + 1) * this.#sector]
      if ((block.valid & (1 << i)) !== 0) {
        data!.set(block.data.subarray(begin, end), begin)
      } else if ((block.stale & (1 << i)) === 0) {
        block.data.set(data!.subarray(begin, end), begin)
        block.valid |= 1 << i
      }
    }
    if (--block.fillers === 0) block.stale = 0
    this.#freeIfEmpty(block)
  }

  #has(begin: number, end: number): boolean {
    const block = this.#blocks.get(Math.floor(begin / BLOCK))
    const wanted = this.#mask(begin % BLOCK, end - begin)
    return block !== undefined && (block.valid & wanted) === wanted
  }

  #copyOut(buf: Uint8Array, at: number): boolean {
    if (!this.#has(at, at + buf.length)) return false
    const block = this.#make(Math.floor(at / BLOCK))!
    buf.set(block.data.subarray(at % BLOCK, (at % BLOCK) + buf.length))
    return true
  }

  /** The block, as the one that was used last; undefined where there is no room for it. */
  #make(number: number): Block | undefined {
    let block = this.#blocks.get(number)
    if (block === undefined) {
      if (this.#blocks.size >= this.#capacity && !this.#evict()) return undefined
      const nothing = { valid: 0, dirty: 0, writing: 0, fillers: 0, stale: 0 }
      block = { number, data: Buffer.allocUnsafeSlow(BLOCK), ...nothing }
    } else {
      this.#blocks.delete(number)
    }
    this.#blocks.set(number, block)
    return block
  }

  #evict(): boolean {
    for (const [number, { dirty, writing, fillers }] of this.#blocks) {
      if (dirty !== 0 || writing !== 0 || fillers > 0) continue
      this.#blocks.delete(number)
      return true
    }
    return false
  }

  /** @throws what keeps the disk below from taking what is dirty */
  #makeRoom(): Promise<void> {
    if (this.#failure !== undefined && performance.now() < this.#failure.until) {
      return Promise.reject(this.#failure.thrown)
    }
    this.#making ??= this.#inTurn(() => this.#writeBack()).finally(() => {
      this.#making = undefined
    })
    return this.#making
  }

  #markDirty(block: Block, sectors: Mask): void {
    block.dirty |= sectors
    this.#dirty.add(block)
    this.#remind(this.#writeBackMs)
  }

  #markClean(block: Block, sectors: Mask): void {
    block.dirty &= ~sectors
    if (block.dirty === 0) this.#dirty.delete(block)
  }

  #remind(ms: number): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined
      if (this.#dirty.size > 0) void this.#makeRoom().catch(() => {})
    }, ms).unref()
  }

  #drop(begin: number, end: number): void {
    for (const block of this.#blocks.values()) {
      const base = block.number * BLOCK
      const [from, to] = [Math.max(begin, base), Math.min(end, base + BLOCK)]
      if (from < to) this.#forget(block, this.#mask(from - base, to - from))
    }
  }

  #forget(block: Block, sectors: Mask): void {
    this.#markClean(block, sectors)
    block.valid &= ~sectors
    if (block.fillers > 0) block.stale |= sectors
    this.#freeIfEmpty(block)
  }

  #freeIfEmpty(block: Block): void {
    const { number, valid, writing, fillers } = block
    if (valid === 0 && writing === 0 && fillers === 0) this.#blocks.delete(number)
  }

  #mask(inside: number, bytes: number): Mask {
    return ((1 << (bytes / this.#sector)) - 1) << (inside / this.#sector)
  }
}

function blockEnd(at: number): number {
  return (Math.floor(at / BLOCK) + 1) * BLOCK
}

function bits(mask: Mask): number {
  let count = 0
  for (let rest = mask; rest !== 0; rest &= rest - 1) count++
  return count
}

function first(mask: Mask): number {
  return 31 - Math.clz32(mask & -mask)
}
