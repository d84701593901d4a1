/**
 * TwinGuest: two guests of one mock that are the same in every byte: memory, grants, rings. What one does, the other
 * does; afterwards they are compared.
 *
 *   page 0 on           the rings
 *   DATA on             pages that requests name, each under the reference REF0 + page; some only to be read
 *   TABLES on           pages for descriptors of indirect requests
 */
import type { Addon, NativeMockGuest } from '../../lib/engine/addon.js'
import type { RingLayout } from '../../lib/engine/engine.js'
import { FrontRing } from '../../lib/testing/front_ring.js'
import { LAYOUTS, PAGE_BYTES, type WireResponse } from '../../lib/testing/wire.js'
import { Random } from './random.js'
import type { Setting } from './stream.js'

export const DATA_PAGES = 512
export const TABLE_PAGES = 24
const RING_PAGES = 32
export const DATA = RING_PAGES
export const TABLES = DATA + DATA_PAGES
export const PAGES = TABLES + TABLE_PAGES
/**
 * No number of sectors of a disk here, and no two bytes below ten, as spoilt requests have them where a reference
 * belongs: those are to be none, not somebody else's page.
 */
export const REF0 = 0x2000

/** The reference of a page. */
export function refOf(page: number): number {
  return REF0 + page
}

/** Every eighth data page is granted to be read only. */
export function isReadOnly(page: number): boolean {
  return page >= DATA && page < TABLES && (page - DATA) % 8 === 7
}

export class TwinGuest {
  readonly domid: number
  readonly native: NativeMockGuest
  readonly bytes: Uint8Array
  readonly view: DataView
  rings: FrontRing[] = []
  ports: number[] = []

  constructor(addon: Addon, socket: string, domid: number) {
    this.domid = domid
    this.native = addon.connectMockGuest(
      socket,
      domid,
      PAGES,
      () => {},
      () => {},
    )
    this.bytes = new Uint8Array(this.native.memory)
    this.view = new DataView(this.native.memory)
    new Random(1).fill(this.bytes.subarray(DATA * PAGE_BYTES, TABLES * PAGE_BYTES))
    for (let page = 0; page < PAGES; page++) {
      this.native.grant(refOf(page), page, 0, isReadOnly(page))
    }
  }

  /** New rings and ports, as after a handshake. */
  layOut(setting: Setting): RingLayout[] {
    const { rings, ringPages, protocol } = setting
    this.rings = []
    for (const port of this.ports.splice(0)) this.native.closePort(port)
    return Array.from({ length: rings }, (_, i) => {
      const first = i * 16
      const ring = new FrontRing(
        this.native.memory,
        first * PAGE_BYTES,
        ringPages,
        LAYOUTS[protocol],
      )
      ring.initialise()
      this.rings.push(ring)
      const eventChannel = this.native.allocUnbound(0)
      this.ports.push(eventChannel)
      const ringRefs = Array.from({ length: ringPages }, (_, page) => refOf(first + page))
      return { ringRefs, eventChannel }
    })
  }

  /** Everything but the rings. */
  data(): Uint8Array {
    return this.bytes.subarray(DATA * PAGE_BYTES)
  }

  publish(ring: number): void {
    if (this.rings[ring]!.publish()) this.native.notify(this.ports[ring]!)
  }

  /** Takes the responses that are there. */
  take(ring: number, into: WireResponse[]): void {
    const front = this.rings[ring]!
    const waiting = front.waiting
    if (waiting === undefined) throw new Error('the response producer is ahead of the requests')
    for (let i = 0; i < waiting; i++) into.push(front.take())
    if (waiting > 0) front.finalCheck()
  }

  close(): void {
    this.native.close()
  }
}
