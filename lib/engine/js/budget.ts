/**
 * Budget: what one ring may have in flight. When it is used up, requests stay on their ring: that is all the
 * back-pressure there is.
 */
import type { InFlight } from './in_flight.js'
import type { PagePool } from './page_pool.js'
import { PAGE_BYTES } from './wire.js'

export class Budget {
  readonly #pool: PagePool
  #bytes = 0
  /** Pool pages promised to the batch that is being taken. */
  #promised = 0

  constructor(pool: PagePool) {
    this.#pool = pool
  }

  beginBatch(): void {
    this.#promised = 0
  }

  /** Charges a request. One that is alone always fits, however large. */
  admit(item: InFlight, maxBytes: number): boolean {
    const pages = item.request.segmentCount
    const bytes = pages * PAGE_BYTES
    if (this.#bytes > 0 && this.#bytes + bytes > maxBytes) return false
    if (this.#promised + pages > this.#pool.available) return false
    this.#promised += pages
    item.budgetBytes = bytes
    this.#bytes += bytes
    return true
  }

  release(item: InFlight): void {
    this.#bytes -= item.budgetBytes
  }
}
