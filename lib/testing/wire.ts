/**
 * blkif as bytes, seen from the frontend: request encoders and the response decoder for both slot layouts.
 *
 * Pure: no memory is owned here, every function is handed a DataView over guest memory. All values are little endian.
 * 64-bit fields travel as two u32 halves or as a bigint, so that no id and no sector is bent by a JS number.
 * Source: Xen's public/io/blkif.h; `arm-abi` is byte-identical to `x86_64-abi`.
 *
 *            x86_64   x86_32
 *   op          0        0     u8    READ, WRITE, ...
 *   byte1       1        1     u8    nr_segments | discard flag | indirect_op
 *   word2       2        2     u16   handle      | handle       | nr_segments (indirect)
 *   id          8        4     u64
 *   sector     16       12     u64   always in units of 512 bytes
 *   segments   24       20     8 bytes each: gref u32, first u8, last u8, two bytes of padding
 *   nr_sectors 24       20     u64   (discard)
 *   handle     24       20     u16   (indirect)
 *   grefs      28       24     u32 × 8 (indirect)
 *   stride    112      108
 */
import type { Protocol } from '../engine/engine.js'

export const SECTOR_BYTES = 512
export const PAGE_BYTES = 4096
export const SECTORS_PER_PAGE = PAGE_BYTES / SECTOR_BYTES
/** Bytes of the ring page before the first slot. */
export const RING_HEADER_BYTES = 64
/** Segments of a request that is not indirect. */
export const MAX_DIRECT_SEGMENTS = 11
export const MAX_INDIRECT_PAGES = 8
export const SEGMENTS_PER_INDIRECT_PAGE = PAGE_BYTES / 8
export const MAX_INDIRECT_SEGMENTS = MAX_INDIRECT_PAGES * SEGMENTS_PER_INDIRECT_PAGE
/** Sectors that one discard may cover: what Linux's 32-bit `max_hw_discard_sectors` allows, kept 4 KiB aligned. */
export const MAX_DISCARD_SECTORS = 0xffff_fff8

export const OPERATION = {
  read: 0,
  write: 1,
  barrier: 2,
  flush: 3,
  discard: 5,
  indirect: 6,
} as const
export type OperationName = keyof typeof OPERATION

export const STATUS = { okay: 0, error: -1, unsupported: -2 } as const

/** The `info` bits. */
export const VDISK = { cdrom: 1, removable: 2, readOnly: 4 } as const

export interface WireLayout {
  readonly protocol: Protocol
  readonly stride: number
  readonly id: number
  readonly sector: number
  readonly segments: number
  readonly indirectRefs: number
}

const LAYOUT_64 = { stride: 112, id: 8, sector: 16, segments: 24, indirectRefs: 28 } as const

export const LAYOUTS: Readonly<Record<Protocol, WireLayout>> = {
  'x86_64-abi': { protocol: 'x86_64-abi', ...LAYOUT_64 },
  'arm-abi': { protocol: 'arm-abi', ...LAYOUT_64 },
  'x86_32-abi': {
    protocol: 'x86_32-abi',
    stride: 108,
    id: 4,
    sector: 12,
    segments: 20,
    indirectRefs: 24,
  },
}

/** 64 opaque bits. */
export interface RequestId {
  readonly lo: number
  readonly hi: number
}

export interface Segment {
  readonly ref: number
  /** Sectors within the page, both inclusive, 0..7. */
  readonly first: number
  readonly last: number
}

interface RequestBase {
  readonly id: RequestId
  readonly handle: number
  /** In units of 512 bytes. A bigint reaches all 64 bits. */
  readonly sector: number | bigint
}

/** A request as one object, for tests and hostile guests; the data path writes the fields directly. */
export type WireRequest = RequestBase &
  (
    | {
        readonly operation: 'read' | 'write' | 'barrier' | 'flush'
        readonly segments: readonly Segment[]
      }
    | {
        readonly operation: 'discard'
        readonly sectors: number | bigint
        readonly secure?: boolean
      }
    | {
        readonly operation: 'indirect'
        readonly indirectOperation: 'read' | 'write'
        readonly segmentCount: number
        readonly indirectRefs: readonly number[]
      }
  )

/** Writes an unsigned 64-bit value. A number must be a non-negative safe integer. */
export function setUint64(view: DataView, at: number, value: number | bigint): void {
  if (typeof value === 'bigint') {
    view.setBigUint64(at, BigInt.asUintN(64, value), true)
    return
  }
  view.setUint32(at, value >>> 0, true)
  view.setUint32(at + 4, Math.floor(value / 0x1_0000_0000), true)
}

/** The fields that every request has. `byte1` and `word2` mean what the operation says they mean. */
export function writeHeader(
  view: DataView,
  at: number,
  layout: WireLayout,
  operation: number,
  byte1: number,
  word2: number,
  idLo: number,
  idHi: number,
  sector: number | bigint,
): void {
  view.setUint8(at, operation)
  view.setUint8(at + 1, byte1)
  view.setUint16(at + 2, word2, true)
  view.setUint32(at + layout.id, idLo, true)
  view.setUint32(at + layout.id + 4, idHi, true)
  setUint64(view, at + layout.sector, sector)
}

/** Writes one segment descriptor, in a slot or in an indirect page. */
export function writeSegment(
  view: DataView,
  at: number,
  ref: number,
  first: number,
  last: number,
): void {
  view.setUint32(at, ref, true)
  view.setUint8(at + 4, first)
  view.setUint8(at + 5, last)
  view.setUint16(at + 6, 0, true)
}

/** Writes a whole request into a slot; what the request does not use of the slot becomes zero. */
export function encodeRequest(
  view: DataView,
  at: number,
  layout: WireLayout,
  request: WireRequest,
): void {
  new Uint8Array(view.buffer, view.byteOffset + at, layout.stride).fill(0)
  const { id, sector, handle } = request
  const operation = OPERATION[request.operation]
  if (request.operation === 'indirect') {
    const inner = OPERATION[request.indirectOperation]
    writeHeader(view, at, layout, operation, inner, request.segmentCount, id.lo, id.hi, sector)
    view.setUint16(at + layout.segments, handle, true)
    request.indirectRefs.slice(0, MAX_INDIRECT_PAGES).forEach((ref, i) => {
      view.setUint32(at + layout.indirectRefs + 4 * i, ref, true)
    })
    return
  }
  if (request.operation === 'discard') {
    const flag = request.secure === true ? 1 : 0
    writeHeader(view, at, layout, operation, flag, handle, id.lo, id.hi, sector)
    setUint64(view, at + layout.segments, request.sectors)
    return
  }
  writeHeader(view, at, layout, operation, request.segments.length, handle, id.lo, id.hi, sector)
  request.segments.slice(0, MAX_DIRECT_SEGMENTS).forEach((segment, i) => {
    const { ref, first, last } = segment
    writeSegment(view, at + layout.segments + 8 * i, ref, first, last)
  })
}

/** A response as it stands in the ring; each field is read once. */
export interface WireResponse {
  readonly id: RequestId
  readonly operation: number
  readonly status: number
}

/** The response has one layout in every ABI and starts where the slot starts. */
export function decodeResponse(view: DataView, at: number): WireResponse {
  return {
    id: { lo: view.getUint32(at, true), hi: view.getUint32(at + 4, true) },
    operation: view.getUint8(at + 8),
    status: view.getInt16(at + 10, true),
  }
}

/** Slots of a ring of `pages` pages: the largest power of two that fits. */
export function ringEntries(pages: number, stride: number): number {
  const raw = Math.floor((pages * PAGE_BYTES - RING_HEADER_BYTES) / stride)
  return 2 ** Math.floor(Math.log2(raw))
}
