/**
 * HostileGuest: hands that break the rules of blkif, for tests of what a backend does about it.
 *
 * It takes the rings of a connected Frontend, which does not look at them any more, and writes whatever it likes into
 * shared memory and xenstore. The event loop's thread only. When it is done, close the frontend without draining.
 */

import { VbdError } from '../errors.js'
import { within } from './front_bus.js'
import type { FrontQueue } from './front_queue.js'
import type { FrontRing, RingIndices } from './front_ring.js'
import type { Frontend } from './frontend.js'
import type { GuestContext } from './guest_context.js'
import { FIRST_GRANT_REF, GRANT_REFS } from './guest_memory.js'
import { encodeRequest, PAGE_BYTES, type WireRequest, type WireResponse } from './wire.js'

/** Values that no key should have; a backend must refuse or ignore each of them. */
export const JUNK_VALUES: readonly string[] = [
  '',
  '-1',
  '+1',
  '00',
  '08',
  ' 1',
  '1 ',
  '1.0',
  '1e3',
  '0x1f',
  '4294967295',
  '4294967296',
  '18446744073709551616',
  '99999999999999999999999999',
  'NaN',
  'true',
  '__proto__',
  '../../../local/domain/0',
  '%s%n',
  '1\x002',
  '\n\x1b[2J',
  '\xff\xfe\x80',
  '9'.repeat(2000),
]

/** Breaks rules on purpose. */
export class HostileGuest {
  readonly #guest: GuestContext
  readonly #frontend: Frontend
  /** Listeners for the next event, per queue. */
  readonly #waiting = new Map<number, () => void>()
  /** Granted pages and their references, ended in `cleanUp`. */
  readonly #extra: { page: number; ref: number }[] = []

  /** @param frontend connected and idle; it is lent from now on */
  constructor(guest: GuestContext, frontend: Frontend) {
    this.#guest = guest
    this.#frontend = frontend
    frontend.lend((queue) => this.#waiting.get(queue)?.())
  }

  #queue(queue: number): FrontQueue {
    const found = this.#frontend.queues[queue]
    if (found === undefined) throw new RangeError(`there is no queue ${queue}`)
    return found
  }

  ring(queue = 0): FrontRing {
    return this.#queue(queue).ring
  }

  /** The live bytes of a slot, by its index (any u32). */
  slot(index: number, queue = 0): Uint8Array {
    const ring = this.ring(queue)
    const { bytes } = this.#guest.memory
    const at = ring.slotOffset(index)
    return bytes.subarray(at, at + ring.layout.stride)
  }

  /** Writes a request, right or wrong, into the next slot and publishes it. */
  send(request: WireRequest | Uint8Array, queue = 0): void {
    const ring = this.ring(queue)
    const at = ring.reserve()
    if (request instanceof Uint8Array) {
      this.#guest.memory.bytes.set(request.subarray(0, ring.layout.stride), at)
    } else encodeRequest(ring.view, at, ring.layout, request)
    if (ring.publish()) this.notify(queue)
  }

  notify(queue = 0): void {
    this.#guest.native.notify(this.#queue(queue).port)
  }

  /** Notifies `count` times, for nothing. */
  storm(count: number, queue = 0): void {
    const { port } = this.#queue(queue)
    for (let i = 0; i < count; i++) this.#guest.native.notify(port)
  }

  /** Writes shared indices at will, and notifies. */
  overwrite(indices: Partial<RingIndices>, queue = 0): void {
    this.ring(queue).overwrite(indices)
    this.notify(queue)
  }

  /** Moves `req_prod` by any amount, u32, and notifies. */
  jump(by: number, queue = 0): void {
    const { reqProd } = this.ring(queue).indices()
    this.overwrite({ reqProd: (reqProd + by) >>> 0 }, queue)
  }

  /**
   * Publishes a request and goes on changing its slot between the two contents, `rounds` times, while the backend
   * may be reading it. Ends with `second`.
   */
  flicker(first: Uint8Array, second: Uint8Array, rounds: number, queue = 0): void {
    const ring = this.ring(queue)
    const { bytes } = this.#guest.memory
    const at = ring.reserve()
    bytes.set(first, at)
    if (ring.publish()) this.notify(queue)
    for (let i = 0; i < rounds; i++) bytes.set(i % 2 === 0 ? second : first, at)
    bytes.set(second, at)
  }

  /**
   * Takes `count` responses, whatever they are.
   * @throws ERR_VBD_TIMEOUT when they do not come, ERR_VBD_PROTOCOL when `rsp_prod` is ahead of the requests
   */
  async responses(count: number, queue = 0, timeoutMs = 10_000): Promise<WireResponse[]> {
    const ring = this.ring(queue)
    const taken: WireResponse[] = []
    const late = () => {
      const message = `${taken.length} of ${count} responses came`
      return new VbdError('ERR_VBD_TIMEOUT', message)
    }
    while (taken.length < count) {
      const event = new Promise<void>((resolve) => this.#waiting.set(queue, resolve))
      const waiting = ring.waiting || ring.finalCheck()
      if (waiting === undefined) throw new VbdError('ERR_VBD_PROTOCOL', 'rsp_prod is ahead')
      for (let i = 0; i < waiting && taken.length < count; i++) taken.push(ring.take())
      if (taken.length < count && waiting === 0) await within(event, { timeoutMs }, late)
    }
    return taken
  }

  /** A page of ours under a grant; for requests that are right but for one thing. */
  grant(options: { readOnly?: boolean; domid?: number } = {}): { page: number; ref: number } {
    const { memory } = this.#guest
    const page = memory.takePage()
    const domid = options.domid ?? this.#frontend.backendId
    const ref =
      page === undefined ? undefined : memory.grant(page, domid, options.readOnly === true)
    if (page === undefined || ref === undefined) throw memory.outOfPages()
    const granted = { page, ref }
    this.#extra.push(granted)
    return granted
  }

  /** The bytes of a page of ours. */
  page(page: number): Uint8Array {
    return this.#guest.memory.bytes.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
  }

  /** References that the backend must not get anything for, each with what is wrong with it. */
  badRefs(): { ref: number; why: string }[] {
    const other = this.#frontend.backendId === 0 ? 1 : 0
    return [
      { ref: 0, why: 'reserved' },
      { ref: FIRST_GRANT_REF - 1, why: 'reserved' },
      { ref: this.#unused(), why: 'not granted' },
      { ref: GRANT_REFS, why: 'beyond the table' },
      { ref: 0x7fff_ffff, why: 'far beyond the table' },
      { ref: 0xffff_ffff, why: 'the highest there is' },
      { ref: this.grant({ domid: other }).ref, why: 'granted to another domain' },
    ]
  }

  /** A reference that is free now. */
  #unused(): number {
    const { ref, page } = this.grant()
    this.#extra.pop()
    this.#guest.memory.retire(page, ref)
    return ref
  }

  /** Writes a key of our directory. */
  async writeKey(name: string, value: string): Promise<void> {
    await this.#guest.xenstore.write(`${this.#frontend.path}/${name}`, value)
  }

  /** Writes these states one after the other, `rounds` times. */
  async flipState(states: readonly (number | string)[], rounds: number): Promise<void> {
    for (let i = 0; i < rounds; i++) {
      for (const state of states) await this.writeKey('state', String(state))
    }
  }

  /** Removes our directory's keys, as far as we may. */
  async removeKeys(names: readonly string[]): Promise<void> {
    for (const name of names) await this.#guest.xenstore.remove(`${this.#frontend.path}/${name}`)
  }

  /** Ends the grants made here, after the frontend is closed. How many pages are still mapped. */
  cleanUp(): number {
    const { memory } = this.#guest
    return this.#extra.splice(0).filter(({ page, ref }) => !memory.retire(page, ref)).length
  }
}
