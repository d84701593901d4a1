/**
 * Request: what a guest asked for, after every check. parse() and checkSegments() are the security boundary: they read
 * private memory only, are total over all bytes, allocate nothing and touch nothing else (XSA-155, XSA-513).
 *
 *   slot, a private copy of a ring slot          ──parse()─────────►  Request, or why not
 *   a private copy of an indirect's descriptors  ──checkSegments()──►  its sectors, or why not
 *
 * The order of the checks: operation known, offered, number of segments, allowed on this disk, bounds of the segments,
 * alignment, range.
 *
 * Numbers. An id is eight opaque bytes, carried as two words and never a number. A sector number is a double:
 * exact up to 2^53, which is beyond every disk's end. A greater one is rounded, but stays greater than 2^53 and so
 * beyond the end: the comparison below is right for every 64 bits.
 */
import {
  DISCARD_SECURE,
  firstSector,
  type Layout,
  lastSector,
  MAX_INDIRECT_PAGES,
  MAX_INDIRECT_SEGMENTS,
  MAX_SEGMENTS,
  OPERATION,
  SECTOR_BYTES,
  SECTORS_PER_PAGE,
  SEGMENTS_PER_INDIRECT_PAGE,
  STATUS,
} from './wire.js'

/** Why a request is answered without being executed; `none`: it is not. */
export const REJECT = {
  none: 0,
  /** Not in {0, 1, 2, 3, 5, 6}. */
  unknownOperation: 1,
  /** An operation that this connection was not offered. */
  notAdvertised: 2,
  /** None where one is needed, more than 11, more than advertised. */
  segmentCount: 3,
  /** indirect_op is neither READ nor WRITE. */
  indirectOperation: 4,
  /** first > last, or last > 7. */
  segmentBounds: 5,
  /** Not a multiple of the disk's sector size. */
  alignment: 6,
  /** Beyond the end of the disk. */
  range: 7,
  readOnly: 8,
  /** A discard of nothing. */
  discardEmpty: 9,
} as const
export type Reject = (typeof REJECT)[keyof typeof REJECT]

/** Their names in statistics, by number. */
export const REJECT_NAMES = [
  'none',
  'unknown-operation',
  'not-advertised',
  'segment-count',
  'indirect-operation',
  'segment-bounds',
  'alignment',
  'range',
  'read-only',
  'discard-empty',
] as const

/** What the guest is told: not supported, or an error. */
export function statusOf(reject: Reject): number {
  if (reject === REJECT.none) return STATUS.okay
  const unsupported = reject === REJECT.unknownOperation || reject === REJECT.notAdvertised
  return unsupported ? STATUS.unsupported : STATUS.error
}

/** What one connection offers and the disk allows. */
export interface Limits {
  /** Of 512 bytes, below 2^53. */
  capacitySectors: number
  /** Sectors per unit of alignment, minus one: 0 where the disk has sectors of 512 bytes, 7 for 4096. */
  alignmentMask: number
  /** 0: indirect requests were not offered. */
  maxIndirectSegments: number
  readOnly: boolean
  flush: boolean
  barrier: boolean
  discard: boolean
  secureDiscard: boolean
}

/** The mask for a disk's sector size in bytes. */
export function alignmentMaskOf(sectorSize: number): number {
  return sectorSize / SECTOR_BYTES - 1
}

export class Request {
  idLow = 0
  idHigh = 0
  /** What the response echoes: of an indirect request its inner operation. */
  wireOperation = 0
  /** Read, write, writeBarrier, flush or discard; never indirect. */
  operation: number = OPERATION.read
  /** The segments are in the guest pages that `indirectRefs` names. */
  indirect = false
  /** A discard that erases; only where it was offered. */
  secure = false
  segmentCount = 0
  /** Of 512 bytes, like `sectors`. */
  sector = 0
  /** Of an indirect request only after checkSegments(). */
  sectors = 0
  readonly indirectRefs = new Uint32Array(MAX_INDIRECT_PAGES)
  /** Two words each; parse() fills those of a direct request. */
  segments: Uint32Array

  constructor(segments: Uint32Array) {
    this.segments = segments
  }

  /** Guest pages that hold an indirect request's descriptors. */
  get indirectPages(): number {
    return Math.ceil(this.segmentCount / SEGMENTS_PER_INDIRECT_PAGE)
  }
}

/**
 * Decodes and checks one slot. The id and `wireOperation` are valid whatever is returned, so that every consumed
 * request can be answered. A direct request that passes is checked in full, an indirect one still needs
 * checkSegments().
 */
export function parse(slot: Uint32Array, layout: Layout, limits: Limits, request: Request): Reject {
  const head = slot[0]!
  const operation = head & 0xff
  request.idLow = slot[layout.id]! | 0
  request.idHigh = slot[layout.id + 1]! | 0
  request.wireOperation = operation
  request.operation = OPERATION.read
  request.indirect = false
  request.secure = false
  request.segmentCount = 0
  request.sector = 0
  request.sectors = 0
  if (operation <= OPERATION.flush) {
    return parseData(slot, layout, operation, (head >>> 8) & 0xff, limits, request)
  }
  if (operation === OPERATION.indirect) return parseIndirect(slot, layout, head, limits, request)
  if (operation === OPERATION.discard) return parseDiscard(slot, layout, head, limits, request)
  return REJECT.unknownOperation
}

/**
 * READ, WRITE, WRITE_BARRIER and FLUSH: one layout. The last two may come without segments; then they name no place on
 * the disk, and the sector is not looked at (Linux sends an empty flush with sector 2^64-1).
 */
function parseData(
  slot: Uint32Array,
  layout: Layout,
  operation: number,
  count: number,
  limits: Limits,
  request: Request,
): Reject {
  const flush = operation === OPERATION.flush
  if (flush || operation === OPERATION.writeBarrier) {
    if (!(flush ? limits.flush : limits.barrier)) return REJECT.notAdvertised
  } else if (count === 0) {
    return REJECT.segmentCount
  }
  if (count > MAX_SEGMENTS) return REJECT.segmentCount
  const changesNothing = operation === OPERATION.read || (flush && count === 0)
  if (limits.readOnly && !changesNothing) return REJECT.readOnly

  request.operation = operation
  request.segmentCount = count
  if (count === 0) return REJECT.none
  const { segments } = request
  const from = layout.body
  for (let i = 0; i < 2 * count; i++) segments[i] = slot[from + i]!
  return checkPlace(slot[layout.sector]!, slot[layout.sector + 1]!, limits, request)
}

function parseDiscard(
  slot: Uint32Array,
  layout: Layout,
  head: number,
  limits: Limits,
  request: Request,
): Reject {
  if (!limits.discard) return REJECT.notAdvertised
  if (limits.readOnly) return REJECT.readOnly
  const low = slot[layout.body]!
  const sectors = uint64(low, slot[layout.body + 1]!)
  if (sectors === 0) return REJECT.discardEmpty
  if ((low & limits.alignmentMask) !== 0) return REJECT.alignment

  request.operation = OPERATION.discard
  const sectorLow = slot[layout.sector]!
  request.sector = uint64(sectorLow, slot[layout.sector + 1]!)
  const reject = checkRange(sectorLow, request.sector, sectors, limits)
  if (reject !== REJECT.none) return reject
  request.sectors = sectors
  // A secure erase that was not offered is a plain discard (blkif.h: the flag is then ignored).
  request.secure = limits.secureDiscard && ((head >>> 8) & DISCARD_SECURE) !== 0
  return REJECT.none
}

/** What can be said before the descriptors are fetched. */
function parseIndirect(
  slot: Uint32Array,
  layout: Layout,
  head: number,
  limits: Limits,
  request: Request,
): Reject {
  const inner = (head >>> 8) & 0xff
  const count = head >>> 16
  request.wireOperation = inner
  if (limits.maxIndirectSegments === 0) return REJECT.notAdvertised
  if (inner !== OPERATION.read && inner !== OPERATION.write) return REJECT.indirectOperation
  // Against the protocol's own limit too, whatever was configured: arrays are that long.
  if (count === 0 || count > limits.maxIndirectSegments || count > MAX_INDIRECT_SEGMENTS) {
    return REJECT.segmentCount
  }
  if (limits.readOnly && inner !== OPERATION.read) return REJECT.readOnly

  request.operation = inner
  request.indirect = true
  request.segmentCount = count
  const low = slot[layout.sector]!
  request.sector = uint64(low, slot[layout.sector + 1]!)
  for (let i = 0; i < MAX_INDIRECT_PAGES; i++) {
    request.indirectRefs[i] = slot[layout.indirectRefs + i]!
  }
  // Each segment has a sector at least: what is out of range by that alone is not worth fetching descriptors for.
  return checkRange(low, request.sector, count, limits)
}

/** Checks an indirect request whose descriptors have been copied into `segments`, and sets `sectors`. */
export function checkSegments(limits: Limits, request: Request): Reject {
  const { sector } = request
  // The low word alone tells alignment; a sector that passed parse() is exact.
  return checkEach((sector % 0x1_0000_0000) | 0, sector, limits, request)
}

function checkPlace(low: number, high: number, limits: Limits, request: Request): Reject {
  const sector = uint64(low, high)
  request.sector = sector
  return checkEach(low, sector, limits, request)
}

/** The loop only gathers what is looked at behind it: guests that send good requests do not pay for the bad ones. */
function checkEach(sectorLow: number, sector: number, limits: Limits, request: Request): Reject {
  const { segments, segmentCount } = request
  let anyFirst = 0
  let anyLast = 0
  let allLast = 0xff
  /** Negative when one ends before it starts. */
  let order = 0
  /** At most 4096 × 8 when all are in bounds. */
  let sectors = segmentCount
  for (let i = 1; i < 2 * segmentCount; i += 2) {
    const word = segments[i]!
    const first = firstSector(word)
    const last = lastSector(word)
    anyFirst |= first
    anyLast |= last
    allLast &= last
    order |= last - first
    sectors += last - first
  }
  // All are below 8, a power of two, exactly when the bits of all are.
  if (order < 0 || anyLast >= SECTORS_PER_PAGE) return REJECT.segmentBounds
  const mask = limits.alignmentMask
  // A last sector is aligned when the one behind it is: when it ends in ones.
  if ((anyFirst & mask) !== 0 || (allLast & mask) !== mask) return REJECT.alignment
  const reject = checkRange(sectorLow, sector, sectors, limits)
  if (reject === REJECT.none) request.sectors = sectors
  return reject
}

/** Compares by subtraction alone: nothing that could leave the exact range. */
function checkRange(sectorLow: number, sector: number, sectors: number, limits: Limits): Reject {
  if ((sectorLow & limits.alignmentMask) !== 0) return REJECT.alignment
  const { capacitySectors } = limits
  if (sector > capacitySectors || sectors > capacitySectors - sector) return REJECT.range
  return REJECT.none
}

/** Exact below 2^53. */
function uint64(low: number, high: number): number {
  return high * 0x1_0000_0000 + low
}
