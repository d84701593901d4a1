/**
 * InFlight: what a queue remembers of one request that it has sent, and the sizes that follow from a queue's limits.
 *
 * Entries are made once per queue and used again and again; their index is the request's id, or its low bits.
 */
import type { Operation, Piece } from './operation.js'
import {
  MAX_DIRECT_SEGMENTS,
  PAGE_BYTES,
  SECTOR_BYTES,
  SEGMENTS_PER_INDIRECT_PAGE,
  type WireRequest,
} from './wire.js'

/** What is settled once the backend is Connected. */
export interface QueueLimits {
  readonly persistent: boolean
  /** Segments of a request that is not indirect, 1..11. */
  readonly maxSegments: number
  /** Segments of an indirect request; 0: none are sent. */
  readonly indirectSegments: number
  /** Data pages that the queue may hold. */
  readonly pageBudget: number
}

/** What came back for a raw request. */
export interface RawResponse {
  readonly status: number
  readonly operation: number
}

type DistributiveOmit<T, K extends PropertyKey> = T extends unknown ? Omit<T, K> : never
export type RawRequest = DistributiveOmit<WireRequest, 'id'>

/** One request in flight. Made once and used again and again. */
export class InFlight {
  readonly index: number
  operation: Operation | undefined
  piece: Piece | undefined
  raw: ((response: RawResponse | undefined) => void) | undefined
  used = false
  idLo = 0
  idHi = 0
  /** The operation that the response must name. */
  expects = 0
  /** Sectors of the first page that lie before the piece's data. */
  skew = 0
  pageCount = 0
  dataPages = 0
  pages = new Int32Array(MAX_DIRECT_SEGMENTS)
  refs = new Int32Array(MAX_DIRECT_SEGMENTS)

  constructor(index: number) {
    this.index = index
  }

  /** Makes room for `count` pages. */
  grow(count: number): void {
    if (this.pages.length >= count) return
    this.pages = new Int32Array(count)
    this.refs = new Int32Array(count)
  }
}

/** Pages, descriptors included, that the largest request of a queue needs. */
export function pagesOfLargest(
  limits: Pick<QueueLimits, 'maxSegments' | 'indirectSegments'>,
): number {
  const { maxSegments, indirectSegments } = limits
  if (indirectSegments <= maxSegments) return maxSegments
  return indirectSegments + Math.ceil(indirectSegments / SEGMENTS_PER_INDIRECT_PAGE)
}

/**
 * Walks the data of a piece page by page: the guest's page, the first byte in it, the offset in
 * the data, the count.
 */
export function forEachPage(
  entry: InFlight,
  visit: (page: number, inPage: number, at: number, count: number) => void,
): void {
  const { sector, sectors } = entry.piece!
  let at = entry.operation!.dataOffset(sector)
  const end = at + sectors * SECTOR_BYTES
  let inPage = entry.skew * SECTOR_BYTES
  for (let i = 0; at < end; i++) {
    const count = Math.min(PAGE_BYTES - inPage, end - at)
    visit(entry.pages[i]!, inPage, at, count)
    at += count
    inPage = 0
  }
}
