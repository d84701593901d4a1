/**
 * Requests: one generated number becomes one request, written into the ring of a guest: mostly good, sometimes wrong in
 * one thing, sometimes noise. The same number in the same place is the same bytes.
 *
 * Requests that are in flight together may be done in any order, by pieces, and side by side: what is left behind is
 * defined only where none of them writes what another one reads or writes, be it on the disk or in the guest's pages. So
 * each has a share of the disk and a share of the pages, which is all of it where nobody else is in flight (or nobody
 * else writes there).
 */
import { PAGE_BYTES, SEGMENTS_PER_INDIRECT_PAGE, type WireLayout } from '../../lib/testing/wire.js'
import { Random } from './random.js'
import { DATA, DATA_PAGES, PAGES, refOf, TABLE_PAGES, TABLES } from './twin_guest.js'

export interface Place {
  readonly layout: WireLayout
  /** Of 512 bytes. */
  readonly diskSectors: number
  readonly sectorSize: number
  readonly maxIndirectSegments: number
  readonly disk: Share
  readonly pages: Share
  /** All that are in flight with it are of this kind, so that they may share what they read. */
  readonly only?: 'reads' | 'writes'
  /**
   * References may be wrong, too. Not where it depends on the clock how far such a request gets before it fails: a small
   * cache of grants refuses it when it has room, and copies what is good of it when it has none.
   */
  readonly wildRefs: boolean
}

/** Part `index` of `of` equal ones. */
export interface Share {
  readonly index: number
  readonly of: number
}

/** A request to be written, and what it needs in the guest's other pages. */
export interface Wire {
  readonly slot: Uint8Array
  /** Descriptor pages, by their place among the batch's. */
  readonly tables: readonly Uint8Array[]
}

const SECTORS = PAGE_BYTES / 512

/** @param firstTable where this request's descriptor pages are among TABLES */
export function expand(seed: number, place: Place, firstTable: number): Wire {
  const random = new Random(seed)
  const maker = new RequestMaker(random, place, firstTable)
  const kind = random.below(100)
  if (place.only === 'reads') maker.only(0, kind)
  else if (place.only === 'writes') maker.only(1, kind)
  else if (kind < 34) maker.transfer(0)
  else if (kind < 64) maker.transfer(1)
  else if (kind < 78) maker.indirect(random.below(2))
  else if (kind < 83) maker.empty(3)
  else if (kind < 86) maker.transfer(3)
  else if (kind < 88) maker.empty(2)
  else if (kind < 90) maker.transfer(2)
  else if (kind < 96) maker.discard()
  else maker.noise()
  if (random.chance(12)) maker.spoil()
  return maker.wire()
}

class RequestMaker {
  readonly #random: Random
  readonly #place: Place
  readonly #firstTable: number
  readonly #slot: Uint8Array
  readonly #view: DataView
  readonly #tables: Uint8Array[] = []

  constructor(random: Random, place: Place, firstTable: number) {
    this.#random = random
    this.#place = place
    this.#firstTable = firstTable
    this.#slot = new Uint8Array(place.layout.stride)
    this.#view = new DataView(this.#slot.buffer)
    // What a request does not use may hold anything.
    random.fill(this.#slot)
  }

  wire(): Wire {
    return { slot: this.#slot, tables: this.#tables }
  }

  /** Reads or writes alone, of whatever form, and what touches neither disk nor pages. */
  only(operation: 0 | 1, kind: number): void {
    if (kind < 60) this.transfer(operation)
    else if (kind < 88) this.indirect(operation)
    else if (kind < 94) this.empty(3)
    else this.noise()
  }

  transfer(operation: number): void {
    const count = this.#count(11)
    const sector = this.#sector(count)
    this.#head(operation, count)
    this.#setSector(sector)
    this.#segments(this.#view, this.#place.layout.segments, count)
  }

  empty(operation: number): void {
    this.#head(operation, 0)
    if (this.#random.chance(50))
      this.#view.setBigUint64(this.#place.layout.sector, 2n ** 64n - 1n, true)
  }

  discard(): void {
    const { layout, disk } = this.#place
    const unit = this.#place.sectorSize / 512
    const share = this.#share
    const sector = align(disk.index * share + this.#random.below(share), unit)
    const left = Math.max(unit, Math.min(share, (disk.index + 1) * share - sector))
    this.#head(5, this.#random.below(4))
    this.#setSector(sector)
    const sectors = align(1 + this.#random.below(left), unit) || unit
    this.#view.setBigUint64(layout.segments, BigInt(sectors), true)
  }

  /** Falls back to a direct one where no descriptor page is left. */
  indirect(operation: number): void {
    const { maxIndirectSegments, layout, disk } = this.#place
    const many = operation === 1 && disk.of === 1 && this.#random.chance(8)
    const most = Math.min(maxIndirectSegments || 64, many ? 1024 : 60)
    const count = many ? 1 + this.#random.below(most) : this.#count(most)
    const pages = Math.ceil(count / SEGMENTS_PER_INDIRECT_PAGE)
    if (this.#firstTable + pages > TABLE_PAGES) {
      this.transfer(operation)
      return
    }
    this.#head(6, operation)
    this.#view.setUint16(2, count, true)
    this.#setSector(this.#sector(many ? count / SECTORS : count))
    for (let page = 0; page < pages; page++) {
      const table = new Uint8Array(PAGE_BYTES)
      const here = Math.min(count - page * SEGMENTS_PER_INDIRECT_PAGE, SEGMENTS_PER_INDIRECT_PAGE)
      this.#segments(new DataView(table.buffer), 0, here, many)
      this.#tables.push(table)
      const ref = refOf(TABLES + this.#firstTable + page)
      this.#view.setUint32(layout.indirectRefs + 4 * page, ref, true)
    }
  }

  noise(): void {
    this.#random.fill(this.#slot)
    if (this.#random.chance(50)) this.#slot[0] = this.#random.below(8)
  }

  /** Makes one thing wrong, or not. */
  spoil(): void {
    const { layout } = this.#place
    const random = this.#random
    const view = this.#view
    switch (random.below(8)) {
      case 0:
        this.#spoilCount(random.below(256))
        break
      case 1:
        // More segments than an indirect request has name page 0.
        if (this.#place.wildRefs || this.#slot[0] !== 6) {
          view.setUint16(2, random.below(5000), true)
        }
        break
      case 2:
        view.setBigUint64(layout.sector, this.#wildSector(), true)
        break
      case 3:
        // Of a discard that would be a length, and might be a good one in others' shares.
        if (this.#slot[0] !== 5) this.#spoilRef(view, layout.segments)
        break
      case 4:
        this.#spoilRef(view, layout.indirectRefs)
        break
      case 5:
        view.setUint8(layout.segments + 4, random.below(10))
        view.setUint8(layout.segments + 5, random.below(10))
        break
      case 6:
        // Of a transfer that would be a reference; the zeroes behind it are good bounds.
        if (this.#place.wildRefs || this.#slot[0]! >= 5) {
          view.setBigUint64(layout.segments, this.#wildSector(), true)
        }
        break
      default:
        this.#spoilTable()
    }
  }

  #spoilCount(count: number): void {
    const { only, wildRefs } = this.#place
    // Of an indirect request that would be what it does; of others it may bring in references that nobody chose.
    const isIndirect = this.#slot[0] === 6
    if (isIndirect ? only === undefined : wildRefs || count > 11) this.#slot[1] = count
  }

  #spoilTable(): void {
    const table = this.#tables[0]
    if (table === undefined) return
    const at = 8 * this.#random.below(SEGMENTS_PER_INDIRECT_PAGE)
    const view = new DataView(table.buffer)
    if (this.#random.chance(50)) this.#spoilRef(view, at)
    else view.setUint16(at + 4, this.#random.u32(), true)
  }

  /** Sectors of one share. */
  get #share(): number {
    const { diskSectors, disk, sectorSize } = this.#place
    return align(Math.floor(diskSectors / disk.of), sectorSize / 512)
  }

  #spoilRef(view: DataView, at: number): void {
    if (this.#place.wildRefs) view.setUint32(at, this.#wildRef(), true)
  }

  #wildSector(): bigint {
    const { diskSectors, disk } = this.#place
    // Those that may be right are in somebody's share.
    const edges = disk.of > 1 ? [] : [BigInt(diskSectors - 1), 0n, 1n]
    return this.#random.pick([
      ...edges,
      BigInt(diskSectors),
      2n ** 32n,
      2n ** 53n - 1n,
      2n ** 53n,
      2n ** 53n + 1n,
      2n ** 63n,
      2n ** 64n - 1n,
      2n ** 64n - 8n,
    ])
  }

  /** Reserved, not granted, beyond the table, read-only, or a ring's. */
  #wildRef(): number {
    return this.#random.pick([
      0,
      7,
      refOf(PAGES) + 1,
      32_768,
      (1 << 20) - 1,
      1 << 20,
      0x7fff_ffff,
      0xffff_ffff,
      refOf(DATA + 7),
    ])
  }

  #head(operation: number, second: number): void {
    this.#slot[0] = operation
    this.#slot[1] = second
  }

  #setSector(sector: number): void {
    this.#view.setBigUint64(this.#place.layout.sector, BigInt(sector), true)
  }

  /** So many segments, no more than the share of the disk has room for, and none twice in the same page. */
  #count(most: number): number {
    const { disk } = this.#place
    const room = disk.of > 1 ? Math.floor(this.#share / SECTORS) : most
    return 1 + this.#random.below(Math.max(1, Math.min(most, room, this.#writablePages)))
  }

  get #writablePages(): number {
    const share = DATA_PAGES / this.#place.pages.of
    return share - share / 8
  }

  /** A sector of this share with room for so many whole pages behind it, mostly. */
  #sector(pages: number): number {
    const { disk, sectorSize } = this.#place
    const share = this.#share
    const room = Math.max(1, share - pages * SECTORS)
    return align(disk.index * share + this.#random.below(room), sectorSize / 512)
  }

  /** @param small of one sector each, so that many fit on the disk */
  #segments(view: DataView, at: number, count: number, small = false): void {
    const random = this.#random
    const unit = this.#place.sectorSize / 512
    const pages = this.#pages()
    for (let i = 0; i < count; i++) {
      const whole = unit === SECTORS || (!small && random.chance(70))
      const first = whole ? 0 : random.below(SECTORS)
      const last = whole ? SECTORS - 1 : small ? first : first + random.below(SECTORS - first)
      view.setUint32(at + 8 * i, refOf(pages(i)), true)
      view.setUint8(at + 8 * i + 4, first)
      view.setUint8(at + 8 * i + 5, last)
    }
  }

  /**
   * Pages of this share, each once before one comes again, as only a write of very many does: what is left in a page that
   * a read fills twice depends on the direction in which memory is copied. In a while one is granted read-only.
   */
  #pages(): (i: number) => number {
    const random = this.#random
    const { index, of } = this.#place.pages
    const share = DATA_PAGES / of
    const writable = this.#writablePages
    const first = random.below(writable)
    // Prime to the number of writable pages, whatever the share.
    const stride = random.pick([1, 1, 1, 5, 11, 13, 17])
    const readOnly = this.#place.wildRefs && random.chance(4) ? random.below(11) : -1
    return (i) => {
      const n = (first + i * stride) % writable
      const page = DATA + index * share + n + Math.floor(n / 7)
      return i === readOnly ? page - ((page - DATA) % 8) + 7 : page
    }
  }
}

function align(value: number, unit: number): number {
  return value - (value % unit)
}
