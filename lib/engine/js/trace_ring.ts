/**
 * TraceRing: one ring's answered requests on their way to whoever watches. When nobody takes them fast enough records
 * are dropped and counted. One per ring of a vbd, kept over its connections; takes memory once it has been switched on.
 */
import { TRACE_FIELDS } from '../engine.js'
import type { InFlight } from './in_flight.js'

const FIELDS = TRACE_FIELDS.length
/** As many as the native engine keeps; a power of two. */
const RECORDS = 16_384

export class TraceRing {
  readonly #queue: number
  #on = false
  #records = new Float64Array(0)
  #head = 0
  #tail = 0
  #dropped = 0

  constructor(queue: number) {
    this.#queue = queue
  }

  get on(): boolean {
    return this.#on
  }

  /** Records lost since the beginning. */
  get dropped(): number {
    return this.#dropped
  }

  /** Records that wait to be taken. */
  get waiting(): number {
    return this.#head - this.#tail
  }

  set(on: boolean): void {
    if (on && this.#records.length === 0) this.#records = new Float64Array(RECORDS * FIELDS)
    this.#on = on
  }

  /** While `on`. */
  record(item: InFlight, status: number, nowNs: number): void {
    if (this.waiting === RECORDS) {
      this.#dropped++
      return
    }
    const { request, startedNs } = item
    const records = this.#records
    let at = (this.#head++ % RECORDS) * FIELDS
    records[at++] = startedNs
    records[at++] = this.#queue
    records[at++] = request.wireOperation
    records[at++] = status
    records[at++] = request.sector
    records[at++] = request.sectors
    records[at++] = request.segmentCount
    records[at] = nowNs - startedNs
  }

  /** Moves records, the oldest first, to `to` from `at` on, as many as fit; how many. */
  take(to: Float64Array, at: number): number {
    const room = Math.floor((to.length - at) / FIELDS)
    const count = Math.min(room, this.waiting)
    for (let i = 0; i < count; i++) {
      const from = (this.#tail++ % RECORDS) * FIELDS
      to.set(this.#records.subarray(from, from + FIELDS), at + i * FIELDS)
    }
    return count
  }
}

/** Takes what waits in all of these rings. */
export function takeTraces(rings: readonly TraceRing[]): {
  records: Float64Array
  dropped: number
} {
  const waiting = rings.reduce((total, ring) => total + ring.waiting, 0)
  const records = new Float64Array(waiting * FIELDS)
  let taken = 0
  for (const ring of rings) taken += ring.take(records, taken * FIELDS)
  return { records, dropped: rings.reduce((total, ring) => total + ring.dropped, 0) }
}
