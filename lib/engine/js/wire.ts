/**
 * The blkif wire format, as the backend reads it: numbers and layouts (xen/include/public/io/blkif.h, ring.h). Every
 * field that is wider than a byte begins at a multiple of four bytes in both layouts, and everything is little endian,
 * as is every machine this runs on: so a slot is an array of 32-bit words, and a 64-bit field two of them.
 *
 *   word 0      byte 0 operation, byte 1 nr_segments | discard's flag | indirect_op, bytes 2 and 3 handle | nr_segs
 *   x86_64, arm          x86_32
 *   word  2, 3  id       word  1, 2
 *   word  4, 5  sector   word  3, 4
 *   word  6 on  body     word  5 on     read, write, barrier, flush: up to 11 segments of two words
 *                                       discard: nr_sectors; indirect: handle, then up to 8 references
 *
 *   segment     word 0 grant reference, word 1: byte 0 first sector, byte 1 last sector, both inclusive, in the page
 *   response    word 0, 1 id, word 2: byte 0 operation, bytes 2 and 3 status
 */
import type { Protocol } from '../engine.js'

/** Xen's page, whatever the kernel's is. */
export const PAGE_BYTES = 4096
/** The unit of every sector number on the ring. */
export const SECTOR_BYTES = 512
export const SECTORS_PER_PAGE = PAGE_BYTES / SECTOR_BYTES

export const OPERATION = {
  read: 0,
  write: 1,
  writeBarrier: 2,
  flush: 3,
  discard: 5,
  indirect: 6,
} as const

export const STATUS = { okay: 0, error: -1, unsupported: -2 } as const

/** BLKIF_DISCARD_SECURE, in a discard's flag byte. */
export const DISCARD_SECURE = 1

export const MAX_SEGMENTS = 11
export const MAX_INDIRECT_PAGES = 8
export const SEGMENTS_PER_INDIRECT_PAGE = PAGE_BYTES / 8
export const MAX_INDIRECT_SEGMENTS = MAX_INDIRECT_PAGES * SEGMENTS_PER_INDIRECT_PAGE
export const MAX_RING_PAGES = 16

/** Words of the shared ring's header; the slots follow after 16. */
export const RING = { reqProd: 0, reqEvent: 1, rspProd: 2, rspEvent: 3, slots: 16 } as const

/** Where the fields of a slot are, in words. */
export interface Layout {
  readonly words: number
  readonly id: number
  readonly sector: number
  /** Segments, or a discard's nr_sectors. */
  readonly body: number
  readonly indirectRefs: number
}

/** The ABIs differ in how a compiler aligns 64 bits in a struct, and in nothing else. */
const ALIGNED_TO_8: Layout = { words: 28, id: 2, sector: 4, body: 6, indirectRefs: 7 }
const ALIGNED_TO_4: Layout = { words: 27, id: 1, sector: 3, body: 5, indirectRefs: 6 }

export const MAX_SLOT_WORDS = ALIGNED_TO_8.words

/** The layout of a guest's ABI. */
export function layoutOf(protocol: Protocol): Layout {
  return protocol === 'x86_32-abi' ? ALIGNED_TO_4 : ALIGNED_TO_8
}

/** Slots of a ring of so many pages: what fits, rounded down to a power of two. */
export function ringEntries(pages: number, layout: Layout): number {
  const fits = Math.floor((pages * PAGE_BYTES - RING.slots * 4) / (layout.words * 4))
  return 2 ** (31 - Math.clz32(fits))
}

/** Words of a slot that a request with this first word can use: parse() looks at no others. */
export function usedWords(head: number, layout: Layout): number {
  const operation = head & 0xff
  if (operation <= OPERATION.flush) {
    return layout.body + 2 * Math.min((head >>> 8) & 0xff, MAX_SEGMENTS)
  }
  if (operation === OPERATION.discard) return layout.body + 2
  if (operation === OPERATION.indirect) return layout.indirectRefs + MAX_INDIRECT_PAGES
  return layout.body
}

/** Of a segment's second word. */
export function firstSector(word: number): number {
  return word & 0xff
}

/** Of a segment's second word. */
export function lastSector(word: number): number {
  return (word >>> 8) & 0xff
}
