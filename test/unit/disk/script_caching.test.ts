/** `cache` and `readAhead` as scripts: the same promises as the native ones, over a disk that takes its time. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { openDefinition } from '../../../lib/disk/open_definition.js'
import { openDiskOver } from '../../../lib/disk/open_disk.js'
import { type DiskDefinition, DiskError, type MakeFilter } from '../../../lib/disk/script.js'
import { cacheStage } from '../../../lib/disk/script_cache.js'
import { readAheadStage } from '../../../lib/disk/script_read_ahead.js'

const SIZE = 64 * 4096 + 1024
const HOUR = 3_600_000

/** A disk whose operations each take another number of turns, and its data; `failing` operations are errors. */
async function slowDisk(...stages: MakeFilter<unknown>[]) {
  const state = {
    data: Buffer.alloc(SIZE),
    failing: new Set<string>(),
    seed: 1,
    flushes: 0,
    /** Called when a read has its data, and waited for. */
    held: async () => {},
  }
  const later = async (op: string) => {
    state.seed = (state.seed * 1103515245 + 12345) % 2147483648
    for (let turns = state.seed % 7; turns > 0; turns--) {
      await new Promise((resolve) => setImmediate(resolve))
    }
    if (state.failing.has(op)) throw new DiskError('ENOSPC')
  }
  const definition: DiskDefinition = {
    name: 'slow',
    size: () => state.data.length,
    async read(buf, offset) {
      await later('read')
      // What it holds in the middle of it.
      state.data.copy(buf, 0, offset, offset + buf.length)
      await state.held()
      await later('read')
    },
    async write(buf, offset) {
      const bytes = Buffer.from(buf)
      await later('write')
      bytes.copy(state.data, offset)
      await later('write')
    },
    async flush() {
      await later('flush')
      state.flushes++
    },
    async discard(offset, length) {
      await later('discard')
      state.data.fill(0, offset, offset + length)
      await later('discard')
    },
    resize(size) {
      const data = Buffer.alloc(size)
      state.data.copy(data)
      state.data = data
    },
  }
  let open = await openDefinition(definition as never)
  let disk = openDiskOver(open)
  for (const stage of stages) {
    open = await openDefinition(stage(disk))
    disk = openDiskOver(open)
  }
  return { disk, state, close: open.close }
}

const page = (value: number, bytes = 4096) => Buffer.alloc(bytes, value)

const STACKS: Readonly<Record<string, MakeFilter<unknown>[]>> = {
  cache: [cacheStage({ memoryBytes: 16 * 4096, writeBackMs: 1 })],
  'a patient cache': [cacheStage({ memoryBytes: 64 * 4096, writeBackMs: HOUR })],
  readAhead: [readAheadStage({ memoryBytes: 1 << 20, windowBytes: 256 * 1024 })],
  both: [
    cacheStage({ memoryBytes: 16 * 4096, writeBackMs: 1 }),
    readAheadStage({ memoryBytes: 1 << 20, windowBytes: 128 * 1024 }),
  ],
}

describe.each(Object.entries(STACKS))('%s', (_name, stages) => {
  it('never answers with what is older than an answered write', async () => {
    const sector = fc.integer({ min: 0, max: SIZE / 512 - 1 })
    const step = fc.record({
      op: fc.constantFrom('read', 'read', 'read', 'write', 'write', 'discard', 'flush'),
      at: sector,
      sectors: fc.integer({ min: 1, max: 40 }),
      // How many steps later it is waited for.
      depth: fc.integer({ min: 0, max: 6 }),
    })
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 60 }), async (steps) => {
        const { disk, state, close } = await slowDisk(...stages)
        // Of each sector, all values that it may have: those of answered writes and of writes under way.
        const may = Array.from({ length: SIZE / 512 }, () => new Set([0]))
        const writers = new Array<number>(SIZE / 512).fill(0)
        let value = 0
        const running: Promise<void>[] = []
        const change = async (
          first: number,
          count: number,
          to: number,
          go: () => Promise<void>,
        ) => {
          for (let i = first; i < first + count; i++) {
            may[i]!.add(to)
            writers[i]!++
          }
          await go()
          for (let i = first; i < first + count; i++) {
            // Of several at once any may be the last.
            if (--writers[i]! === 0 && may[i]!.size === 2) may[i] = new Set([to])
          }
        }
        for (const { op, at, sectors, depth } of steps) {
          const count = Math.min(sectors, SIZE / 512 - at)
          const [offset, bytes] = [at * 512, count * 512]
          const act = async () => {
            if (op === 'flush') return disk.flush!()
            if (op === 'discard') {
              return change(at, count, 0, () => disk.discard!(offset, bytes))
            }
            if (op === 'write') {
              value = (value % 250) + 1
              const own = value
              return change(at, count, own, () => disk.write!(page(own, bytes), offset))
            }
            const before = may.slice(at, at + count).map((values) => new Set(values))
            const buf = Buffer.alloc(bytes)
            await disk.read(buf, offset)
            for (let i = 0; i < count; i++) {
              const found = buf[i * 512]!
              expect(buf.subarray(i * 512, i * 512 + 512).every((byte) => byte === found)).toBe(
                true,
              )
              expect(before[i]!.has(found) || may[at + i]!.has(found)).toBe(true)
            }
          }
          running.push(act())
          if (running.length > depth) await running.shift()
        }
        await Promise.all(running)
        await disk.flush!()
        const all = Buffer.alloc(SIZE)
        await disk.read(all, 0)
        for (const [i, values] of may.entries()) expect(values.has(all[i * 512]!)).toBe(true)
        await close()
        expect(all.equals(state.data)).toBe(true)
      }),
      { numRuns: 15, seed: 4 },
    )
  })

  it('is fresh to those who read in a row while somebody writes and discards', async () => {
    const { disk, close } = await slowDisk(...stages)
    const blocks = Math.floor(SIZE / 4096)
    // What each block has been, and how far that was answered.
    const history = Array.from({ length: blocks }, () => [0])
    const answered = new Array<number>(blocks).fill(0)
    let seed = 7
    const below = (n: number) => {
      seed = (seed * 1103515245 + 12345) % 2147483648
      return Math.floor((seed / 2147483648) * n)
    }
    let done = false
    const writer = async () => {
      for (let i = 1; i <= 250; i++) {
        const count = 1 + below(4)
        const first = below(blocks - count)
        const value = i % 5 === 0 ? 0 : i
        for (let block = first; block < first + count; block++) history[block]!.push(value)
        if (value === 0) await disk.discard!(first * 4096, count * 4096)
        else await disk.write!(page(value, count * 4096), first * 4096)
        for (let block = first; block < first + count; block++) {
          answered[block] = history[block]!.length - 1
        }
      }
      done = true
    }
    const reader = async () => {
      while (!done) {
        // What is in memory is answered at once: others have their turn.
        await new Promise((resolve) => setImmediate(resolve))
        const step = 1 + below(4)
        for (let block = 0; block + step <= blocks && !done; block += step) {
          const since = answered.slice(block, block + step)
          const buf = page(255, step * 4096)
          await disk.read(buf, block * 4096)
          for (let i = 0; i < step; i++) {
            const found = buf.subarray(i * 4096, (i + 1) * 4096)
            const allowed = history[block + i]!.slice(since[i])
            expect(allowed).toContain(found[0])
            expect(allowed).toContain(found[4095])
          }
        }
      }
    }
    await Promise.all([writer(), reader(), reader()])
    await close()
  })
})

describe('cache', () => {
  it('keeps what cannot be written, says so with every flush, and writes it later', async () => {
    const { disk, state, close } = await slowDisk(
      cacheStage({ memoryBytes: 16 * 4096, writeBackMs: HOUR }),
    )
    await disk.write!(page(7), 4096)
    state.failing.add('write')
    await expect(disk.flush!()).rejects.toThrow('ENOSPC')
    await expect(disk.flush!()).rejects.toThrow('ENOSPC')
    const found = page(0)
    await disk.read(found, 4096)
    expect(found.equals(page(7))).toBe(true)
    // No room: whoever writes is told.
    await expect(
      (async () => {
        for (let at = 0; at < 32 * 4096; at += 4096) await disk.write!(page(3), at)
      })(),
    ).rejects.toThrow('ENOSPC')
    state.failing.delete('write')
    await disk.flush!()
    expect(state.data.subarray(4096, 4097)[0]).toBe(3)
    await close()
  })

  it('never calls a flush a success after one that failed below', async () => {
    const { disk, state, close } = await slowDisk(
      cacheStage({ memoryBytes: 16 * 4096, writeBackMs: HOUR }),
    )
    await disk.write!(page(7), 4096)
    state.failing.add('flush')
    await expect(disk.flush!()).rejects.toThrow('ENOSPC')
    state.failing.delete('flush')
    await expect(disk.flush!()).rejects.toThrow('earlier flush')
    await expect(disk.write!(page(7), 0)).rejects.toThrow('earlier flush')
    await expect(close()).rejects.toThrow('lost')
  })

  it('does not keep what was discarded while it was on its way', async () => {
    const { disk, state } = await slowDisk(
      cacheStage({ memoryBytes: 16 * 4096, writeBackMs: HOUR }),
    )
    state.data.fill(5)
    state.held = async () => {
      state.held = async () => {}
      await disk.discard!(0, 8192)
    }
    const found = page(9)
    await disk.read(found, 4096)
    await disk.read(found, 4096)
    expect(found.equals(page(0))).toBe(true)
  })

  it('writes back at the end, and is no longer than its disk', async () => {
    const { disk, state, close } = await slowDisk(
      cacheStage({ memoryBytes: 16 * 4096, writeBackMs: HOUR }),
    )
    await disk.write!(page(1), 0)
    await disk.write!(page(2, 2048), 8 * 4096)
    await disk.resize!(8 * 4096 + 512)
    await disk.resize!(SIZE)
    const found = page(9, 2048)
    await disk.read(found, 8 * 4096)
    expect(found.subarray(0, 512).every((byte) => byte === 2)).toBe(true)
    expect(found.subarray(512).every((byte) => byte === 0)).toBe(true)
    await close()
    expect(state.data.subarray(0, 4096).equals(page(1))).toBe(true)
    expect(state.flushes).toBeGreaterThan(0)
  })
})

describe('readAhead', () => {
  it('has read what is asked for in a row before it is, and no more memory than it may', async () => {
    const bytes = 4 << 20
    const reads: number[] = []
    const definition: DiskDefinition = {
      name: 'counted',
      size: bytes,
      read(buf, offset) {
        reads.push(buf.length)
        for (let i = 0; i < buf.length; i += 512) buf.writeUInt32LE(offset + i, i)
      },
    }
    const below = openDiskOver(await openDefinition(definition as never))
    const stage = readAheadStage({ memoryBytes: 1 << 20, windowBytes: 512 * 1024 })
    const open = await openDefinition(stage(below))
    const disk = openDiskOver(open)
    for (let at = 0; at < bytes; at += 4096) {
      const buf = page(0)
      await disk.read(buf, at)
      expect(buf.readUInt32LE(512)).toBe(at + 512)
    }
    expect(reads.filter((length) => length === 4096).length).toBeLessThanOrEqual(2)
    expect(reads.length).toBeLessThanOrEqual(2 + Math.ceil(bytes / (128 * 1024)) + 1)
    await open.close()
  })
})
