/**
 * MapGroup: pages of several requests that one map call made and one unmap call must undo, since a mapping is unmapped
 * whole. The guest may reuse a page as soon as it sees the response, so the unmap comes first: a request that is done
 * waits in its group until the last one of it is.
 */
import type { NativeGrants, NativeMapping } from '../primitives.js'
import type { QueueCounters } from './counters.js'
import { type InFlight, InFlightList } from './in_flight.js'
import { Region } from './region.js'
import { OPERATION, PAGE_BYTES } from './wire.js'

export class MapGroup {
  readonly region: Region
  readonly pages: number
  /** Requests not finished yet. */
  users: number
  readonly waiting = new InFlightList()

  constructor(mapping: NativeMapping, pages: number, users: number) {
    this.region = new Region(mapping.region, mapping.buffer)
    this.pages = pages
    this.users = users
  }
}

/** Maps and unmaps the pages of batches, for one ring. */
export class MapGroups {
  readonly #grants: NativeGrants
  readonly #domid: number
  readonly #counters: QueueCounters
  /** Scratch: the references of one call. */
  #refs = new Uint32Array(64)

  constructor(grants: NativeGrants, domid: number, counters: QueueCounters) {
    this.#grants = grants
    this.#domid = domid
    this.#counters = counters
  }

  /** Maps the pages of all members with one call. False: refused. A member's pages follow each other in its group. */
  map(members: readonly InFlight[]): boolean {
    let pages = 0
    for (const { request } of members) pages += request.segmentCount
    if (this.#refs.length < pages) this.#refs = new Uint32Array(2 * pages)
    let n = 0
    for (const { request } of members) {
      for (let i = 0; i < request.segmentCount; i++) this.#refs[n++] = request.segments[2 * i]!
    }
    // What the guest writes we only read: frontends grant those pages read-only.
    const writable = members[0]!.request.operation === OPERATION.read
    this.#counters.grantCalls++
    let mapping: NativeMapping
    try {
      mapping = this.#grants.map(this.#domid, this.#refs, pages, writable)
    } catch {
      return false
    }
    this.#counters.grantMaps += pages
    const group = new MapGroup(mapping, pages, members.length)
    let start = 0
    for (const item of members) {
      item.group = group
      item.groupOffset = start
      start += item.request.segmentCount * PAGE_BYTES
    }
    return true
  }

  /** A member is done. Those that may be answered now, because the pages are unmapped, go to `ready`. */
  finish(item: InFlight, ready: InFlightList): void {
    const group = item.group!
    item.group = undefined
    group.waiting.push(item)
    if (--group.users > 0) return
    this.#counters.grantCalls++
    this.#counters.grantUnmaps += group.pages
    this.#grants.unmap(group.region.number)
    for (let next = group.waiting.pop(); next !== undefined; next = group.waiting.pop()) {
      ready.push(next)
    }
  }
}
