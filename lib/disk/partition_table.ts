/**
 * Partition tables, MBR and GPT, as far as it takes to find a partition. Strict: what contradicts itself or the disk is
 * refused, never guessed. Pure but for the reads of the disk that are handed in.
 *
 * MBR: 512 bytes, four entries at 446, 0x55aa at 510; an extended entry begins a chain of tables of the same form.
 * GPT: UEFI specification 2.10, section 5.3; where the table at the beginning is damaged, the one at the end is used.
 */
import { crc32 } from 'node:zlib'
import { VbdError } from '../errors.js'
import type { DiskSpec } from './spec.js'
import { partsOf, pathOf } from './spec.js'

/** What a disk has to offer for its table to be read. Offsets and lengths are whole sectors. */
export interface ReadableDisk {
  readonly sizeBytes: number
  readonly sectorSize: number
  read(offset: number, length: number): Promise<Buffer>
}

/** Where a partition is, in bytes. */
export interface PartitionExtent {
  readonly number: number
  readonly offsetBytes: number
  readonly lengthBytes: number
}

const EXTENDED = [0x05, 0x0f, 0x85]
const PROTECTIVE = 0xee
/** No chain of logical partitions is longer. */
const MAX_LOGICAL = 124
const MAX_GPT_BYTES = 1 << 20

/**
 * Every partition of a disk.
 *
 * @throws ERR_VBD_BACKING where there is no table, or none that can be trusted
 */
export async function readPartitions(disk: ReadableDisk): Promise<PartitionExtent[]> {
  const first = await sectorAt(disk, 0)
  if (first.readUInt16LE(510) !== 0xaa55) throw broken('there is no partition table on it')
  const entries = mbrEntries(first)
  if (entries.some(({ type }) => type === PROTECTIVE)) return readGpt(disk)
  const found: PartitionExtent[] = []
  for (const { index, type, start, count } of entries) {
    if (type === 0) continue
    const extent = checked(disk, index + 1, start, count)
    if (EXTENDED.includes(type)) found.push(...(await readLogical(disk, start, count)))
    else found.push(extent)
  }
  return found.sort((a, b) => a.number - b.number)
}

/**
 * The spec with every partition replaced by the slice that it is today.
 *
 * @param open opens the disk below a partition, for as long as `use` runs
 * @throws ERR_VBD_BACKING for a table that cannot be used, ERR_VBD_NOT_FOUND for a partition that it does not have
 */
export async function resolvePartitions(
  spec: DiskSpec,
  open: <T>(spec: DiskSpec, use: (disk: ReadableDisk) => Promise<T>) => Promise<T>,
): Promise<DiskSpec> {
  if (partsOf(spec).length === 0) return spec
  if (spec.driver === 'concat') {
    const parts: DiskSpec[] = []
    for (const part of spec.parts) parts.push(await resolvePartitions(part, open))
    return { ...spec, parts }
  }
  if (!('base' in spec)) return spec
  const base = await resolvePartitions(spec.base, open)
  if (spec.driver !== 'partition') return { ...spec, base }
  const path = pathOf(base)
  try {
    const extents = await open(base, readPartitions)
    const extent = extents.find(({ number }) => number === spec.number)
    if (extent === undefined) throw missing(spec.number, extents)
    const { offsetBytes, lengthBytes } = extent
    return { driver: 'slice', base, offsetBytes, lengthBytes }
  } catch (thrown) {
    if (!(thrown instanceof VbdError) || thrown.path !== undefined || path === undefined) {
      throw thrown
    }
    const { code, message, remedy } = thrown
    throw new VbdError(code, `${path}: ${message}`, {
      path,
      ...(remedy === undefined ? {} : { remedy }),
    })
  }
}

interface MbrEntry {
  readonly index: number
  readonly type: number
  /** In sectors. */
  readonly start: number
  readonly count: number
}

function mbrEntries(sector: Buffer): MbrEntry[] {
  return [0, 1, 2, 3].map((index) => {
    const at = 446 + index * 16
    const status = sector[at]!
    // The boot sector of a file system ends like a table, too.
    if (status !== 0 && status !== 0x80) throw broken('what is in its first sector is no table')
    const type = sector[at + 4]!
    return { index, type, start: sector.readUInt32LE(at + 8), count: sector.readUInt32LE(at + 12) }
  })
}

/** The chain of tables in an extended partition: each has one partition, and where the next table is. */
async function readLogical(
  disk: ReadableDisk,
  extended: number,
  count: number,
): Promise<PartitionExtent[]> {
  const found: PartitionExtent[] = []
  for (let table = extended; found.length < MAX_LOGICAL; ) {
    const sector = await sectorAt(disk, table * disk.sectorSize)
    if (sector.readUInt16LE(510) !== 0xaa55) throw broken('its extended partition has no table')
    const [own, link] = mbrEntries(sector) as [MbrEntry, MbrEntry]
    if (own.type !== 0) {
      const extent = checked(disk, 5 + found.length, table + own.start, own.count)
      if (table + own.start + own.count > extended + count) {
        throw broken(`logical partition ${extent.number} is not inside the extended one`)
      }
      found.push(extent)
    }
    if (link.type === 0) return found
    const next = extended + link.start
    // Forwards alone, so that a chain ends.
    if (!EXTENDED.includes(link.type) || next <= table || next >= extended + count) {
      throw broken('the chain of its logical partitions is broken')
    }
    table = next
  }
  throw broken(`it has more than ${MAX_LOGICAL} logical partitions`)
}

async function readGpt(disk: ReadableDisk): Promise<PartitionExtent[]> {
  const last = disk.sizeBytes / disk.sectorSize - 1
  try {
    return await readGptAt(disk, 1)
  } catch (thrown) {
    if (!(thrown instanceof VbdError) || thrown.code !== 'ERR_VBD_BACKING') throw thrown
    // What the first table says about itself is what to tell.
    return readGptAt(disk, last).catch(() => Promise.reject(thrown))
  }
}

async function readGptAt(disk: ReadableDisk, lba: number): Promise<PartitionExtent[]> {
  const header = await sectorAt(disk, lba * disk.sectorSize)
  if (header.toString('latin1', 0, 8) !== 'EFI PART') throw broken('its GPT has no header')
  const headerBytes = header.readUInt32LE(12)
  if (headerBytes < 92 || headerBytes > header.length) throw broken('its GPT has a bad header')
  const blank = Buffer.from(header.subarray(0, headerBytes))
  blank.writeUInt32LE(0, 16)
  if (crc32(blank) !== header.readUInt32LE(16) || lbaAt(header, 24) !== lba) {
    throw broken('the checksum of its GPT is wrong')
  }
  const usable = { first: lbaAt(header, 40), last: lbaAt(header, 48) }
  const count = header.readUInt32LE(80)
  const entryBytes = header.readUInt32LE(84)
  const bytes = count * entryBytes
  if (entryBytes < 128 || entryBytes % 8 !== 0 || bytes === 0 || bytes > MAX_GPT_BYTES) {
    throw broken('its GPT has entries of a bad size')
  }
  const entries = await sectorsAt(disk, lbaAt(header, 72) * disk.sectorSize, bytes)
  if (crc32(entries) !== header.readUInt32LE(88)) {
    throw broken('the checksum of the entries of its GPT is wrong')
  }
  const found: PartitionExtent[] = []
  for (let i = 0; i < count; i++) {
    const entry = entries.subarray(i * entryBytes, (i + 1) * entryBytes)
    if (entry.subarray(0, 16).every((byte) => byte === 0)) continue
    const first = lbaAt(entry, 32)
    const end = lbaAt(entry, 40)
    if (first < usable.first || end > usable.last || end < first) {
      throw broken(`partition ${i + 1} is not inside what its GPT calls usable`)
    }
    found.push(checked(disk, i + 1, first, end - first + 1))
  }
  return found
}

function lbaAt(buffer: Buffer, at: number): number {
  const lba = buffer.readBigUInt64LE(at)
  if (lba > BigInt(Number.MAX_SAFE_INTEGER)) throw broken('its GPT names a sector beyond all disks')
  return Number(lba)
}

/** In bytes, and inside the disk. */
function checked(disk: ReadableDisk, number: number, start: number, count: number) {
  const offsetBytes = start * disk.sectorSize
  const lengthBytes = count * disk.sectorSize
  if (start === 0 || count === 0 || offsetBytes + lengthBytes > disk.sizeBytes) {
    throw broken(`partition ${number} is not inside the disk`)
  }
  return { number, offsetBytes, lengthBytes }
}

function sectorAt(disk: ReadableDisk, offset: number): Promise<Buffer> {
  return sectorsAt(disk, offset, disk.sectorSize)
}

async function sectorsAt(disk: ReadableDisk, offset: number, bytes: number): Promise<Buffer> {
  const whole = Math.ceil(bytes / disk.sectorSize) * disk.sectorSize
  if (offset + whole > disk.sizeBytes) throw broken('its partition table reaches beyond its end')
  return (await disk.read(offset, whole)).subarray(0, bytes)
}

function missing(number: number, extents: readonly PartitionExtent[]): VbdError {
  const have = extents.map((extent) => extent.number).join(', ') || 'none'
  return new VbdError('ERR_VBD_NOT_FOUND', `there is no partition ${number}`, {
    remedy: `its table has: ${have}`,
  })
}

function broken(message: string): VbdError {
  return new VbdError('ERR_VBD_BACKING', message, {
    remedy: 'look at the table with `fdisk -l`, or serve the whole disk',
  })
}
