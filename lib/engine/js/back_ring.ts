/**
 * BackRing: the backend's end of one shared ring of 1 to 16 pages. Private indices, each shared word loaded at most
 * once, all index arithmetic modulo 2^32 (xen/include/public/io/ring.h). It does not own the shared pages.
 *
 *   word 0 req_prod   the frontend's     word 1 req_event   ours
 *   word 2 rsp_prod   ours               word 3 rsp_event   the frontend's
 *   word 16 on        slots, index & (entries - 1); a response goes where its slot begins
 *
 *   published ≤ rspProd ≤ reqCons ≤ reqProdSeen ≤ rspProd + entries
 *      └─ written, not pushed ─┘ └─ in flight ─┘ └─ available ─┘
 *
 *   beginPass();  while (next(slot)) … respond() …;  if (push()) notify;  idle: finalCheck()
 *
 * Memory order. The peer is another processor. The four indices are reached by Atomics, which are sequentially
 * consistent: what the frontend wrote into a slot before it moved req_prod is there when we have loaded req_prod; what
 * we wrote into a slot is there before it sees rsp_prod; and the load of rsp_event cannot move before the store of
 * rsp_prod, which is the full barrier that ring.h demands. Slots are plain loads and stores. A plain load is done
 * once, as it stands in the source: engines may not repeat a read of memory that others write (ECMA-262, "Shared
 * Memory Guidelines"), and make the same machine code whether a buffer is shared or not.
 *
 * Polling is not calling finalCheck(): as long as req_event lies behind, the frontend sends no events.
 */
import { VbdError } from '../../errors.js'
import { type Layout, MAX_RING_PAGES, PAGE_BYTES, RING, ringEntries, usedWords } from './wire.js'

export class BackRing {
  readonly entries: number
  readonly #shared: Uint32Array
  readonly #layout: Layout
  #reqCons: number
  #reqProdSeen: number
  #rspProd: number
  #published: number
  #stopped = false

  /**
   * Takes a ring that the frontend initialised, at its rsp_prod: one that an earlier backend drained is taken over
   * where it was.
   *
   * @throws ERR_VBD_ARGUMENT for a number of pages that is no power of two in 1..16, ERR_VBD_PROTOCOL when req_prod is
   *   further ahead than the ring is long
   */
  constructor(memory: ArrayBuffer, layout: Layout) {
    const pages = memory.byteLength / PAGE_BYTES
    if (pages < 1 || pages > MAX_RING_PAGES || (pages & (pages - 1)) !== 0) {
      const message = `a ring of ${pages} pages: 1, 2, 4, 8 or 16 are possible`
      throw new VbdError('ERR_VBD_ARGUMENT', message)
    }
    this.#shared = new Uint32Array(memory)
    this.#layout = layout
    this.entries = ringEntries(pages, layout)
    const rspProd = Atomics.load(this.#shared, RING.rspProd)
    const reqProd = Atomics.load(this.#shared, RING.reqProd)
    const ahead = (reqProd - rspProd) >>> 0
    if (ahead > this.entries) {
      throw new VbdError(
        'ERR_VBD_PROTOCOL',
        `the frontend's request producer ${reqProd} is ${ahead} ahead of response producer ${rspProd} ` +
          `on a ring of ${this.entries}`,
      )
    }
    this.#reqCons = rspProd | 0
    this.#reqProdSeen = rspProd | 0
    this.#rspProd = rspProd | 0
    this.#published = rspProd | 0
  }

  /** Requests consumed and not yet answered, 0..entries. */
  get inFlight(): number {
    return (this.#reqCons - this.#rspProd) >>> 0
  }

  /** Slots that beginPass() saw and next() would still deliver. */
  get available(): number {
    const seen = (this.#reqProdSeen - this.#reqCons) >>> 0
    return Math.min(seen, this.entries - this.inFlight)
  }

  /**
   * Whether the frontend has produced requests that no response answers, as the ring has it now. When just attached.
   */
  get hasRequests(): boolean {
    return (Atomics.load(this.#shared, RING.reqProd) | 0) !== this.#published
  }

  get hasUnpublished(): boolean {
    return this.#rspProd !== this.#published
  }

  /**
   * Loads the producer index: the one load of a pass. False: it ran further ahead than the ring is long, now or
   * earlier, and the ring is stopped for good; those in flight can still be answered. An index that moved
   * backwards is too far ahead as well: it would make old slots look like requests.
   */
  beginPass(): boolean {
    if (this.#stopped) return false
    const reqProd = Atomics.load(this.#shared, RING.reqProd) | 0
    if ((reqProd - this.#reqCons) >>> 0 > this.entries - this.inFlight) {
      this.#stopped = true
      this.#reqProdSeen = this.#reqCons
      return false
    }
    this.#reqProdSeen = reqProd
    return true
  }

  /**
   * Copies the next slot that beginPass() saw into private memory and consumes it: the words that its request uses, the
   * others of `slot` are left alone. False: none left, or no place for its response.
   */
  next(slot: Uint32Array): boolean {
    const index = this.#reqCons
    if (index === this.#reqProdSeen || this.inFlight >= this.entries) return false
    const layout = this.#layout
    const shared = this.#shared
    const from = RING.slots + (index & (this.entries - 1)) * layout.words
    const head = shared[from]!
    slot[0] = head
    const end = usedWords(head, layout)
    for (let i = 1; i < end; i++) slot[i] = shared[from + i]!
    this.#reqCons = (index + 1) | 0
    return true
  }

  /** Writes one response, every byte of it. Each consumed request is answered exactly once. */
  respond(idLow: number, idHigh: number, operation: number, status: number): void {
    if (this.inFlight === 0) throw new VbdError('ERR_VBD_INTERNAL', 'one response too many')
    const shared = this.#shared
    const to = RING.slots + (this.#rspProd & (this.entries - 1)) * this.#layout.words
    shared[to] = idLow
    shared[to + 1] = idHigh
    shared[to + 2] = operation | (status << 16)
    // The response's struct is as long as 64 bits align: its last word is padding, ours to write.
    if (this.#layout.id === 2) shared[to + 3] = 0
    this.#rspProd = (this.#rspProd + 1) | 0
  }

  /** Publishes all responses written since the last push. True: the frontend wants a notification. */
  push(): boolean {
    // What was published is remembered, not read back: the frontend could have changed it.
    const now = this.#rspProd
    const published = (now - this.#published) >>> 0
    if (published === 0) return false
    this.#published = now
    Atomics.store(this.#shared, RING.rspProd, now)
    const rspEvent = Atomics.load(this.#shared, RING.rspEvent)
    return (now - rspEvent) >>> 0 < published
  }

  /**
   * Asks the frontend for a notification of its next request, then looks once more. True: there is work, do not sleep;
   * also for a ring that turns out corrupt at the next beginPass(). False for one that is stopped: it never has work
   * again.
   */
  finalCheck(): boolean {
    if (this.#stopped) return false
    const shared = this.#shared
    if ((Atomics.load(shared, RING.reqProd) | 0) !== this.#reqCons) return true
    Atomics.store(shared, RING.reqEvent, this.#reqCons + 1)
    return (Atomics.load(shared, RING.reqProd) | 0) !== this.#reqCons
  }
}
