/**
 * Loop: what serves the rings, in the event loop that everything else in the process shares. The native engine's
 * reactor, without a thread of its own: whatever holds up the event loop holds up every guest.
 *
 *   busy      a turn per setImmediate: passes over every ring that is not armed, for as long as there is work, but no
 *             longer than TURN_NS; nothing is asked of the guests (req_event stays behind)
 *   spinning  no work for less than the poll window: the same
 *   asleep    every ring armed (events unmasked, req_event moved); events, completions and timers start the next turn
 *
 * The window adapts between 0 and pollUs: it grows when sleeps turn out short, shrinks when they are long, and is given
 * up for a while when somebody else took the processor away from the spin. Inside a turn the rings are polled without a
 * break only while nothing is at a disk: completions come through the event loop.
 */
import type { Tunables } from '../engine.js'
import type { Queue } from './queue.js'
import type { Services } from './services.js'

/** How long everything else in the process waits for a turn that finds work. */
const TURN_NS = 50_000
/** Looks at rings without a look at the clock. */
const POLLS_PER_CLOCK = 16
/** blkback's LRU_INTERVAL. */
const TICK_NS = 100_000_000
/** While others are busy, a ring that is quiet for so long is armed and no longer polled. */
const QUIET_RING_NS = 50_000
/** A spin that was interrupted for so long lost its processor. */
const PREEMPTED_NS = 200_000
const NO_SPIN_NS = 10_000_000
const LEAST_WINDOW_NS = 5_000

/** What `performance.now()` has to have added to be the system's monotonic clock, as process.hrtime() has it. */
const ORIGIN_MS = Number(process.hrtime.bigint()) / 1e6 - performance.now()

/** Nanoseconds of the system's monotonic clock, the one that does not make a BigInt. */
export function monotonicNs(): number {
  return (performance.now() + ORIGIN_MS) * 1e6
}

interface Member {
  readonly queue: Queue
  /** Set: it is closing. */
  onClosed?: () => void
}

export class Loop {
  readonly #services: Services
  readonly #members: Member[] = []
  readonly #byChannel = new Map<number, Queue>()
  readonly #turn = () => this.#run()
  #scheduled = false
  #asleep = true
  #sleptAtNs = 0
  #timer: NodeJS.Timeout | undefined
  #pollNs = 0
  #windowNs = 0
  #lastWorkNs = 0
  #passNs = 0
  /** Rings that the last pass over all of them found work in. */
  #busyRings = 0
  #lastSpinNs = 0
  #lastQuietCheckNs = 0
  #noSpinUntilNs = 0
  /** When runTimers() is due, and when its next tick is. */
  #timersDueNs = 0
  #tickDueNs = 0
  #closing = 0
  /** While a ring closes, the process must not end by itself. */
  #alive: NodeJS.Timeout | undefined

  constructor(services: Services, tunables: Tunables) {
    this.#services = services
    this.tune(tunables)
    this.#windowNs = this.#pollNs
  }

  tune(tunables: Partial<Tunables>): void {
    if (tunables.pollUs !== undefined) this.#pollNs = tunables.pollUs * 1000
  }

  /** Takes a ring in and starts it. */
  adopt(queue: Queue): void {
    this.#members.push({ queue })
    this.#byChannel.set(queue.doorbell.channel, queue)
    queue.start()
    this.wakeUp()
  }

  /** Resolves when everything that the ring took was answered; it is closed then. */
  close(queue: Queue): Promise<void> {
    const member = this.#members.find((one) => one.queue === queue)
    if (member === undefined) return Promise.resolve()
    queue.beginClose()
    if (this.#closing++ === 0) this.#alive = setInterval(() => {}, 2 ** 30)
    const closed = new Promise<void>((resolve) => {
      member.onClosed = resolve
    })
    this.wakeUp()
    return closed
  }

  /** From the addon: events were taken from these channels, or I/O of its batch has completed. */
  onReady(channels: readonly number[]): void {
    for (const channel of channels) this.#byChannel.get(channel)?.doorbell.onEvent()
    this.#endSleep(true)
    // Now, and not an immediate later: somebody is waiting.
    if (!this.#scheduled) this.#run()
  }

  /** Has a turn run soon. */
  wakeUp(): void {
    this.#endSleep(true)
    this.#schedule()
  }

  #schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    setImmediate(this.#turn)
  }

  #run(): void {
    this.#scheduled = false
    if (this.#members.length === 0) {
      this.#asleep = true
      return
    }
    const worked = this.#work(monotonicNs())
    const passNs = this.#passNs
    const nowNs = monotonicNs()
    if (this.#closing > 0) this.#removeDrained()
    if (nowNs >= this.#timersDueNs) this.#runTimers(nowNs)
    if (worked) {
      this.#lastSpinNs = nowNs
      if (nowNs - this.#lastQuietCheckNs >= QUIET_RING_NS) {
        this.#lastQuietCheckNs = nowNs
        this.#armQuietRings(passNs)
      }
      this.#schedule()
    } else {
      this.#idle(nowNs)
    }
  }

  /** Passes, until there is nothing to do or the turn is over. True: the last of them found work. */
  #work(beganNs: number): boolean {
    let nowNs = beganNs
    for (;;) {
      let worked = false
      for (let polls = 0; polls < POLLS_PER_CLOCK && !worked; polls++) worked = this.#passAll(nowNs)
      nowNs = monotonicNs()
      if (worked) this.#lastWorkNs = nowNs
      if (nowNs - beganNs >= TURN_NS) return worked
      if (!worked && this.#mustLetGo(nowNs)) return false
    }
  }

  /** The rest of the turn would be spent for nothing: what is waited for comes through the event loop. */
  #mustLetGo(nowNs: number): boolean {
    if (this.#closing > 0 || nowNs - this.#lastWorkNs >= this.#windowNs) return true
    return this.#members.some(({ queue }) => queue.atDisk > 0)
  }

  #passAll(nowNs: number): boolean {
    let worked = false
    this.#passNs = nowNs
    const members = this.#members
    const alone = this.#busyRings <= 1
    this.#busyRings = 0
    for (let i = 0; i < members.length; i++) {
      const { queue } = members[i]!
      if (queue.doorbell.armed) {
        if (!queue.wantsPass) continue
        queue.wake()
      }
      if (queue.pass(nowNs, monotonicNs, alone)) this.#busyRings++
    }
    if (this.#busyRings > 0) worked = true
    const { io } = this.#services
    return io.inFlight > 0 && io.turn() > 0 ? true : worked
  }

  #idle(nowNs: number): void {
    if (nowNs - this.#lastSpinNs > PREEMPTED_NS) this.#noSpinUntilNs = nowNs + NO_SPIN_NS
    this.#lastSpinNs = nowNs
    const spins = nowNs - this.#lastWorkNs < this.#windowNs && nowNs >= this.#noSpinUntilNs
    if (spins || !this.#armAll(nowNs) || !this.#services.primitives.armIo()) {
      this.#schedule()
      return
    }
    this.#asleep = true
    this.#sleptAtNs = nowNs
    this.#setTimer(nowNs)
  }

  /** False: a guest slipped a request in; do not sleep. */
  #armAll(nowNs: number): boolean {
    let all = true
    for (const { queue } of this.#members) {
      if (!queue.doorbell.armed && !this.#arm(queue, nowNs)) all = false
    }
    return all
  }

  /** By the clock of the last pass, so that a ring that found work in it is not taken for quiet. */
  #armQuietRings(nowNs: number): void {
    const quietNs = Math.max(QUIET_RING_NS, this.#windowNs)
    for (const { queue } of this.#members) {
      if (!queue.doorbell.armed && nowNs - queue.lastWorkNs >= quietNs) {
        this.#arm(queue, nowNs)
      }
    }
  }

  #arm(queue: Queue, nowNs: number): boolean {
    const armed = queue.arm(nowNs)
    this.#timersDueNs = Math.min(this.#timersDueNs, queue.doorbell.unmaskDueNs)
    return armed
  }

  /** @param forWork not for a timer, which says nothing about work being near */
  #endSleep(forWork: boolean): void {
    if (!this.#asleep) return
    this.#asleep = false
    clearTimeout(this.#timer)
    this.#timer = undefined
    const nowNs = monotonicNs()
    this.#lastSpinNs = nowNs
    if (!forWork) return
    const sleptNs = nowNs - this.#sleptAtNs
    if (sleptNs <= this.#pollNs * 2) {
      this.#windowNs = Math.min(this.#pollNs, Math.max(this.#windowNs * 2, LEAST_WINDOW_NS))
    } else {
      this.#windowNs = Math.min(this.#pollNs, this.#windowNs * 0.75)
    }
    this.#lastWorkNs = nowNs
  }

  // ---- timers

  #setTimer(nowNs: number): void {
    let dueNs = Number.POSITIVE_INFINITY
    for (const { queue } of this.#members) {
      dueNs = Math.min(dueNs, queue.doorbell.unmaskDueNs)
      if (queue.wantsTicks) dueNs = Math.min(dueNs, this.#tickDueNs)
    }
    const { pool } = this.#services
    if (pool.warm > pool.maxFree) dueNs = Math.min(dueNs, this.#tickDueNs)
    if (dueNs === Number.POSITIVE_INFINITY) return
    const ms = Math.max(0, Math.ceil((dueNs - nowNs) / 1e6))
    this.#timer = setTimeout(() => {
      this.#endSleep(false)
      if (!this.#scheduled) this.#run()
    }, ms)
    this.#timer.unref()
  }

  #runTimers(nowNs: number): void {
    const ticks = nowNs >= this.#tickDueNs
    if (ticks) {
      this.#tickDueNs = nowNs + TICK_NS
      this.#services.pool.shrink()
    }
    this.#timersDueNs = this.#tickDueNs
    for (const { queue } of this.#members) {
      if (ticks) queue.tick(nowNs)
      if (queue.doorbell.unmaskDueNs <= nowNs) queue.doorbell.endUnmaskDelay()
      this.#timersDueNs = Math.min(this.#timersDueNs, queue.doorbell.unmaskDueNs)
    }
  }

  // ---- closing

  #removeDrained(): void {
    for (let i = 0; i < this.#members.length; ) {
      const { queue, onClosed } = this.#members[i]!
      if (onClosed === undefined || !queue.drained) {
        i++
        continue
      }
      this.#members.splice(i, 1)
      this.#byChannel.delete(queue.doorbell.channel)
      if (--this.#closing === 0) clearInterval(this.#alive)
      queue.close()
      onClosed()
    }
  }
}
