/**
 * Queue: one ring's pipeline, from the guest's slot to its response. Owns all that the ring needs: its mapping, event
 * channel, grant table handle, in-flight entries, transfer and the disk's queue.
 *
 *   pass():  reap the disk ─► finish ─► respond
 *            consume ─► parse ─► prepare (one grant call) ─► submit (one call of the disk)
 *            publish once, notify at most once
 *
 *   A request waits in one of these places and nowhere else:
 *     the ring       not consumed: no room in the budget of bytes in flight, or a barrier is under way
 *     #stalled       consumed, but over the budget; nothing else is consumed meanwhile
 *     #barrier       a barrier that waits for everything before it
 *     the disk       counted by atDisk
 *     a map group    done, waiting for the unmap that others' requests delay
 *     nowhere        a flush that failed: it is never answered (R-41)
 */
import { VbdError } from '../../errors.js'
import type { Connection, RingLayout, Transfer as Strategy } from '../engine.js'
import { IO, type NativeGrants } from '../primitives.js'
import { Answers } from './answers.js'
import { BackRing } from './back_ring.js'
import { Budget } from './budget.js'
import type { QueueCounters } from './counters.js'
import { type DiskQueue, ERRNO } from './disk_queue.js'
import { Doorbell } from './doorbell.js'
import { type InFlight, InFlightList, InFlightTable, OUTCOME, STAGE } from './in_flight.js'
import { type Limits, parse, REJECT, type Reject } from './request.js'
import type { Services } from './services.js'
import { BATCH_ALONE, BATCH_REQUESTS, BATCH_SEGMENTS, Transfer } from './transfer.js'
import type { VbdShared } from './vbd_shared.js'
import { type Layout, MAX_SLOT_WORDS, OPERATION } from './wire.js'

export interface QueueOptions {
  readonly index: number
  readonly domid: number
  readonly layout: Layout
  readonly ring: RingLayout
  readonly strategy: Strategy
  /** As Connection has it. */
  readonly takeOver: Connection['takeOver']
}

export class Queue {
  readonly doorbell: Doorbell
  /** Requests started and not answered. */
  atDisk = 0
  lastWorkNs = 0
  readonly #o: QueueOptions
  readonly #shared: VbdShared
  readonly #counters: QueueCounters
  readonly #answers: Answers
  readonly #budget: Budget
  readonly #grants: NativeGrants
  readonly #ring: BackRing
  readonly #ringRegion: number
  readonly #table: InFlightTable
  readonly #transfer: Transfer
  readonly #disk: DiskQueue
  readonly #limits: Limits
  readonly #slot = new Uint32Array(MAX_SLOT_WORDS)
  readonly #batch: InFlight[] = []
  readonly #issued: InFlight[] = []
  readonly #done = new InFlightList()
  readonly #ready = new InFlightList()
  #stalled: InFlight | undefined
  #barrier: InFlight | undefined
  #barrierRunning = false
  /** Requests that this pass takes, at most. */
  #most = BATCH_REQUESTS
  #started = false
  #closing = false
  #corrupt = false

  /**
   * Maps the ring, opens the disk's queue and binds the port. Touches nothing before start().
   *
   * @throws what the addon and BackRing throw; nothing stays mapped or bound then
   */
  constructor(options: QueueOptions, shared: VbdShared, services: Services) {
    const { index, domid, layout, ring, strategy } = options
    this.#o = options
    this.#shared = shared
    this.#counters = shared.countersOf(index)
    this.#budget = new Budget(services.pool)
    this.#limits = shared.limits()
    this.#grants = services.primitives.openGrants()
    try {
      const refs = Uint32Array.from(ring.ringRefs)
      const mapping = this.#grants.map(domid, refs, refs.length, true)
      this.#ringRegion = mapping.region
      this.#ring = new BackRing(mapping.buffer, layout)
      const died = options.takeOver === 'idle' || options.takeOver === 'journaled'
      if (died && this.#ring.hasRequests) {
        throw new VbdError('ERR_VBD_PROTOCOL', `requests are under way on ring ${index}`)
      }
      const { maxPersistentGrants } = shared.tunables
      const readsFillBuffers = shared.disk.fillsReads
      this.#transfer = new Transfer(
        { strategy, domid, maxPersistentGrants, readsFillBuffers },
        this.#grants,
        services.pool,
        this.#counters,
      )
      // Last: from here on the guest can send us events.
      const channel = services.primitives.bind(domid, ring.eventChannel)
      this.doorbell = new Doorbell(services.primitives, channel, this.#counters)
    } catch (thrown) {
      this.#grants.close()
      throw thrown
    }
    const trace = shared.traceOf(index)
    this.#answers = new Answers(this.#ring, this.doorbell, this.#counters, trace)
    const { entries } = this.#ring
    const { maxIndirectSegments } = shared.features
    this.#table = new InFlightTable(
      services.tags,
      entries,
      maxIndirectSegments,
      services.pool.region,
    )
    this.#disk = shared.disk.openQueue(shared.name, () => services.wakeUp())
  }

  /**
   * Whoever served the ring before may have died between publishing its last responses and saying so; a notification
   * too many does no harm.
   */
  start(): void {
    this.#started = true
    if (this.#o.takeOver !== undefined) this.doorbell.notify()
  }

  /** Finished I/O waits for a pass(), or a request that may be started once other rings have given pages back. */
  get wantsPass(): boolean {
    if (this.#disk.hasCompletions) return true
    if (this.atDisk > 0) return false
    return this.#stalled !== undefined || (this.#barrier !== undefined && !this.#barrierRunning)
  }

  /**
   * Stops taking requests. Once `drained` everything taken was answered (but failed flushes), and close() may follow.
   */
  beginClose(): void {
    this.#closing = true
    this.wake()
  }

  get drained(): boolean {
    return this.atDisk === 0 && this.#stalled === undefined && this.#barrier === undefined
  }

  wake(): void {
    this.doorbell.wake()
  }

  get wantsTicks(): boolean {
    return this.#transfer.persistentGrants > 0
  }

  tick(nowNs: number): void {
    const { maxPersistentGrants, persistentGrantIdleSeconds } = this.#shared.tunables
    this.#transfer.purge(nowNs / 1e6, maxPersistentGrants, persistentGrantIdleSeconds * 1000)
  }

  /** Before sleeping: lets the next event through and asks the frontend for it. False: there is work, poll on. */
  arm(nowNs: number): boolean {
    // Where the guest cannot give us work now, a completion or another ring wakes us, not an event.
    const deaf =
      !this.#started ||
      this.#closing ||
      this.#corrupt ||
      this.#stalled !== undefined ||
      this.#barrier !== undefined ||
      this.#shared.gateClosed(this)
    return this.doorbell.arm(nowNs, deaf ? undefined : this.#ring)
  }

  /** Port first, then the guest's pages, then the ring. Nothing is at the disk. */
  close(): void {
    this.doorbell.close()
    this.#transfer.close()
    this.#disk.close()
    if (this.#started) this.#shared.unanswered += this.#ring.inFlight + (this.#corrupt ? 1 : 0)
    this.#grants.unmap(this.#ringRegion)
    this.#grants.close()
    this.#table.close()
    this.#counters.inFlight = 0
  }

  /** One turn, bounded by the ring's size. `alone`: no other ring is busy. True: something was done. */
  pass(nowNs: number, clock: () => number, alone: boolean): boolean {
    this.#most = alone && this.#transfer.strategy === 'persistent' ? BATCH_ALONE : BATCH_REQUESTS
    this.doorbell.looked()
    let worked = this.#reap(nowNs)
    if (this.#started) {
      if (this.#consume(nowNs)) worked = true
      if (this.#barrier !== undefined && this.#runBarrier(nowNs)) worked = true
    }
    // Memory, for example: answered in the same pass, and it took some time.
    if (this.#disk.hasCompletions && this.#reap(clock())) worked = true
    this.#answers.publish()
    if (worked) {
      this.lastWorkNs = nowNs
      this.doorbell.worked()
      this.#counters.inFlight = this.#ring.inFlight
    }
    return worked
  }

  // ---- from the disk to the ring

  #reap(nowNs: number): boolean {
    let worked = false
    for (let item = this.#disk.reap(); item !== undefined; item = this.#disk.reap()) {
      worked = true
      this.#advance(item)
      // A barrier's next step completes at once on some disks, and is reaped in the same loop.
      if (this.#issued.length > 0) this.#submitIssued()
    }
    if (this.#done.empty) return worked
    this.#transfer.finish(this.#done, this.#ready)
    for (let item = this.#ready.pop(); item !== undefined; item = this.#ready.pop()) {
      this.#answer(item, nowNs)
    }
    return true
  }

  /** The disk is done with one step of a request: the next step, or the end. */
  #advance(item: InFlight): void {
    // One that was under way beside a flush that failed says nothing about what that one has lost.
    if (item.io === IO.flush && (item.errno !== 0 || this.#shared.flushFailed)) {
      this.#holdFlush(item)
    } else if (item.errno !== 0) {
      this.#counters.diskErrors++
      const discards = item.io === IO.discard || item.io === IO.secureDiscard
      if (discards && item.errno === ERRNO.opNotSupp) item.unsupported = true
      else item.failed = true
      this.#done.push(item)
    } else if (item.stage === STAGE.preFlush && item.request.segmentCount > 0) {
      item.stage = STAGE.data
      this.#issue(item)
    } else if (item.stage === STAGE.data && item.request.operation === OPERATION.writeBarrier) {
      item.stage = STAGE.postFlush
      this.#issue(item)
    } else {
      this.#done.push(item)
    }
  }

  /**
   * A guest that sees a failed flush takes it for a success and never flushes again (Linux blkfront), so it sees
   * nothing. The pages still go back.
   */
  #holdFlush(item: InFlight): void {
    if (item.errno !== 0) this.#counters.diskErrors++
    item.held = true
    item.failed = true
    this.#done.push(item)
    if (this.#shared.flushFailed) return
    this.#shared.flushFailed = true
    const message = `a flush failed (errno ${item.errno}); writes fail and flushes wait from now on`
    this.#shared.onEvent({ type: 'flush-failed', message })
  }

  #answer(item: InFlight, nowNs: number): void {
    this.atDisk--
    this.#budget.release(item)
    if (item === this.#barrier) this.#releaseBarrier()
    else if (this.atDisk === 0 && this.#shared.gateClosed(this)) this.#shared.wakeOthers(this)
    if (item.held) return
    this.#answers.answer(item, nowNs)
    this.#table.giveBack(item)
  }

  // ---- from the ring to the disk

  #consume(nowNs: number): boolean {
    const stalled = this.#stalled
    if (stalled !== undefined) {
      if (this.#shared.flushFailed && stalled.request.operation !== OPERATION.read) {
        this.#stalled = undefined
        this.#refuseAfterFailedFlush(stalled)
        return true
      }
      this.#budget.beginBatch()
      if (this.#shared.gateClosed(this) || !this.#admit(stalled)) return false
    } else {
      if (this.#closing || this.#barrier !== undefined || this.#corrupt) return false
      if (!this.#ring.beginPass()) {
        this.#reportCorrupt()
        return true
      }
      if (this.#ring.available === 0 || this.#shared.gateClosed(this)) return false
    }
    this.#shared.refresh(this.#limits)
    const batch = this.#batch
    batch.length = 0
    if (stalled === undefined) {
      this.#budget.beginBatch()
    } else {
      batch.push(stalled)
      this.#stalled = undefined
    }
    if (!this.#closing && !this.#corrupt) {
      const taken = this.#takeRequests(nowNs)
      if (taken > 0) this.#counters.ringUtilisation.record(taken)
    }
    this.#startBatch(nowNs)
    return true
  }

  #reportCorrupt(): void {
    this.#corrupt = true
    this.#shared.onEvent({
      type: 'ring-corrupt',
      queue: this.#o.index,
      message: "the frontend's request producer is further ahead than the ring is long",
    })
  }

  /** Consumes slots into the batch; refuses on the spot what parse() rejects. Returns how many slots it took. */
  #takeRequests(nowNs: number): number {
    const batch = this.#batch
    const slot = this.#slot
    let taken = 0
    let segments = 0
    while (
      batch.length < this.#most &&
      taken < this.#most &&
      segments < BATCH_SEGMENTS &&
      this.#ring.next(slot)
    ) {
      taken++
      const item = this.#table.take()!
      const reject = parse(slot, this.#o.layout, this.#limits, item.request)
      item.startedNs = nowNs
      item.budgetBytes = 0
      item.failed = item.unsupported = item.held = false
      item.stage = STAGE.data
      if (reject !== REJECT.none) {
        this.#refuse(item, reject)
        continue
      }
      if (item.request.indirect) this.#table.attachIndirect(item)
      const { operation } = item.request
      if (operation === OPERATION.flush || operation === OPERATION.writeBarrier) {
        item.stage = STAGE.preFlush
      }
      if (operation !== OPERATION.read && this.#shared.flushFailed) {
        this.#refuseAfterFailedFlush(item)
        continue
      }
      if (operation === OPERATION.writeBarrier) {
        // Nothing after it is taken until it is done.
        this.#barrier = item
        break
      }
      if (!this.#admit(item)) {
        this.#stalled = item
        this.#counters.outOfRequests++
        break
      }
      segments += item.request.segmentCount
      batch.push(item)
    }
    return taken
  }

  #admit(item: InFlight): boolean {
    return this.#budget.admit(item, this.#shared.tunables.maxInFlightBytes)
  }

  #startBatch(nowNs: number): void {
    const batch = this.#batch
    if (batch.length === 0) return
    this.#transfer.prepare(batch, this.#limits, nowNs / 1e6)
    for (let i = 0; i < batch.length; i++) {
      const item = batch[i]!
      if (item.outcome === OUTCOME.ready) {
        this.atDisk++
        this.#issue(item)
      } else if (item.outcome === OUTCOME.rejected) {
        this.#refuse(item, item.reject)
      } else {
        this.atDisk++
        this.#answer(item, nowNs)
      }
    }
    this.#submitIssued()
  }

  #issue(item: InFlight): void {
    item.askDisk(this.#shared.features.flush)
    this.#issued.push(item)
  }

  #submitIssued(): void {
    if (this.#issued.length === 0) return
    this.#disk.submit(this.#issued)
    this.#issued.length = 0
  }

  #refuse(item: InFlight, reject: Reject): void {
    this.#answers.refuse(item, reject)
    this.#budget.release(item)
    if (item === this.#barrier) this.#releaseBarrier()
    this.#table.giveBack(item)
  }

  /** A flush or a barrier stays unanswered, its ring entry with it. */
  #refuseAfterFailedFlush(item: InFlight): void {
    if (item.stage === STAGE.preFlush) return
    this.#counters.diskErrors++
    item.failed = true
    this.atDisk++
    this.#answer(item, item.startedNs)
  }

  // ---- barriers

  #runBarrier(nowNs: number): boolean {
    if (this.#barrierRunning) return false
    if (this.#shared.flushFailed) {
      this.#releaseBarrier() // never begun, and never answered
      return true
    }
    if (!this.#shared.closeGate(this) || this.atDisk > 0) return false
    this.#budget.beginBatch()
    if (!this.#admit(this.#barrier!)) return false
    this.#barrierRunning = true
    this.#shared.refresh(this.#limits)
    this.#batch.length = 0
    this.#batch.push(this.#barrier!)
    this.#startBatch(nowNs)
    return true
  }

  #releaseBarrier(): void {
    this.#barrier = undefined
    this.#barrierRunning = false
    this.#shared.openGate(this)
    this.#shared.wakeOthers(this)
  }
}
