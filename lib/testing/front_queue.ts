/**
 * FrontQueue: one ring with everything that belongs to it: its pages and their grants, its event channel, its data
 * pages, and the table of requests in flight.
 *
 * The event loop's thread only. It turns pieces of operations into requests and answers into settled pieces. It
 * judges the backend strictly, as Linux's frontend does: an unknown id, a second answer, a wrong operation, an
 * impossible producer index or a page still mapped is a violation, told to the host and not forgiven.
 */

import type { PublishedRing } from './front_keys.js'
import { FrontRing } from './front_ring.js'
import type { Violation } from './frontend_events.js'
import { GrantPool } from './grant_pool.js'
import type { GuestContext } from './guest_context.js'
import {
  forEachPage,
  InFlight,
  pagesOfLargest,
  type QueueLimits,
  type RawRequest,
  type RawResponse,
} from './in_flight.js'
import type { Operation, Piece } from './operation.js'
import {
  encodeRequest,
  MAX_DISCARD_SECTORS,
  OPERATION,
  PAGE_BYTES,
  SECTORS_PER_PAGE,
  SEGMENTS_PER_INDIRECT_PAGE,
  STATUS,
  setUint64,
  type WireLayout,
  type WireResponse,
  writeHeader,
  writeSegment,
} from './wire.js'

export interface FrontQueueOptions {
  readonly guest: GuestContext
  readonly index: number
  /** The backend's domain. */
  readonly backendId: number
  readonly handle: number
  readonly layout: WireLayout
  readonly ringPages: number
  /** Requests in flight, at most; the ring may hold fewer. */
  readonly depth: number
  readonly ids: 'index' | 'wild'
  readonly host: FrontQueueHost
}

/** One ring handed to a load generator. */
export interface LentRing {
  readonly ringOffset: number
  readonly ringPages: number
  readonly port: number
}

export interface FrontQueueHost {
  /** A piece was answered. `status` is 0, -1 or -2. */
  answered(operation: Operation, piece: Piece, status: number): void
  /** Responses may have been taken: there may be room again. */
  drained(): void
  violation(violation: Violation): void
}

/** One ring of a frontend. */
export class FrontQueue {
  readonly index: number
  readonly ring: FrontRing
  readonly port: number
  readonly #options: FrontQueueOptions
  readonly #ringPage: number
  readonly #ringRefs: number[] = []
  readonly #table: InFlight[] = []
  /** Free entries of the table, last used first. */
  readonly #idle: InFlight[] = []
  #limits: QueueLimits | undefined
  #pool: GrantPool | undefined
  /** Set while someone else drives the ring: told of its events. */
  #lentTo: (() => void) | undefined
  #closed = false

  /** Makes the ring and its event channel. Throws ERR_VBD_STATE when the guest's memory does not suffice. */
  constructor(options: FrontQueueOptions) {
    const { guest, layout, ringPages, backendId } = options
    const { memory } = guest
    this.#options = options
    this.index = options.index
    this.#ringPage = memory.takePages(ringPages)
    this.ring = new FrontRing(memory.buffer, this.#ringPage * PAGE_BYTES, ringPages, layout)
    this.ring.initialise()
    let port: number | undefined
    try {
      for (let i = 0; i < ringPages; i++) {
        const ref = memory.grant(this.#ringPage + i, backendId, false)
        if (ref === undefined) throw memory.outOfPages()
        this.#ringRefs.push(ref)
      }
      port = guest.openPort(backendId, () => this.#onEvent())
    } finally {
      if (port === undefined) this.#freeRing()
    }
    this.port = port
    const depth = Math.min(this.ring.entries, options.depth)
    for (let i = depth - 1; i >= 0; i--) this.#idle.push(new InFlight(i))
    for (let i = 0; i < depth; i++) this.#table.push(this.#idle[depth - 1 - i]!)
  }

  get published(): PublishedRing {
    return { refs: this.#ringRefs, port: this.port }
  }

  get inFlight(): number {
    return this.#table.length - this.#idle.length
  }

  /** Requests of the largest kind that can always be sent. Throws ERR_VBD_STATE when not even one can. */
  start(limits: QueueLimits): void {
    const { guest, backendId } = this.#options
    this.#limits = limits
    this.#pool = new GrantPool({
      memory: guest.memory,
      domid: backendId,
      persistent: limits.persistent,
      budget: limits.pageBudget,
    })
    if (!this.#pool.reserve(pagesOfLargest(limits))) throw guest.memory.outOfPages()
  }

  /**
   * Sends the next piece of an operation, if there is room for it now; publish() makes it visible.
   * False: no slot or no page is free; the next answer frees some.
   */
  issue(operation: Operation): boolean {
    if (this.ring.free === 0 || this.#idle.length === 0 || this.#lentTo) return false
    const entry = this.#idle[this.#idle.length - 1]!
    if (operation.kind === 'discard') this.#sendDiscard(entry, operation)
    else if (!this.#sendData(entry, operation)) return false
    this.#idle.pop()
    return true
  }

  #sendDiscard(entry: InFlight, operation: Operation): void {
    const piece = operation.take(MAX_DISCARD_SECTORS)
    this.#begin(entry, operation, piece, OPERATION.discard)
    const { view, layout } = this.ring
    const at = this.ring.reserve()
    const flag = operation.secure ? 1 : 0
    const { handle } = this.#options
    const { idLo, idHi } = entry
    writeHeader(view, at, layout, OPERATION.discard, flag, handle, idLo, idHi, piece.sector)
    setUint64(view, at + layout.segments, piece.sectors)
  }

  #sendData(entry: InFlight, operation: Operation): boolean {
    const limits = this.#limits!
    const transfers = operation.kind === 'read' || operation.kind === 'write'
    const most = Math.max(limits.maxSegments, transfers ? limits.indirectSegments : 0)
    const sector = operation.nextSector
    const skew = sector % SECTORS_PER_PAGE
    const sectors = Math.min(operation.nextSectors, most * SECTORS_PER_PAGE - skew)
    const segments = sectors === 0 ? 0 : Math.ceil((skew + sectors) / SECTORS_PER_PAGE)
    const indirect = segments > limits.maxSegments
    const tables = indirect ? Math.ceil(segments / SEGMENTS_PER_INDIRECT_PAGE) : 0
    if (!this.#takePages(entry, segments, tables, operation.kind !== 'read')) return false

    const piece = operation.take(most * SECTORS_PER_PAGE - skew)
    this.#begin(entry, operation, piece, OPERATION[operation.kind])
    entry.skew = skew
    if (operation.kind !== 'read') this.#copyOut(entry)
    if (indirect) this.#writeIndirect(entry, segments)
    else this.#writeDirect(entry, segments)
    return true
  }

  /** Data pages first, then the pages of segment descriptors, which the backend only reads. */
  #takePages(entry: InFlight, data: number, tables: number, readOnly: boolean): boolean {
    const pool = this.#pool!
    entry.grow(data + tables)
    if (!pool.take(0, data, readOnly, entry.pages, entry.refs)) return false
    if (!pool.take(data, tables, true, entry.pages, entry.refs)) {
      pool.release(0, data, entry.pages, entry.refs)
      return false
    }
    entry.dataPages = data
    entry.pageCount = data + tables
    return true
  }

  #begin(entry: InFlight, operation: Operation, piece: Piece, expects: number): void {
    entry.used = true
    entry.operation = operation
    entry.piece = piece
    entry.expects = expects
    if (operation.kind === 'discard') {
      entry.pageCount = 0
      entry.dataPages = 0
    }
    this.#giveId(entry)
  }

  /**
   * Index ids are what Linux sends; wild ones fill all 64 bits, as pointers do, and differ from
   * request to request.
   */
  #giveId(entry: InFlight): void {
    if (this.#options.ids === 'index') {
      entry.idLo = entry.index
      entry.idHi = 0
      return
    }
    entry.idLo = ((Math.floor(Math.random() * 0x1_0000) << 16) | entry.index) >>> 0
    entry.idHi = Math.floor(Math.random() * 0x1_0000_0000)
  }

  #writeDirect(entry: InFlight, segments: number): void {
    const { view, layout } = this.ring
    const at = this.ring.reserve()
    const { idLo, idHi, expects, piece } = entry
    const { handle } = this.#options
    writeHeader(view, at, layout, expects, segments, handle, idLo, idHi, piece!.sector)
    for (let i = 0; i < segments; i++) {
      this.#writeSegment(entry, i, segments, at + layout.segments + 8 * i)
    }
  }

  #writeIndirect(entry: InFlight, segments: number): void {
    const { view, layout } = this.ring
    const at = this.ring.reserve()
    const { idLo, idHi, expects, piece } = entry
    writeHeader(view, at, layout, OPERATION.indirect, expects, segments, idLo, idHi, piece!.sector)
    view.setUint16(at + layout.segments, this.#options.handle, true)
    const tables = entry.pageCount - entry.dataPages
    for (let k = 0; k < tables; k++) {
      const ref = entry.refs[entry.dataPages + k]!
      view.setUint32(at + layout.indirectRefs + 4 * k, ref, true)
    }
    for (let i = 0; i < segments; i++) {
      const table = entry.pages[entry.dataPages + Math.floor(i / SEGMENTS_PER_INDIRECT_PAGE)]!
      this.#writeSegment(
        entry,
        i,
        segments,
        table * PAGE_BYTES + 8 * (i % SEGMENTS_PER_INDIRECT_PAGE),
      )
    }
  }

  #writeSegment(entry: InFlight, i: number, segments: number, at: number): void {
    const first = i === 0 ? entry.skew : 0
    const end = (entry.skew + entry.piece!.sectors - 1) % SECTORS_PER_PAGE
    const last = i === segments - 1 ? end : SECTORS_PER_PAGE - 1
    writeSegment(this.ring.view, at, entry.refs[i]!, first, last)
  }

  #copyOut(entry: InFlight): void {
    const data = entry.operation!.data
    if (data === undefined || entry.dataPages === 0) return
    const { bytes } = this.#options.guest.memory
    forEachPage(entry, (page, inPage, at, count) => {
      bytes.set(data.subarray(at, at + count), page * PAGE_BYTES + inPage)
    })
  }

  #copyIn(entry: InFlight): void {
    const operation = entry.operation!
    const { data } = operation
    if (data === undefined || operation.settled) return
    const { bytes } = this.#options.guest.memory
    forEachPage(entry, (page, inPage, at, count) => {
      const from = page * PAGE_BYTES + inPage
      data.set(bytes.subarray(from, from + count), at)
    })
  }

  /**
   * Sends a request as it is, bytes and all; for tests. Its id is given here. Resolves with the response, or
   * undefined when the connection ended before it came. Throws when the ring is full.
   */
  submitRaw(request: RawRequest): Promise<RawResponse | undefined> {
    const entry = this.ring.free === 0 ? undefined : this.#idle.pop()
    if (entry === undefined) throw new RangeError('the ring is full')
    entry.used = true
    entry.pageCount = 0
    entry.dataPages = 0
    const inner = request.operation === 'indirect' ? request.indirectOperation : request.operation
    entry.expects = OPERATION[inner]
    this.#giveId(entry)
    const id = { lo: entry.idLo, hi: entry.idHi }
    const at = this.ring.reserve()
    encodeRequest(this.ring.view, at, this.ring.layout, { ...request, id })
    const answer = new Promise<RawResponse | undefined>((resolve) => {
      entry.raw = resolve
    })
    this.publish()
    return answer
  }

  /** Makes what was issued visible, and notifies the backend if it asked for that. */
  publish(): void {
    if (this.#closed || this.#lentTo) return
    if (this.ring.publish()) this.#options.guest.native.notify(this.port)
  }

  #onEvent(): void {
    if (this.#lentTo !== undefined) this.#lentTo()
    else if (!this.#closed) this.drain()
  }

  /** Takes every response that is there. */
  drain(): void {
    if (this.#lentTo !== undefined) return
    for (;;) {
      const waiting = this.ring.waiting || this.ring.finalCheck()
      if (waiting === undefined) {
        const { rspProd } = this.ring.indices()
        this.#violation('response-overflow', `rsp_prod ${rspProd} is ahead of the requests`)
        return
      }
      if (waiting === 0) break
      for (let i = 0; i < waiting; i++) {
        if (!this.#complete(this.ring.take()) || this.#closed) return
      }
    }
    this.#options.host.drained()
  }

  #complete(response: WireResponse): boolean {
    const entry = this.#find(response)
    if (entry === undefined) return false
    if (response.operation !== entry.expects) {
      const { operation } = response
      this.#violation('wrong-operation', `a response names ${operation}, not ${entry.expects}`)
      return false
    }
    let { status } = response
    if (status !== STATUS.okay && status !== STATUS.error && status !== STATUS.unsupported) {
      this.#violation('bad-status', `a response has status ${status}`)
      status = STATUS.error
    }
    this.#finish(entry, status)
    return true
  }

  #find({ id }: WireResponse): InFlight | undefined {
    const entry = this.#table[this.#options.ids === 'index' ? id.lo : id.lo & 0xffff]
    const matches = entry !== undefined && entry.idLo === id.lo && entry.idHi === id.hi
    if (matches && entry.used) return entry
    const hex = `0x${((BigInt(id.hi) << 32n) | BigInt(id.lo)).toString(16)}`
    if (matches) this.#violation('duplicate-response', `request ${hex} was answered before`)
    else this.#violation('unknown-id', `no request has the id ${hex} of a response`)
    return undefined
  }

  #finish(entry: InFlight, status: number): void {
    const { operation, piece, raw } = entry
    if (status === STATUS.okay && operation?.kind === 'read') this.#copyIn(entry)
    const stillMapped = this.#pool?.release(0, entry.pageCount, entry.pages, entry.refs) ?? 0
    this.#free(entry)
    if (stillMapped > 0) {
      this.#violation('grant-still-mapped', `${stillMapped} pages are mapped after the response`)
    }
    if (raw !== undefined) raw({ status, operation: entry.expects })
    if (operation !== undefined) this.#options.host.answered(operation, piece!, status)
  }

  #free(entry: InFlight): void {
    entry.used = false
    entry.operation = undefined
    entry.piece = undefined
    entry.raw = undefined
    entry.pageCount = 0
    this.#idle.push(entry)
  }

  #violation(kind: Violation['kind'], message: string): void {
    this.#options.host.violation({ kind, queue: this.index, message })
  }

  /** Ends persistent grants that the backend no longer maps. */
  purge(): number {
    return this.#pool?.persistent === true ? this.#pool.purge() : 0
  }

  /** Hands the ring to someone else; the queue must be idle. `onEvent` is told of the ring's events meanwhile. */
  lend(onEvent: () => void): void {
    this.#lentTo = onEvent
  }

  /** Takes the ring back, once every request on it was answered. */
  takeBack(): void {
    if (this.#lentTo === undefined) return
    this.ring.adopt()
    this.#lentTo = undefined
    this.#options.guest.native.unmask(this.port)
  }

  /**
   * Gives up the connection: unanswered pieces go back to their operations, the port is closed, all pages are freed
   * or, where the backend maps them, quarantined. Returns how many that were.
   */
  close(): number {
    if (this.#closed) return 0
    this.#closed = true
    let stillMapped = 0
    for (const entry of this.#table) {
      if (!entry.used) continue
      this.#pool?.abandon(entry.pageCount, entry.pages, entry.refs)
      entry.raw?.(undefined)
      if (entry.operation !== undefined) entry.operation.putBack(entry.piece!)
      this.#free(entry)
    }
    this.#options.guest.closePort(this.port)
    stillMapped += this.#pool?.close() ?? 0
    stillMapped += this.#freeRing()
    return stillMapped
  }

  #freeRing(): number {
    const { memory } = this.#options.guest
    let stillMapped = 0
    for (let i = 0; i < this.ring.pages; i++) {
      const ref = this.#ringRefs[i]
      if (ref === undefined) memory.releasePages(this.#ringPage + i)
      else if (!memory.retire(this.#ringPage + i, ref)) stillMapped++
    }
    return stillMapped
  }
}
