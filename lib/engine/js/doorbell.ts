/**
 * Doorbell: a ring's event channel and when it is listened to.
 *
 *   polled   the ring is looked at in every turn; its port may be masked, and req_event stays behind: no events
 *   armed    the port is unmasked, req_event moved, the ring looked at once more: an event wakes it
 *
 * Whoever wakes a ring that is polled leaves word: it is not armed before a pass has looked. Other rings wake it when
 * they have nothing at the disk any more, or end a barrier, and no event or completion will say that again.
 *
 * The port is unmasked only after the ring was drained, and an event that brought no request delays the next
 * one: 0, 1, 2, 4 … 1000 ms.
 */
import type { NativePrimitives } from '../primitives.js'
import type { BackRing } from './back_ring.js'
import type { QueueCounters } from './counters.js'

const DELAY_UNIT_NS = 1e6
const DELAY_MAX_NS = 1e9

function spuriousDelayNs(inRow: number): number {
  return inRow <= 1 ? 0 : Math.min(DELAY_UNIT_NS * 2 ** Math.min(inRow - 2, 20), DELAY_MAX_NS)
}

export class Doorbell {
  readonly channel: number
  /** When a delayed unmask is due; Infinity: none. */
  unmaskDueNs = Number.POSITIVE_INFINITY
  readonly #primitives: NativePrimitives
  readonly #counters: QueueCounters
  #armed = false
  /** Woken, and not looked at since. */
  #awaited = false
  /** An event was taken: the port is masked until unmask. */
  #eventTaken = false
  #workSinceEvent = false
  #spuriousInRow = 0

  constructor(primitives: NativePrimitives, channel: number, counters: QueueCounters) {
    this.#primitives = primitives
    this.channel = channel
    this.#counters = counters
  }

  get armed(): boolean {
    return this.#armed
  }

  /** There may be something to do: the next pass finds out. */
  wake(): void {
    this.#awaited = true
    if (!this.#armed) return
    this.#armed = false
    this.#counters.wakeups++
  }

  /** The event was taken from the channel. */
  onEvent(): void {
    this.#counters.eventsReceived++
    this.#eventTaken = true
    this.#workSinceEvent = false
    this.wake()
  }

  /** A pass begins. */
  looked(): void {
    this.#awaited = false
  }

  /** A pass found something. */
  worked(): void {
    this.#workSinceEvent = true
    this.#spuriousInRow = 0
  }

  notify(): void {
    this.#primitives.notify(this.channel)
  }

  /** Before sleeping; without a ring nothing is expected from the guest. False: it may have work, poll on. */
  arm(nowNs: number, ring: BackRing | undefined): boolean {
    if (this.#awaited) return false
    this.unmaskDueNs = Number.POSITIVE_INFINITY
    this.#armed = true
    if (ring === undefined) return true
    if (this.#eventTaken) {
      if (!this.#workSinceEvent) {
        this.#counters.spuriousEvents++
        this.#spuriousInRow++
      }
      const delayNs = this.#workSinceEvent ? 0 : spuriousDelayNs(this.#spuriousInRow)
      if (delayNs > 0) this.unmaskDueNs = nowNs + delayNs
      else this.#unmask()
    }
    this.#armed = !ring.finalCheck()
    return this.#armed
  }

  /** A delayed unmask is due. */
  endUnmaskDelay(): void {
    this.unmaskDueNs = Number.POSITIVE_INFINITY
    this.wake()
    if (this.#eventTaken) this.#unmask()
  }

  close(): void {
    this.#primitives.unbind(this.channel)
  }

  #unmask(): void {
    this.#eventTaken = false
    this.#primitives.unmask(this.channel)
  }
}
