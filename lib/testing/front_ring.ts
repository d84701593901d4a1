/**
 * FrontRing: the frontend's end of one shared ring of 1 to 16 pages that lie contiguously in guest memory.
 *
 * The event loop's thread only. The ring owns no memory: whoever made the pages frees them.
 *
 *   off  0  u32 req_prod    ours        off  8  u32 rsp_prod    the backend's
 *   off  4  u32 req_event   the backend's   off 12  u32 rsp_event   ours
 *   off 64  slots, index & (entries - 1)
 *
 * Indices run freely over 32 bits; every difference is taken modulo 2^32 (`>>> 0`). The four shared words are reached
 * with Atomics, which are sequentially consistent: that is the `wmb`/`mb` of ring.h's macros.
 */
import {
  decodeResponse,
  PAGE_BYTES,
  RING_HEADER_BYTES,
  ringEntries,
  type WireLayout,
  type WireResponse,
} from './wire.js'

const REQ_PROD = 0
const REQ_EVENT = 1
const RSP_PROD = 2
const RSP_EVENT = 3

/** Whether moving an index from `old` to `now` passes `event`: ring.h's notification rule, modulo 2^32. */
export function passesEvent(old: number, now: number, event: number): boolean {
  return (now - event) >>> 0 < (now - old) >>> 0
}

/** Index values of a ring, all u32. */
export interface RingIndices {
  readonly reqProd: number
  readonly reqEvent: number
  readonly rspProd: number
  readonly rspEvent: number
}

export class FrontRing {
  readonly layout: WireLayout
  readonly pages: number
  readonly entries: number
  /** First byte of the ring in guest memory. */
  readonly byteOffset: number
  /** All of guest memory. */
  readonly view: DataView
  readonly #shared: Int32Array
  readonly #bytes: Uint8Array
  /** Requests written, published or not. */
  #reqProd = 0
  /** Requests published. */
  #published = 0
  #rspCons = 0

  /** @param pages 1, 2, 4, 8 or 16 */
  constructor(memory: ArrayBufferLike, byteOffset: number, pages: number, layout: WireLayout) {
    this.layout = layout
    this.pages = pages
    this.byteOffset = byteOffset
    this.entries = ringEntries(pages, layout.stride)
    this.view = new DataView(memory)
    this.#bytes = new Uint8Array(memory)
    this.#shared = new Int32Array(memory, byteOffset, 4)
  }

  /** SHARED_RING_INIT: everything zero, one event wanted by each side. */
  initialise(): void {
    this.#bytes.fill(0, this.byteOffset, this.byteOffset + this.pages * PAGE_BYTES)
    Atomics.store(this.#shared, REQ_EVENT, 1)
    Atomics.store(this.#shared, RSP_EVENT, 1)
    this.#reqProd = 0
    this.#published = 0
    this.#rspCons = 0
  }

  /** Takes the private indices from the shared ones: after someone else drove the ring and left it empty. */
  adopt(): void {
    this.#reqProd = Atomics.load(this.#shared, REQ_PROD) >>> 0
    this.#published = this.#reqProd
    this.#rspCons = this.#reqProd
    Atomics.store(this.#shared, RSP_EVENT, (this.#rspCons + 1) | 0)
  }

  /** Slots that a request may still be written to. */
  get free(): number {
    return this.entries - ((this.#reqProd - this.#rspCons) >>> 0)
  }

  get hasUnpublished(): boolean {
    return this.#reqProd !== this.#published
  }

  /** Byte offset in guest memory of slot `index` (any u32). */
  slotOffset(index: number): number {
    return this.byteOffset + RING_HEADER_BYTES + (index & (this.entries - 1)) * this.layout.stride
  }

  /** The next slot to write, zeroed; it counts as written. Only while `free` > 0. */
  reserve(): number {
    const at = this.slotOffset(this.#reqProd)
    this.#bytes.fill(0, at, at + this.layout.stride)
    this.#reqProd = (this.#reqProd + 1) >>> 0
    return at
  }

  /** Publishes every written request. True: the backend wants a notification. */
  publish(): boolean {
    const old = this.#published
    const now = this.#reqProd
    if (old === now) return false
    Atomics.store(this.#shared, REQ_PROD, now | 0)
    this.#published = now
    return passesEvent(old, now, Atomics.load(this.#shared, REQ_EVENT) >>> 0)
  }

  /**
   * Responses that wait to be taken. undefined: `rsp_prod` is ahead of what was asked, the backend broke the ring.
   */
  get waiting(): number | undefined {
    const rspProd = Atomics.load(this.#shared, RSP_PROD) >>> 0
    const waiting = (rspProd - this.#rspCons) >>> 0
    return waiting > (this.#published - this.#rspCons) >>> 0 ? undefined : waiting
  }

  /** Takes the next response. Only while `waiting` > 0. */
  take(): WireResponse {
    const response = decodeResponse(this.view, this.slotOffset(this.#rspCons))
    this.#rspCons = (this.#rspCons + 1) >>> 0
    return response
  }

  /** RING_FINAL_CHECK_FOR_RESPONSES: asks for an event on the next response, then looks once more. */
  finalCheck(): number | undefined {
    Atomics.store(this.#shared, RSP_EVENT, (this.#rspCons + 1) | 0)
    return this.waiting
  }

  /** The shared words as they are now. */
  indices(): RingIndices {
    return {
      reqProd: Atomics.load(this.#shared, REQ_PROD) >>> 0,
      reqEvent: Atomics.load(this.#shared, REQ_EVENT) >>> 0,
      rspProd: Atomics.load(this.#shared, RSP_PROD) >>> 0,
      rspEvent: Atomics.load(this.#shared, RSP_EVENT) >>> 0,
    }
  }

  /** Overwrites shared words behind the ring's back: for hostile guests. */
  overwrite(indices: Partial<RingIndices>): void {
    const words: [keyof RingIndices, number][] = [
      ['reqProd', REQ_PROD],
      ['reqEvent', REQ_EVENT],
      ['rspProd', RSP_PROD],
      ['rspEvent', RSP_EVENT],
    ]
    for (const [name, word] of words) {
      const value = indices[name]
      if (value !== undefined) Atomics.store(this.#shared, word, value | 0)
    }
  }
}
