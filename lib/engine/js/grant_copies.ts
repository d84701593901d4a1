/**
 * GrantCopies: segments queued for one grant copy call between guest pages and the arena. Each segment's own status is
 * looked at, and a call that fails as a whole fails all of them.
 */
import type { NativeGrants } from '../primitives.js'
import type { QueueCounters } from './counters.js'
import { type InFlight, OUTCOME } from './in_flight.js'

const WORDS = 4

export class GrantCopies {
  readonly #grants: NativeGrants
  readonly #domid: number
  readonly #counters: QueueCounters
  #table = new Uint32Array(64 * WORDS)
  #statuses = new Int16Array(64)
  readonly #owners: (InFlight | undefined)[] = []
  #count = 0

  constructor(grants: NativeGrants, domid: number, counters: QueueCounters) {
    this.#grants = grants
    this.#domid = domid
    this.#counters = counters
  }

  get count(): number {
    return this.#count
  }

  /** Queues a piece of one page; `length` is above 0, and neither side crosses a page. */
  add(owner: InFlight, ref: number, offset: number, length: number, arenaOffset: number): void {
    if (this.#count === this.#statuses.length) this.#grow()
    const row = this.#count * WORDS
    this.#table[row] = ref
    this.#table[row + 1] = offset
    this.#table[row + 2] = length
    this.#table[row + 3] = arenaOffset
    this.#owners[this.#count++] = owner
  }

  /** Copies what is queued; a request with a segment that could not be copied has failed. */
  run(toGuest: boolean): void {
    const count = this.#count
    if (count === 0) return
    this.#count = 0
    this.#counters.grantCalls++
    this.#counters.grantCopies += count
    // Failures until proven otherwise (XSA-361).
    this.#statuses.fill(-1, 0, count)
    this.#grants.copy(this.#domid, toGuest, count, this.#table, this.#statuses)
    for (let i = 0; i < count; i++) {
      if (this.#statuses[i] !== 0) failGrant(this.#owners[i]!, this.#counters)
      this.#owners[i] = undefined
    }
  }

  #grow(): void {
    const table = new Uint32Array(this.#table.length * 2)
    table.set(this.#table)
    this.#table = table
    this.#statuses = new Int16Array(this.#statuses.length * 2)
  }
}

/** A page of the request could not be reached; counted once a request. */
export function failGrant(item: InFlight, counters: QueueCounters): void {
  if (item.outcome === OUTCOME.grantFailed) return
  item.outcome = OUTCOME.grantFailed
  item.failed = true
  counters.grantErrors++
}
