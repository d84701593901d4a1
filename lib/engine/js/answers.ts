/**
 * Answers: what a ring's guest is told, and what is kept of it: the response in the ring, the statistics, the trace.
 * Once per pass all of them are published, with at most one notification.
 */
import type { BackRing } from './back_ring.js'
import type { QueueCounters } from './counters.js'
import type { Doorbell } from './doorbell.js'
import type { InFlight } from './in_flight.js'
import { type Reject, statusOf } from './request.js'
import type { TraceRing } from './trace_ring.js'
import { STATUS } from './wire.js'

export class Answers {
  readonly #ring: BackRing
  readonly #doorbell: Doorbell
  readonly #counters: QueueCounters
  readonly #trace: TraceRing

  constructor(ring: BackRing, doorbell: Doorbell, counters: QueueCounters, trace: TraceRing) {
    this.#ring = ring
    this.#doorbell = doorbell
    this.#counters = counters
    this.#trace = trace
  }

  /** Not executed. */
  refuse(item: InFlight, reject: Reject): void {
    this.#counters.rejected[reject]!++
    const status = statusOf(reject)
    this.#respond(item, status)
    if (this.#trace.on) this.#trace.record(item, status, item.startedNs)
  }

  /** Executed, or failed. */
  answer(item: InFlight, nowNs: number): void {
    let status: number = STATUS.okay
    if (item.failed) status = STATUS.error
    else if (item.unsupported) status = STATUS.unsupported
    this.#respond(item, status)
    this.#counters.answered(item, status, nowNs)
    if (this.#trace.on) this.#trace.record(item, status, nowNs)
  }

  publish(): void {
    if (!this.#ring.hasUnpublished) return
    if (this.#ring.push()) {
      this.#doorbell.notify()
      this.#counters.notificationsSent++
    } else {
      this.#counters.notificationsSaved++
    }
  }

  #respond({ request }: InFlight, status: number): void {
    this.#ring.respond(request.idLow, request.idHigh, request.wireOperation, status)
  }
}
