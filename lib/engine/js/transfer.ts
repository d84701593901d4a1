/**
 * Transfer: makes the guest pages of a batch of requests reachable, and lets them go again. One per ring. Three
 * strategies, because each wins somewhere:
 *
 *   persistent  found mapped, by its reference: no call; a miss is mapped once and kept; a full cache: as copy
 *   copy        through pages of the pool: one grant copy call before the writes of a batch, one after its reads
 *   map         one map call for the reads and one for the writes of a batch, one unmap call each when the last is done
 *
 * Descriptor pages of indirect requests are copied to private memory and checked there, whatever the strategy.
 */
import type { Transfer as Strategy } from '../engine.js'
import type { NativeGrants } from '../primitives.js'
import type { QueueCounters } from './counters.js'
import { failGrant, GrantCopies } from './grant_copies.js'
import { type InFlight, InFlightList, OUTCOME } from './in_flight.js'
import { MapGroups } from './map_groups.js'
import type { PagePool } from './page_pool.js'
import { INSERT, NO_ENTRY, PersistentGrants } from './persistent_grants.js'
import type { Region } from './region.js'
import { checkSegments, type Limits, REJECT } from './request.js'
import {
  firstSector,
  lastSector,
  MAX_INDIRECT_PAGES,
  OPERATION,
  PAGE_BYTES,
  SECTOR_BYTES,
  SEGMENTS_PER_INDIRECT_PAGE,
} from './wire.js'

/** A batch holds so many requests at most, and no more segments but for those of its last request. */
export const BATCH_REQUESTS = 64
export const BATCH_SEGMENTS = 2048

/**
 * Of a ring that is busy alone, where pages stay mapped and there is no grant call to spread: half of a one-page ring.
 * The guest fills it again while the other half is worked on.
 */
export const BATCH_ALONE = 16

/** The arena's first pages: where the descriptors of a batch are copied to. */
export const SCRATCH_PAGES = (BATCH_REQUESTS + 1) * MAX_INDIRECT_PAGES

export interface TransferOptions {
  readonly strategy: Strategy
  readonly domid: number
  readonly maxPersistentGrants: number
  /** The disk writes every byte of a read's memory; else pool pages are zeroed first. */
  readonly readsFillBuffers: boolean
}

export class Transfer {
  readonly strategy: Strategy
  readonly #o: TransferOptions
  readonly #pool: PagePool
  readonly #counters: QueueCounters
  readonly #copies: GrantCopies
  readonly #persistent: PersistentGrants | undefined
  readonly #groups: MapGroups
  /** Of finish(): empty in between. */
  readonly #chunk = new InFlightList()
  readonly #reads: InFlight[] = []
  readonly #writes: InFlight[] = []
  /** Whose descriptors are in which scratch page, and which of its pages that is. */
  readonly #fetched: InFlight[] = []
  readonly #fetchedPages = new Uint8Array(SCRATCH_PAGES)

  constructor(
    options: TransferOptions,
    grants: NativeGrants,
    pool: PagePool,
    counters: QueueCounters,
  ) {
    const { strategy, domid, maxPersistentGrants } = options
    this.strategy = strategy
    this.#o = options
    this.#pool = pool
    this.#counters = counters
    this.#copies = new GrantCopies(grants, domid, counters)
    this.#groups = new MapGroups(grants, domid, counters)
    if (strategy === 'persistent') {
      this.#persistent = new PersistentGrants(grants, domid, maxPersistentGrants)
    }
  }

  get persistentGrants(): number {
    return this.#persistent?.size ?? 0
  }

  /**
   * Reaches the pages of every request in the batch: sets `outcome`, the pieces, and the sectors of indirect ones. A
   * request whose outcome is not `ready` holds nothing.
   */
  prepare(batch: readonly InFlight[], limits: Limits, nowMs: number): void {
    let anyIndirect = false
    for (let i = 0; i < batch.length; i++) {
      const item = batch[i]!
      item.outcome = OUTCOME.ready
      item.pageCount = 0
      item.pieceCount = 0
      if (item.request.indirect) anyIndirect = true
    }
    if (anyIndirect) this.#fetchDescriptors(batch, limits, nowMs)

    if (this.strategy === 'map') {
      this.#reachMapped(batch)
    } else {
      for (let i = 0; i < batch.length; i++) {
        const item = batch[i]!
        if (item.outcome !== OUTCOME.ready) continue
        if (this.#persistent !== undefined) this.#reachPersistent(this.#persistent, item, nowMs)
        else this.#reachCopy(item)
      }
      this.#copies.run(false)
    }
    for (let i = 0; i < batch.length; i++) {
      const item = batch[i]!
      if (item.outcome === OUTCOME.ready) this.#cutPieces(item)
      else this.#letGo(item)
    }
  }

  /**
   * Takes requests that the disk is done with (failed or not), copies what was read to the guest, lets the pages go,
   * and moves to `ready` all that may now be answered: these, and those that waited for their unmap.
   */
  finish(done: InFlightList, ready: InFlightList): void {
    while (!done.empty) {
      // Nearly always everything at once.
      const chunk = this.#chunk
      while (!done.empty && this.#copies.count < BATCH_SEGMENTS) {
        const item = done.pop()!
        chunk.push(item)
        if (item.request.operation === OPERATION.read && !item.failed) this.#copyBack(item)
      }
      this.#copies.run(true)
      for (let item = chunk.pop(); item !== undefined; item = chunk.pop()) {
        this.#letGo(item)
        if (item.group !== undefined) this.#groups.finish(item, ready)
        else ready.push(item)
      }
    }
  }

  /** Every 100 ms: the purge of persistent grants. */
  purge(nowMs: number, maxPersistentGrants: number, idleMs: number): void {
    if (this.#persistent === undefined) return
    this.#persistent.cap = maxPersistentGrants
    const dropped = this.#persistent.purge(nowMs, idleMs)
    this.#counters.persistentGrantsPurged += dropped
    this.#counters.grantUnmaps += dropped
    this.#counters.grantCalls += dropped
    this.#counters.persistentGrants = this.#persistent.size
  }

  /** Unmaps all. Nothing is in flight. */
  close(): void {
    if (this.#persistent === undefined) return
    this.#counters.grantUnmaps += this.#persistent.clear()
    this.#counters.persistentGrants = 0
  }

  // ---- descriptors

  /** Brings the descriptors of every indirect request into private memory, with one copy call, and checks them. */
  #fetchDescriptors(batch: readonly InFlight[], limits: Limits, nowMs: number): void {
    const fetched = this.#fetched
    for (let i = 0; i < batch.length; i++) {
      const item = batch[i]!
      if (!item.request.indirect) continue
      const pages = item.request.indirectPages
      for (let page = 0; page < pages; page++) {
        if (this.#readMappedDescriptors(item, page, nowMs)) continue
        const ref = item.request.indirectRefs[page]!
        const bytes = 8 * descriptorsOnPage(item, page)
        this.#copies.add(item, ref, 0, bytes, fetched.length * PAGE_BYTES)
        fetched.push(item)
        this.#fetchedPages[fetched.length - 1] = page
      }
    }
    this.#copies.run(false)
    for (let i = 0; i < fetched.length; i++) {
      const from = (i * PAGE_BYTES) / 4
      takeDescriptors(fetched[i]!, this.#fetchedPages[i]!, this.#pool.region.words, from)
    }
    fetched.length = 0
    for (let i = 0; i < batch.length; i++) {
      const item = batch[i]!
      if (!item.request.indirect || item.outcome !== OUTCOME.ready) continue
      item.reject = checkSegments(limits, item.request)
      if (item.reject !== REJECT.none) item.outcome = OUTCOME.rejected
    }
  }

  /** Frontends with persistent grants keep their descriptor pages granted, too. False: not mapped here, copy it. */
  #readMappedDescriptors(item: InFlight, page: number, nowMs: number): boolean {
    const cache = this.#persistent
    if (cache === undefined) return false
    const ref = item.request.indirectRefs[page]!
    const entry = this.#pin(cache, ref, nowMs)
    if (entry < 0) return false
    takeDescriptors(item, page, cache.region(entry).words, 0)
    cache.release(entry)
    return true
  }

  // ---- pages

  #reachPersistent(cache: PersistentGrants, item: InFlight, nowMs: number): void {
    const { segmentCount, segments } = item.request
    const { owners } = item.arrays
    for (let i = 0; i < segmentCount; i++) {
      const entry = this.#pin(cache, segments[2 * i]!, nowMs)
      if (entry === FULL) {
        this.#counters.persistentGrantsOverflow++
        this.#takePoolPage(item, i)
        continue
      }
      if (entry === REFUSED) {
        failGrant(item, this.#counters)
        return
      }
      owners[i] = entry
      item.pageCount = i + 1
    }
  }

  /** The entry of a persistent grant, pinned; mapped now if it has to be. FULL or REFUSED, below 0, if it cannot. */
  #pin(cache: PersistentGrants, ref: number, nowMs: number): number {
    const found = cache.acquire(ref, nowMs)
    if (found !== NO_ENTRY) return found
    const inserted = cache.insert(ref)
    if (inserted === INSERT.full) return FULL
    this.#counters.grantCalls++
    if (inserted === INSERT.refused) return REFUSED
    this.#counters.grantMaps++
    this.#counters.persistentGrants = cache.size
    return cache.acquire(ref, nowMs)
  }

  #reachCopy(item: InFlight): void {
    for (let i = 0; i < item.request.segmentCount; i++) this.#takePoolPage(item, i)
  }

  /** A page of the pool stands for the guest's; of what the guest writes, a copy is queued. */
  #takePoolPage(item: InFlight, index: number): void {
    const page = this.#pool.acquire()
    item.arrays.owners[index] = -1 - page
    item.pageCount = index + 1
    if (item.request.operation !== OPERATION.read) {
      this.#queueCopy(item, index, page)
    } else if (!this.#o.readsFillBuffers) {
      this.#pool.region.bytes.fill(0, page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
    }
  }

  #queueCopy(item: InFlight, index: number, page: number): void {
    const { segments } = item.request
    const word = segments[2 * index + 1]!
    const offset = firstSector(word) * SECTOR_BYTES
    const length = segmentBytes(word)
    this.#copies.add(item, segments[2 * index]!, offset, length, page * PAGE_BYTES + offset)
  }

  #copyBack(item: InFlight): void {
    if (item.group !== undefined) return
    const { owners } = item.arrays
    for (let i = 0; i < item.pageCount; i++) {
      if (owners[i]! < 0) this.#queueCopy(item, i, -1 - owners[i]!)
    }
  }

  /** One map call for each direction; if Xen refuses it, one for each request, to find the bad one. */
  #reachMapped(batch: readonly InFlight[]): void {
    const reads = this.#reads
    const writes = this.#writes
    for (let i = 0; i < batch.length; i++) {
      const item = batch[i]!
      if (item.outcome !== OUTCOME.ready || item.request.segmentCount === 0) continue
      ;(item.request.operation === OPERATION.read ? reads : writes).push(item)
    }
    for (const members of [reads, writes]) {
      if (members.length === 0 || this.#groups.map(members)) continue
      for (const item of members) {
        if (members.length === 1 || !this.#groups.map([item])) failGrant(item, this.#counters)
      }
    }
    reads.length = 0
    writes.length = 0
  }

  /** Neighbouring pages become one piece: with luck a whole request is one, which is what disks like best. */
  #cutPieces(item: InFlight): void {
    const { request, arrays, group } = item
    const { segments } = request
    const { regions, starts, lengths } = arrays
    let last = -1
    for (let i = 0; i < request.segmentCount; i++) {
      const word = segments[2 * i + 1]!
      let region: Region
      let start = firstSector(word) * SECTOR_BYTES
      if (group !== undefined) {
        region = group.region
        start += item.groupOffset + i * PAGE_BYTES
      } else {
        const owner = arrays.owners[i]!
        if (owner >= 0) {
          region = this.#persistent!.region(owner)
        } else {
          region = this.#pool.region
          start += (-1 - owner) * PAGE_BYTES
        }
      }
      const length = segmentBytes(word)
      if (last >= 0 && regions[last] === region && starts[last]! + lengths[last]! === start) {
        lengths[last]! += length
        continue
      }
      last++
      regions[last] = region
      starts[last] = start
      lengths[last] = length
    }
    item.pieceCount = last + 1
  }

  /** Last first: the pool then hands the run out again in ascending order. */
  #letGo(item: InFlight): void {
    const { owners } = item.arrays
    for (let i = item.pageCount - 1; i >= 0; i--) {
      const owner = owners[i]!
      if (owner >= 0) this.#persistent!.release(owner)
      else this.#pool.release(-1 - owner)
    }
    item.pageCount = 0
  }
}

const FULL = -2
const REFUSED = -3

function segmentBytes(word: number): number {
  return (lastSector(word) - firstSector(word) + 1) * SECTOR_BYTES
}

function descriptorsOnPage(item: InFlight, page: number): number {
  const left = item.request.segmentCount - page * SEGMENTS_PER_INDIRECT_PAGE
  return Math.min(left, SEGMENTS_PER_INDIRECT_PAGE)
}

/** Copies descriptors out of a page that the guest may still be changing: each word is loaded once. */
function takeDescriptors(item: InFlight, page: number, from: Uint32Array, at: number): void {
  const to = item.request.segments
  const first = page * SEGMENTS_PER_INDIRECT_PAGE * 2
  const words = descriptorsOnPage(item, page) * 2
  for (let i = 0; i < words; i++) to[first + i] = from[at + i]!
}
