/**
 * Handshake: the steps of a frontend through xenbus, as sequences that its Frontend calls one at a time.
 *
 *   reset       wherever an earlier driver left the state ─► Initialising
 *   negotiate   Initialising ─► rings made, keys written ─► Connected
 *   follow      after a backend that closes: Closing, Closed
 *   leave       Closing, Closed, and for some manners back to Initialising
 *
 * The event loop's thread only. Rings that negotiate() made belong to its caller; when it throws there are none.
 */
import { throwIfAborted, VbdError } from '../errors.js'
import { type FrontBus, type WaitOptions, XENBUS } from './front_bus.js'
import {
  type DiskProperties,
  frontKeys,
  negotiateTransport,
  PROPERTY_KEYS,
  readProperties,
  staleKeys,
  TRANSPORT_KEYS,
  type Transport,
} from './front_keys.js'
import { FrontQueue, type FrontQueueHost } from './front_queue.js'
import type { Choices } from './frontend_options.js'
import type { GuestContext } from './guest_context.js'
import { pagesOfLargest } from './in_flight.js'
import { LAYOUTS, PAGE_BYTES } from './wire.js'

export interface HandshakeHost {
  /** A state was written. */
  wroteState(state: number): void
  wroteKey(path: string, value: string): void
}

/** What a negotiation leads to. */
export interface Agreement {
  readonly transport: Transport
  readonly queues: readonly FrontQueue[]
  readonly properties: DiskProperties
}

export class Handshake {
  readonly bus: FrontBus
  readonly #guest: GuestContext
  readonly #devid: number
  readonly #choices: Choices
  readonly #queueHost: FrontQueueHost
  readonly #host: HandshakeHost
  /** Our last state said that rings are there. */
  #published = false

  constructor(options: {
    bus: FrontBus
    guest: GuestContext
    devid: number
    choices: Choices
    queueHost: FrontQueueHost
    host: HandshakeHost
  }) {
    this.bus = options.bus
    this.#guest = options.guest
    this.#devid = options.devid
    this.#choices = options.choices
    this.#queueHost = options.queueHost
    this.#host = options.host
  }

  /** Whether the backend may be using rings of ours. */
  get published(): boolean {
    return this.#published
  }

  async setState(state: number): Promise<void> {
    if (!(await this.bus.write(state))) throw detached(this.bus)
    if (state !== XENBUS.connected) this.#published = false
    this.#host.wroteState(state)
  }

  async reset(wait: WaitOptions): Promise<void> {
    const { bus } = this
    const own = await bus.frontState()
    const fresh = own === XENBUS.initialising || own === XENBUS.unknown
    if (fresh && !this.#choices.manners.startsWithClose) {
      if (own === XENBUS.unknown) await this.setState(XENBUS.initialising)
      return
    }
    if (own !== XENBUS.closed) {
      await this.setState(XENBUS.closing)
      await bus.waitFor('Closing', (state) => state >= XENBUS.closing || state === 0, wait)
      await this.setState(XENBUS.closed)
    }
    await bus.waitFor('Closed', (state) => state !== XENBUS.closing && !isUp(state), wait)
    await this.setState(XENBUS.initialising)
  }

  /**
   * @throws ERR_VBD_STATE when the backend closes instead, ERR_VBD_PROTOCOL when its keys are unusable, and what
   *   FrontBus.waitFor throws
   */
  async negotiate(wait: WaitOptions): Promise<Agreement> {
    const { bus } = this
    const { manners } = this.#choices
    if (manners.waitsForInitWait) {
      await bus.waitFor('InitWait', (state) => state === XENBUS.initWait, wait)
    }
    const transport = negotiateTransport(await bus.readBackendKeys(TRANSPORT_KEYS), this.#choices)
    const queues = this.#makeQueues(transport)
    try {
      await this.#publish(transport, queues)
      await this.#backendConnects(wait)
      const keys = await bus.readBackendKeys(PROPERTY_KEYS)
      const where = { path: bus.backendPath, vbd: this.#vbd }
      const properties = readProperties(keys, this.#choices, transport, where)
      this.#startQueues(queues, properties)
      if (manners.readyState !== XENBUS.connected) await this.setState(XENBUS.connected)
      throwIfAborted(wait.signal)
      return { transport, queues, properties }
    } catch (error) {
      for (const queue of queues) queue.close()
      throw error
    }
  }

  get #vbd(): string {
    return `${this.#guest.domid}:${this.#devid}`
  }

  #makeQueues(transport: Transport): FrontQueue[] {
    const { manners, ids } = this.#choices
    const queues: FrontQueue[] = []
    try {
      for (let index = 0; index < transport.queues; index++) {
        const queue = new FrontQueue({
          guest: this.#guest,
          index,
          backendId: this.bus.backendId,
          handle: this.#devid & 0xffff,
          layout: LAYOUTS[transport.protocol],
          ringPages: transport.ringPages,
          depth: manners.maxDepth,
          ids,
          host: this.#queueHost,
        })
        queues.push(queue)
      }
    } catch (error) {
      for (const queue of queues) queue.close()
      throw error
    }
    return queues
  }

  async #publish(transport: Transport, queues: readonly FrontQueue[]): Promise<void> {
    const { manners, editKeys } = this.#choices
    const rings = queues.map((queue) => queue.published)
    const keys = frontKeys(manners, transport, rings)
    editKeys?.(keys)
    const stale = staleKeys(keys, await this.bus.ownKeys())
    this.#published = true
    if (!(await this.bus.write(manners.readyState, keys, stale))) throw detached(this.bus)
    for (const [name, value] of keys) this.#host.wroteKey(`${this.bus.path}/${name}`, value)
    this.#host.wroteState(manners.readyState)
  }

  async #backendConnects(wait: WaitOptions): Promise<void> {
    const { bus } = this
    // Who does not wait for InitWait may still see the Closed of the connection before.
    const before = this.#choices.manners.waitsForInitWait ? undefined : bus.backendState
    const refuses = (state: number) => isDown(state) && state !== before
    const decided = (state: number) => state === XENBUS.connected || refuses(state)
    const state = await bus.waitFor('Connected', decided, wait)
    if (state === XENBUS.connected) return
    const message = `the backend went to state ${state} instead of Connected`
    throw new VbdError('ERR_VBD_STATE', message, {
      vbd: this.#vbd,
      path: bus.backendPath,
      remedy: "look at the backend's log for what it did not like",
    })
  }

  #startQueues(queues: readonly FrontQueue[], properties: DiskProperties): void {
    const { manners, memoryBytes } = this.#choices
    const { maxSegments } = manners
    const { indirectSegments, persistent } = properties
    const largest = pagesOfLargest({ maxSegments, indirectSegments })
    const half = Math.floor(this.#guest.memory.available / 2)
    const pages = memoryBytes === undefined ? half : Math.floor(memoryBytes / PAGE_BYTES)
    const share = Math.floor(pages / queues.length)
    for (const queue of queues) {
      const pageBudget = Math.max(largest, Math.min(share, queue.ring.entries * largest))
      queue.start({ persistent, maxSegments, indirectSegments, pageBudget })
    }
  }

  /**
   * Goes down after a backend that is at `state`, Closing or Closed. `answered` resolves when nothing is on the
   * rings. Resolves with whether the backend got to Closed in time.
   */
  async follow(state: number, answered: Promise<void>, wait: WaitOptions): Promise<boolean> {
    if (state === XENBUS.closing) {
      await this.setState(XENBUS.closing)
      // For a disk that goes for good the last requests are finished. Otherwise what is not answered is sent again, and
      // a backend that took the place of a dead one has nothing to answer at all.
      if (!(await this.isOnline())) {
        const left = this.bus.waitFor('Closed', (now) => now !== XENBUS.closing, wait)
        await Promise.race([answered, inTime(left)])
      }
    }
    await this.setState(XENBUS.closed)
    return await inTime(this.bus.waitFor('Closed', (now) => now !== XENBUS.closing, wait))
  }

  /** Closes from our side. Resolves with whether the backend got to Closed in time. */
  async leave(wait: WaitOptions): Promise<boolean> {
    const { bus } = this
    const connected = isUp(bus.backendState) || this.#published
    let answers = true
    if (this.#choices.manners.closing === 'handshake') {
      await this.setState(XENBUS.closing)
      if (connected) answers = await inTime(bus.waitFor('Closing', isDownOrGone, wait))
    }
    await this.setState(XENBUS.closed)
    // Who has not answered the first step will not answer the second.
    if (!connected || !answers) return answers
    const isClosed = (state: number) => state === XENBUS.closed || state === XENBUS.unknown
    return await inTime(bus.waitFor('Closed', isClosed, wait))
  }

  /** What some drivers do for the next one, when everything is given back. */
  async tidy(wait: WaitOptions): Promise<void> {
    const { manners } = this.#choices
    if (manners.reinitialises && (await this.isOnline())) {
      await this.setState(XENBUS.initialising)
      const again = (state: number) => state === XENBUS.initWait
      await inTime(this.bus.waitFor('InitWait', again, wait))
    }
    if (manners.removesKeys) await this.bus.removeKeys(['ring-ref', 'event-channel'])
  }

  /** Whether the toolstack wants the disk to stay. */
  async isOnline(): Promise<boolean> {
    return (await this.bus.readBackend('online')) !== '0'
  }
}

function isUp(state: number): boolean {
  return state === XENBUS.initialised || state === XENBUS.connected
}

function isDown(state: number): boolean {
  return state === XENBUS.closing || state === XENBUS.closed
}

function isDownOrGone(state: number): boolean {
  return isDown(state) || state === XENBUS.unknown
}

/** The error of a disk whose nodes are gone. */
export function detached(bus: FrontBus): VbdError {
  return new VbdError('ERR_VBD_NOT_FOUND', 'the disk was detached', { path: bus.path })
}

/** False when `step` took too long; other failures reject. */
async function inTime(step: Promise<unknown>): Promise<boolean> {
  try {
    await step
    return true
  } catch (error) {
    if (error instanceof VbdError && error.code === 'ERR_VBD_TIMEOUT') return false
    throw error
  }
}
