/**
 * RawDisk: a guest's disk, request by request: each on the ring, with the segments and on the pages that its user
 * chooses, and nothing between. Owns data pages that stay granted to the backend until close().
 */
import type { Frontend } from '../../lib/testing/frontend.js'
import type { MockGuest } from '../../lib/testing/guest.js'
import {
  MAX_DIRECT_SEGMENTS,
  PAGE_BYTES,
  type Segment,
  STATUS,
  writeSegment,
} from '../../lib/testing/wire.js'

/** A part of one page. */
export interface Part {
  /** Of this disk's data pages. */
  readonly page: number
  /** Sectors within it, both inclusive. */
  readonly first: number
  readonly last: number
}

export type DataKind = 'read' | 'write' | 'flush' | 'barrier'

export class RawDisk {
  readonly frontend: Frontend
  readonly pages: number
  readonly #guest: MockGuest
  readonly #firstPage: number
  readonly #firstRef: number
  /** Requests on each ring. */
  readonly inFlight: number[]

  constructor(guest: MockGuest, frontend: Frontend, pages: number) {
    this.frontend = frontend
    this.pages = pages
    this.#guest = guest
    this.#firstPage = guest.memory.takePages(pages)
    const all = Array.from({ length: pages }, (_, i) => this.#firstPage + i)
    this.#firstRef = guest.memory.grantRun(all, frontend.backendId, false)
    this.inFlight = frontend.queues.map(() => 0)
  }

  /** One data page's bytes, in the guest's memory. */
  bytes(page: number): Buffer {
    const { buffer } = this.#guest.memory
    return Buffer.from(buffer, (this.#firstPage + page) * PAGE_BYTES, PAGE_BYTES)
  }

  /** Segments of the longest request. */
  get maxSegments(): number {
    return Math.max(MAX_DIRECT_SEGMENTS, this.frontend.properties.indirectSegments)
  }

  hasRoom(ring: number): boolean {
    return this.frontend.queues[ring]!.ring.free > 0
  }

  /**
   * Sends one request. Resolves with whether it was answered well; what is no answer of a backend's rejects.
   *
   * @param table a data page for its descriptors: then it is sent as an indirect one
   */
  async transfer(
    ring: number,
    kind: DataKind,
    sector: number,
    parts: readonly Part[],
    table?: number,
  ): Promise<boolean> {
    const segments: Segment[] = parts.map(({ page, first, last }) => ({
      ref: this.#firstRef + page,
      first,
      last,
    }))
    const handle = this.frontend.devid
    if (table === undefined) {
      return this.#status(ring, () =>
        this.frontend.submit({ operation: kind, handle, sector, segments }, ring),
      )
    }
    if (kind !== 'read' && kind !== 'write') throw new RangeError(`no ${kind} is indirect`)
    const bytes = this.bytes(table)
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
    for (const [i, { ref, first, last }] of segments.entries()) {
      writeSegment(view, 8 * i, ref, first, last)
    }
    const request = {
      operation: 'indirect',
      indirectOperation: kind,
      segmentCount: segments.length,
      indirectRefs: [this.#firstRef + table],
      handle,
      sector,
    } as const
    return this.#status(ring, () => this.frontend.submit(request, ring))
  }

  discard(ring: number, sector: number, sectors: number): Promise<boolean> {
    const handle = this.frontend.devid
    const request = { operation: 'discard', handle, sector, sectors } as const
    return this.#status(ring, () => this.frontend.submit(request, ring))
  }

  async #status(ring: number, send: () => ReturnType<Frontend['submit']>): Promise<boolean> {
    this.inFlight[ring]!++
    try {
      const response = await send()
      if (response?.status === STATUS.okay) return true
      if (response?.status === STATUS.error) return false
      throw new Error(`the answer was ${response === undefined ? 'none' : response.status}`)
    } finally {
      this.inFlight[ring]!--
    }
  }

  /** Ends the connection, then the grants; the backend must not hold any page. */
  async close(): Promise<void> {
    await this.frontend.close()
    const { memory } = this.#guest
    for (let i = 0; i < this.pages; i++) {
      if (memory.retire(this.#firstPage + i, this.#firstRef + i)) continue
      throw new Error(`page ${i} is mapped although the disk is closed`)
    }
  }
}
