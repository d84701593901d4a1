/**
 * Reporter: what a vbd's life looks like from outside, held to a bearable rate: a guest can cause events as fast as it
 * can write to xenstore (R-34). Remembers what both sides' states were last.
 */
import type { Connection, DiskInfo, Transfer, VbdFeatures } from '../engine/engine.js'
import type { VbdError } from '../errors.js'
import type { Device } from '../xenbus/device.js'
import { Limiter } from '../xenbus/limiter.js'
import { stateName, type XenbusState, type XenbusStateName } from '../xenbus/state.js'

/** What both sides agreed on, while they are connected. */
export interface ConnectionInfo {
  readonly protocol: Connection['protocol']
  readonly transfer: Transfer
  readonly persistent: boolean
  readonly queues: number
  /** Pages per ring. */
  readonly ringPages: number
  readonly features: VbdFeatures
}

export interface LifecycleEvents {
  /** A side's state was seen or written, `none` where its directory is gone; at most 120 a minute. */
  state(side: 'backend' | 'frontend', state: XenbusStateName | 'none'): void
  connected(connection: ConnectionInfo): void
  disconnected(): void
  /** The device's directory is gone, and nothing of it is held. */
  dropped(device: Device): void
  resized(info: DiskInfo): void
  /** Nothing is left to do for now. */
  settled(): void
  /** A guest's mistake or a passing failure; at most ten a minute. */
  warning(message: string): void
  error(error: VbdError): void
}

/** A guest may change its state as often as it likes; so many changes a minute are told. */
const STATES_PER_MINUTE = 120

/** Passes on what a Lifecycle sees, within limits. */
export class Reporter {
  readonly #events: LifecycleEvents
  readonly #warnings = new Limiter()
  readonly #errors = new Limiter()
  readonly #sightings = new Limiter(STATES_PER_MINUTE)
  #own: XenbusState | undefined
  #front: XenbusState | undefined
  #connection: ConnectionInfo | undefined

  constructor(events: LifecycleEvents) {
    this.#events = events
  }

  /** Our state as last read or written; undefined without a directory. */
  get own(): XenbusState | undefined {
    return this.#own
  }

  get front(): XenbusState | undefined {
    return this.#front
  }

  /** Between `connected` and `disconnected`. */
  get connection(): ConnectionInfo | undefined {
    return this.#connection
  }

  /** Connected was written; told once, until `disconnected`. */
  connected(connection: ConnectionInfo): void {
    const isNews = this.#connection === undefined
    this.#connection = connection
    if (isNews) this.#events.connected(connection)
  }

  /** The guest is let go of; told where `connected` was. */
  disconnected(): void {
    if (this.#connection === undefined) return
    this.#connection = undefined
    this.#events.disconnected()
  }

  /** Both states as they are now. */
  observe(own: XenbusState | undefined, front: XenbusState | undefined): void {
    if (front !== this.#front) {
      this.#front = front
      this.#sight('frontend', front)
    }
    if (own !== this.#own) {
      this.#own = own
      this.#sight('backend', own)
    }
  }

  /** Something that passes, or that the guest has brought about. */
  warn(message: string): void {
    const suppressed = this.#warnings.allow()
    if (suppressed === undefined) return
    const more = suppressed > 0 ? ` (and ${suppressed} before it that were not shown)` : ''
    this.#events.warning(message + more)
  }

  /** Something that an operator has to know; a guest can bring it about as well. */
  error(error: VbdError): void {
    if (this.#errors.allow() !== undefined) this.#events.error(error)
  }

  #sight(side: 'backend' | 'frontend', state: XenbusState | undefined): void {
    if (this.#sightings.allow() === undefined) return
    this.#events.state(side, state === undefined ? 'none' : stateName(state))
  }
}
