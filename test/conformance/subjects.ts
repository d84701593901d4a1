/**
 * Subjects: every disk that the conformance suite looks at. A new driver is a row in DRIVERS, a new filter one in
 * FILTERS, which is then put over each of the bases: over those in C++ it runs there, over a script as the script that
 * it is, too.
 */
import { createCipheriv, createDecipheriv } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { cache, readAhead } from '../../lib/disk/caching.js'
import { concat, partition, partitioned, slice, sliced } from '../../lib/disk/compose.js'
import { defineDisk, defineFilter } from '../../lib/disk/define.js'
import type { Disk, DiskFilter } from '../../lib/disk/disk.js'
import { file, memory, nullDisk, pattern, zero } from '../../lib/disk/drivers.js'
import { encrypt } from '../../lib/disk/encrypt.js'
import { delay, fault, log, throttle, verify } from '../../lib/disk/filters.js'
import { overlaid, overlay } from '../../lib/disk/overlay.js'
import type { MakeFilter } from '../../lib/disk/script.js'
import type { World } from '../support/product_world.js'
import { BASES, type Base, imageBase, type MadeBase, scriptedBase } from './bases.js'
import type { Conduct, Kind, Tally } from './exercise.js'
import type { Nature } from './shadow.js'

/** What the library exports to make disks with. */
export type Maker = (...args: never[]) => Disk | DiskFilter

/** A disk under test, and what is known of it. */
export interface Subject {
  readonly disk: Disk
  /** What its guest must find at first. */
  readonly content: Buffer
  readonly nature?: Nature
  readonly conduct?: Partial<Conduct>
  /** The same data again, once the disk is closed. */
  readonly again?: () => Disk
  /** Looks from outside at what is left, once the disk is closed. */
  readonly check?: (content: Buffer, tally: Tally) => void
}

/** A row: how a subject is made. */
export interface Row {
  readonly name: string
  /** What of the library it is about. */
  readonly of: readonly Maker[]
  make(world: World): Subject
}

/** Whole sectors, but not whole pages. */
export const SIZE = 2 * 1024 * 1024 + 5 * 512
const EVEN = 2 * 1024 * 1024

/** Bytes that differ from sector to sector. */
export function content(bytes: number, salt = 1): Buffer {
  const data = Buffer.alloc(bytes)
  for (let i = 0; i < bytes; i += 4) {
    data.writeUInt32LE((Math.imul(i + salt, 0x9e3779b1) ^ (i >>> 9)) >>> 0, i)
  }
  return data
}

function equal(found: Buffer, wanted: Buffer, what: string): void {
  if (found.equals(wanted)) return
  const at = found.findIndex((byte, i) => byte !== wanted[i])
  throw new Error(`${what}: byte ${at} of ${wanted.length} is ${found[at]}, not ${wanted[at]}`)
}

// ---------------------------------------------------------------------------------------------------------------------
// Drivers

/** A base as a subject of its own. */
function alone(base: Base, of: Maker): Row {
  return {
    name: base.name,
    of: [of],
    make(world) {
      const begins = base.blank ? Buffer.alloc(SIZE) : content(SIZE)
      const { disk, holds, again } = base.make(world, begins)
      return {
        disk,
        content: begins,
        ...(again && { again }),
        ...(holds && { check: (wanted) => equal(holds(), wanted, 'what is stored') }),
      }
    },
  }
}

/** SplitMix64's n-th number, by words: what a pattern is said to be. */
function patternBytes(bytes: number, seed: bigint): Buffer {
  const data = Buffer.alloc(bytes)
  const mask = (1n << 64n) - 1n
  for (let n = 0; n < bytes / 8; n++) {
    let z = (seed + (BigInt(n) + 1n) * 0x9e3779b97f4a7c15n) & mask
    z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & mask
    z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & mask
    data.writeBigUInt64LE(z ^ (z >> 31n), n * 8)
  }
  return data
}

const zeroes = Buffer.alloc(SIZE)

export const DRIVERS: readonly Row[] = [
  alone(BASES[0]!, memory),
  ...BASES.slice(1, 4).map((base) => alone(base, file)),
  ...BASES.slice(4).map((base) => alone(base, defineDisk as Maker)),
  {
    name: 'memory, sectors of 4096',
    of: [memory],
    make: () => ({ disk: memory(EVEN, { sectorSize: 4096 }), content: Buffer.alloc(EVEN) }),
  },
  {
    name: 'a file, sectors of 4096',
    of: [file],
    make(world) {
      const { disk, holds } = imageBase.make(world, content(EVEN))
      return {
        disk: file((disk.spec as { path: string }).path, { sectorSize: 4096 }),
        content: content(EVEN),
        check: (wanted) => equal(holds!(), wanted, 'what is stored'),
      }
    },
  },
  {
    name: 'a file that is only read',
    of: [file],
    make(world) {
      const { disk, holds } = imageBase.make(world, content(SIZE))
      return {
        disk: disk.asReadOnly(),
        content: content(SIZE),
        check: () => equal(holds!(), content(SIZE), 'what is stored'),
      }
    },
  },
  {
    name: 'null',
    of: [nullDisk],
    make: () => ({ disk: nullDisk(SIZE), content: zeroes, nature: 'forgets' }),
  },
  {
    name: 'zero',
    of: [zero],
    make: () => ({ disk: zero(SIZE), content: zeroes, nature: 'compares' }),
  },
  {
    name: 'pattern',
    of: [pattern],
    make: () => ({
      disk: pattern(SIZE, { seed: 77 }),
      content: patternBytes(SIZE, 77n),
      nature: 'compares',
    }),
  },
  {
    name: 'an overlay of a pattern',
    of: [overlay, overlaid],
    make: () => ({ disk: overlay(pattern(SIZE)), content: patternBytes(SIZE, 0n) }),
  },
  {
    name: 'a concatenation of a script and a file, which is a script, too',
    of: [concat],
    make(world) {
      const halves = [content(SIZE, 1), content(512 * 1024, 2)]
      const [first, second] = [
        scriptedBase.make(world, halves[0]!),
        imageBase.make(world, halves[1]!),
      ]
      return {
        disk: concat(first.disk, second.disk),
        content: Buffer.concat(halves),
        check(wanted) {
          equal(first.holds!(), wanted.subarray(0, SIZE), 'the first part')
          equal(second.holds!(), wanted.subarray(SIZE), 'the second part')
        },
      }
    },
  },
  {
    name: 'a concatenation of memory, a file and a part of another',
    of: [concat, slice],
    make(world) {
      const lengths = [512 * 1024 + 512, 700 * 512, 1024 * 1024]
      const parts = lengths.map((bytes, i) => content(bytes, i))
      parts[0]!.fill(0)
      const second = imageBase.make(world, parts[1]!)
      const around = content(2 * lengths[2]!, 9)
      parts[2]!.copy(around, 4096)
      const third = imageBase.make(world, around)
      return {
        disk: concat(
          memory(lengths[0]!),
          second.disk,
          slice(third.disk, { offset: 4096, length: lengths[2]! }),
        ),
        content: Buffer.concat(parts),
        check(wanted) {
          const last = lengths[0]! + lengths[1]!
          equal(second.holds!(), wanted.subarray(lengths[0]!, last), 'the second part')
          wanted.copy(around, 4096, last)
          equal(third.holds!(), around, 'the third part, and what is around it')
        },
      }
    },
  },
]

// ---------------------------------------------------------------------------------------------------------------------
// Filters

/** A filter over any disk, and how a guest's view and the disk below follow from each other. */
export interface FilterRow {
  readonly name: string
  readonly of: readonly Maker[]
  over(world: World): DiskFilter
  /** What the disk below holds at first; any bytes by default. */
  readonly below?: () => Buffer
  /** Not over a disk that begins as zeroes. */
  readonly needsContent?: boolean
  /** What the guest finds of what is below; the same by default. */
  readonly view?: (below: Buffer) => Buffer
  /** What is below in the end, when the guest has `content`. */
  readonly stored?: (content: Buffer, before: Buffer) => Buffer
  readonly conduct?: Partial<Conduct>
  readonly check?: (tally: Tally) => void
  /** What it keeps is not below, and is gone with it. */
  readonly forgetful?: boolean
}

/** The part of `below` that begins at `offset`. */
function part(offset: number, length: number): Pick<FilterRow, 'view' | 'stored'> {
  return {
    view: (below) => below.subarray(offset, offset + length),
    stored(held, before) {
      const after = Buffer.from(before)
      held.copy(after, offset)
      return after
    },
  }
}

const PARTITION = { first: 2048, sectors: 1500 }

/** A disk with one partition in an MBR. */
function partitionedDisk(): Buffer {
  const disk = content(SIZE)
  disk.fill(0, 446, 512)
  disk[450] = 0x83
  disk.writeUInt32LE(PARTITION.first, 454)
  disk.writeUInt32LE(PARTITION.sectors, 458)
  disk.writeUInt16LE(0xaa55, 510)
  return disk
}

/** As dm-crypt's aes-xts-plain64 has it, by another implementation's interface. */
function xts(key: Buffer, unit: number, ivOffset: number, encrypts: boolean) {
  return (data: Buffer): Buffer => {
    const units = Array.from({ length: data.length / unit }, (_, i) => {
      const iv = Buffer.alloc(16)
      iv.writeBigUInt64LE(BigInt(ivOffset) + BigInt((i * unit) / 512))
      const make = encrypts ? createCipheriv : createDecipheriv
      const cipher = make(`aes-${key.length * 4}-xts`, key, iv)
      return cipher.update(data.subarray(i * unit, (i + 1) * unit))
    })
    return Buffer.concat(units)
  }
}

function encrypted(
  name: string,
  keyBytes: 32 | 64,
  options: { sectorSize?: 512 | 4096; ivOffset?: number; discard?: boolean },
): FilterRow {
  const key = content(keyBytes, 3)
  const { sectorSize = 512, ivOffset = 0, discard = false } = options
  const size = SIZE - (SIZE % sectorSize)
  return {
    name,
    of: [encrypt],
    over: () => encrypt({ key, ...options }),
    below: () => content(size),
    view: xts(key, sectorSize, ivOffset, false),
    // What is discarded is zeroes below, and so noise above.
    ...(discard
      ? { conduct: { discards: 'anything' } }
      : { stored: xts(key, sectorSize, ivOffset, true) }),
  }
}

const through: MakeFilter = (next) => ({ ...next })

const inverted: MakeFilter = (next) => {
  const flip = (buf: Uint8Array) => {
    for (const [i, byte] of buf.entries()) buf[i] = byte ^ 0xff
    return buf
  }
  // A discard would leave what reads as ones.
  const { discard: _discard, ...rest } = next
  return {
    ...rest,
    async read(buf, offset, io) {
      await next.read(buf, offset, io)
      flip(buf)
    },
    write: (buf, offset, io) => next.write!(flip(Buffer.from(buf)), offset, io),
  }
}

/** Has the disk below write zeroes where its guest discards. */
const zeroing: MakeFilter = (next) => ({
  ...next,
  discard: (offset, length, io) => next.zero!(offset, length, io),
})

const isData = (kind: Kind) => kind === 'read' || kind === 'write' || kind === 'discard'

/** The lines of a log, which says how many requests of each kind there were. */
function checkLog(path: string, { kinds }: Tally): void {
  const lines = readFileSync(path, 'utf8').trimEnd().split('\n')
  const records = lines.map((line) => JSON.parse(line) as { op: string; error?: string })
  const count = (op: string) => records.filter((record) => record.op === op).length
  for (const op of ['read', 'discard'] as const) {
    // Long ones may come to a script in pieces, and a range of pages to the disk in one.
    if (count(op) < (kinds[op] ?? 0)) throw new Error(`${count(op)} of ${kinds[op]} ${op}s logged`)
  }
  if (records.some(({ error }) => error !== undefined)) throw new Error('an error was logged')
}

function logged(): FilterRow {
  let path = ''
  return {
    name: 'log',
    of: [log],
    over(world) {
      path = join(world.folder(), 'log.jsonl')
      return log({ path, records: 1 << 16 })
    },
    check: (tally) => checkLog(path, tally),
  }
}

export const FILTERS: readonly FilterRow[] = [
  {
    name: 'throttle',
    of: [throttle],
    over: () => throttle({ iops: 20_000, bps: '4GiB', burst: '1ms' }),
  },
  {
    name: 'delay',
    of: [delay],
    over: () => delay({ read: '1ms', write: '2ms', flush: '500us', discard: 1 }),
  },
  { name: 'a fault that never strikes', of: [fault], over: () => fault({ probability: 0 }) },
  {
    name: 'faults of one request in eight',
    of: [fault],
    over: () =>
      fault({ op: ['read', 'write', 'discard'], probability: 0.125, seed: 5, code: 'ENOSPC' }),
    // A barrier's data is written like any other.
    conduct: { mayFail: (kind) => isData(kind) || kind === 'barrier' || kind === 'flush' },
    check({ failed }) {
      if (failed === 0) throw new Error('no request failed')
    },
  },
  {
    name: 'faults in one place',
    of: [fault],
    over: () =>
      fault({ op: 'write', when: { offset: '256KiB', length: '64KiB', skip: 2, count: 9 } }),
    conduct: { mayFail: (kind) => kind !== 'read' && kind !== 'discard' },
    check({ failed }) {
      if (failed > 9) throw new Error(`${failed} faults, and 9 were wanted`)
    },
  },
  logged(),
  { name: 'verify', of: [verify], over: () => verify() },
  {
    name: 'verify by sectors, which only reports',
    of: [verify],
    over: () => verify({ blockSize: 512, onMismatch: 'report' }),
  },
  { name: 'a cache of half the disk', of: [cache], over: () => cache({ memory: '1MiB' }) },
  {
    name: 'a cache of the whole disk, written back at once',
    of: [cache],
    over: () => cache({ memory: '8MiB', writeBackAfter: '1ms' }),
  },
  {
    name: 'reading ahead',
    of: [readAhead],
    over: () => readAhead({ window: '256KiB', memory: '1MiB' }),
  },
  encrypted('encrypt', 64, {}),
  encrypted('encrypt with 128 bits, from another sector on', 32, { ivOffset: 12_345 }),
  encrypted('encrypt by 4096', 64, { sectorSize: 4096 }),
  encrypted('encrypt with discards', 64, { discard: true }),
  {
    name: 'a slice',
    of: [slice, sliced],
    over: () => sliced({ offset: 3 * 512, length: 1024 * 1024 + 512 }),
    ...part(3 * 512, 1024 * 1024 + 512),
  },
  {
    name: 'a partition',
    of: [partition, partitioned],
    over: () => partitioned(1),
    below: partitionedDisk,
    needsContent: true,
    ...part(PARTITION.first * 512, PARTITION.sectors * 512),
  },
  {
    name: 'an overlay in memory',
    of: [overlay, overlaid],
    over: () => overlaid({ granularity: '64KiB' }),
    stored: (_held, before) => before,
    forgetful: true,
  },
  {
    name: 'an overlay in a file',
    of: [overlay, overlaid],
    over: (world) => overlaid({ scratch: join(world.folder(), 'scratch') }),
    stored: (_held, before) => before,
  },
  {
    name: 'a filter that does nothing',
    of: [defineFilter],
    over: () => defineFilter('through', through),
  },
  {
    name: 'a filter that inverts',
    of: [defineFilter],
    over: () => defineFilter('inverted', inverted),
    view: (below) => Buffer.from(below.map((byte) => byte ^ 0xff)),
    stored: (held) => Buffer.from(held.map((byte) => byte ^ 0xff)),
  },
  {
    name: 'a filter that writes zeroes where it could discard',
    of: [defineFilter],
    over: () => defineFilter('zeroing', zeroing),
  },
  {
    name: 'four filters',
    of: [throttle, log, verify, slice],
    over: (world) => (disk) =>
      disk.with(
        sliced({ offset: 4096 }),
        verify(),
        log(join(world.folder(), 'log.jsonl')),
        throttle({ iops: 50_000 }),
      ),
    ...part(4096, SIZE - 4096),
  },
]

/** A filter over a base. */
export function over(base: Base, filter: FilterRow): Row {
  return {
    name: `${filter.name}, over ${base.name}`,
    of: filter.of,
    make(world) {
      const wanted = filter.below?.() ?? content(SIZE)
      const before = base.blank ? Buffer.alloc(wanted.length) : wanted
      const made: MadeBase = base.make(world, before)
      const { view = (below) => below, stored = (held) => held } = filter
      const make = filter.over(world)
      return {
        disk: make(made.disk),
        content: view(before),
        ...(filter.conduct && { conduct: filter.conduct }),
        ...(made.again && !filter.forgetful && { again: () => make(made.again!()) }),
        check(held, tally) {
          filter.check?.(tally)
          const known = filter.conduct === undefined
          if (made.holds && known) equal(made.holds(), stored(held, before), 'what is below')
        },
      }
    },
  }
}
