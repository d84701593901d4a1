/**
 * Frontend: one virtual disk as a guest's block driver sees it; the mirror image of a blkif backend.
 *
 * The event loop's thread only. Owns its FrontBus (xenstore), its queues (rings, grants, event channels) and its
 * RequestScheduler (operations); close() gives all of them back. How it behaves where the protocol leaves a choice is
 * its Manners.
 *
 *   idle ─connect()─► connecting ─► connected ─close()─► closing ─► closed ─connect()─► ...
 *                        ▲              │
 *                        └──────────────┘  the backend closed, or died and came back: operations wait, and are sent
 *                                          again
 *
 *   broken: the backend broke the protocol; operations fail, only close() is left.
 *   closed: also when the disk was detached, or the guest or the mock died; `failure` says which.
 */
import { throwIfAborted, toVbdError, VbdError } from '../errors.js'
import { DiskIo, type Feature, type OperationOptions } from './disk_io.js'
import { FrontBus, type WaitOptions, within, XENBUS } from './front_bus.js'
import { type DiskProperties, parseNumber } from './front_keys.js'
import type { FrontQueue, LentRing } from './front_queue.js'
import type { ConnectionSummary, Violation } from './frontend_events.js'
import { type Choices, chooseOptions, type FrontendOptions } from './frontend_options.js'
import type { GuestContext } from './guest_context.js'
import { type Agreement, detached, Handshake } from './handshake.js'
import type { RawRequest, RawResponse } from './in_flight.js'
import { RequestScheduler } from './request_scheduler.js'
import { SECTOR_BYTES } from './wire.js'

export type FrontendState = 'idle' | 'connecting' | 'connected' | 'closing' | 'closed' | 'broken'

/** Violations kept for later inspection; all of them are told as events. */
const MAX_VIOLATIONS = 100
/** Linux's interval. */
const PURGE_INTERVAL_MS = 10_000
/** Refusals in a row before a lost backend is given up. */
const MAX_REFUSALS = 10

/** One virtual disk of a guest; made by MockGuest. */
export class Frontend extends DiskIo implements AsyncDisposable {
  readonly devid: number
  /** `domid:devid` */
  readonly vbd: string
  readonly #guest: GuestContext
  readonly #choices: Choices
  protected readonly scheduler: RequestScheduler
  protected readonly maxSegments: number
  readonly #violations: Violation[] = []
  /** Features that the backend answered EOPNOTSUPP to, since the last connection. */
  readonly #lost = new Set<Feature>()
  readonly #onGuestGone = () => this.#end(goneReason(this.#guest.signal))
  #state: FrontendState = 'idle'
  #handshake: Handshake | undefined
  #properties: DiskProperties | undefined
  #failure: VbdError | undefined
  #connections = 0
  /** Ends whatever is waited for. */
  #life = new AbortController()
  /** The connect or reconnect that is under way. */
  #task: Promise<unknown> = Promise.resolve()
  #closing: Promise<void> | undefined
  #purge: NodeJS.Timeout | undefined

  /** @throws ERR_VBD_ARGUMENT for options out of range */
  constructor(guest: GuestContext, devid: number, options: FrontendOptions = {}) {
    super()
    this.devid = devid
    this.vbd = `${guest.domid}:${devid}`
    this.#guest = guest
    this.#choices = chooseOptions(options)
    const { maxOperations, manners } = this.#choices
    this.maxSegments = manners.maxSegments
    this.scheduler = new RequestScheduler({
      vbd: this.vbd,
      maxOperations,
      failedFlushIsSuccess: manners.failedFlushIsSuccess,
      violation: (violation) => this.#violation(violation),
      featureLost: (feature) => this.#featureLost(feature),
      broken: (error) => this.#end(toVbdError(error, 'ERR_VBD_GRANT')),
    })
  }

  get state(): FrontendState {
    return this.#state
  }

  /** Why the frontend is `closed` or `broken`, unless its user closed it. */
  get failure(): VbdError | undefined {
    return this.#failure
  }

  /** The disk as last known. Throws ERR_VBD_STATE before the first connection. */
  get properties(): DiskProperties {
    if (this.#properties === undefined) throw this.#wrongState('knows no disk')
    return this.#properties
  }

  /** The first hundred violations of the backend. */
  get violations(): readonly Violation[] {
    return this.#violations
  }

  /** Requests on the rings, and operations not settled. */
  get load(): { readonly requests: number; readonly operations: number } {
    return { requests: this.scheduler.inFlight, operations: this.scheduler.unsettled }
  }

  /** The rings, for tests and hostile guests; empty while not connected. */
  get queues(): readonly FrontQueue[] {
    return this.scheduler.queues
  }

  /** The domain of the backend. Throws ERR_VBD_STATE while there is none. */
  get backendId(): number {
    if (this.#handshake === undefined) throw this.#wrongState('has no backend')
    return this.#handshake.bus.backendId
  }

  /** Our directory in xenstore. */
  get path(): string {
    return `/local/domain/${this.#guest.domid}/device/vbd/${this.devid}`
  }

  /**
   * Does the handshake; resolves when the disk can be used. Also after close(), to open the disk again.
   *
   * @throws ERR_VBD_TIMEOUT when the toolstack or the backend does not do its part in time, ERR_VBD_PROTOCOL when the
   *   backend's keys are unusable, ERR_VBD_STATE when it closes instead, ERR_VBD_ABORTED
   */
  async connect(options: OperationOptions = {}): Promise<ConnectionSummary> {
    if (this.#state !== 'idle' && this.#state !== 'closed') throw this.#wrongState('connects')
    throwIfAborted(options.signal)
    if (this.#guest.signal.aborted) throw goneReason(this.#guest.signal)
    this.#begin()
    const timeoutMs = this.#choices.connectTimeoutMs
    const wait = { signal: anySignal(this.#life.signal, options.signal), timeoutMs }
    const first = this.#firstConnection(wait)
    this.#task = first
    try {
      return await first
    } catch (error) {
      // What was under way when the guest ended fails with it, and says less.
      const { signal } = this.#guest
      const failure = signal.aborted ? goneReason(signal) : toVbdError(error, 'ERR_VBD_XENSTORE')
      // A close() that came meanwhile ends this life itself; one that comes later finds it ending.
      if (this.#closing === undefined) {
        this.#closing = this.#leave(failure)
        await this.#closing
      }
      throw failure
    }
  }

  #begin(): void {
    this.#state = 'connecting'
    this.#failure = undefined
    this.#closing = undefined
    this.#life = new AbortController()
    this.scheduler.accept()
    this.#guest.signal.addEventListener('abort', this.#onGuestGone, { once: true })
  }

  async #firstConnection(wait: WaitOptions): Promise<ConnectionSummary> {
    const guest = this.#guest
    const listener = {
      changed: (state: number) => void this.emit('state', { side: 'backend', state }),
      seen: (state: number) => this.#onBackendState(state),
      failed: (error: VbdError) => this.#end(error),
    }
    const bus = await FrontBus.find(guest.xenstore, guest.domid, this.devid, listener, wait)
    const handshake = new Handshake({
      bus,
      guest,
      devid: this.devid,
      choices: this.#choices,
      queueHost: this.scheduler,
      host: {
        wroteState: (state) => void this.emit('state', { side: 'frontend', state }),
        wroteKey: (path, value) => void this.emit('key', { path, value }),
      },
    })
    this.#handshake = handshake
    await handshake.reset(wait)
    return this.#connected(await handshake.negotiate(wait))
  }

  #connected({ transport, queues, properties }: Agreement): ConnectionSummary {
    this.#properties = properties
    this.#lost.clear()
    this.#state = 'connected'
    this.scheduler.attach(queues)
    if (properties.persistent) {
      this.#purge = setInterval(() => this.#purgeGrants(), PURGE_INTERVAL_MS).unref()
    }
    const summary: ConnectionSummary = {
      ...properties,
      protocol: transport.protocol,
      queues: queues.length,
      ringPages: transport.ringPages,
      ringEntries: queues[0]!.ring.entries,
      reconnected: this.#connections++ > 0,
    }
    this.emit('connected', summary)
    // The backend may have moved on while the last keys were read; no watch would tell us again.
    queueMicrotask(() => this.#onBackendState(this.#handshake?.bus.backendState ?? 0))
    return summary
  }

  #purgeGrants(): void {
    for (const queue of this.scheduler.queues) queue.purge()
    this.#guest.memory.sweep()
  }

  /** Every look at the backend's state ends here; only a connected frontend has to react by itself. */
  #onBackendState(state: number): void {
    const handshake = this.#handshake
    if (handshake === undefined) return
    if (!handshake.bus.attached) {
      const alone = this.#state === 'connected' || this.#state === 'broken'
      if (alone) this.#end(detached(handshake.bus))
    } else if (this.#state === 'connected' && state === XENBUS.connected) {
      if (this.#choices.manners.resize) void this.#reread(handshake.bus)
    } else if (this.#state === 'connected') {
      this.#state = 'connecting'
      this.#task = this.#recover(handshake, state).catch((error) => {
        // A close() that came meanwhile ends this life itself.
        if (this.#closing === undefined) this.#end(toVbdError(error, 'ERR_VBD_XENSTORE'))
      })
    }
  }

  async #reread(bus: FrontBus): Promise<void> {
    // A store that fails here fails for everyone, and is told as that.
    const value = await bus.readBackend('sectors').catch(() => undefined)
    const sectors = parseNumber(value, Math.floor(Number.MAX_SAFE_INTEGER / SECTOR_BYTES))
    const before = this.#properties!
    if (this.#state !== 'connected' || sectors === undefined || sectors === before.sectors) return
    const sizeBytes = sectors * SECTOR_BYTES
    this.#properties = { ...before, sectors, sizeBytes }
    this.emit('resize', { sizeBytes, previousBytes: before.sizeBytes })
  }

  /** The backend left Connected: it closes, or another one takes its place. */
  async #recover(handshake: Handshake, state: number): Promise<void> {
    const closes = state === XENBUS.closing || state === XENBUS.closed
    this.#release(closes && (await this.#follow(handshake, state)))
    if (!this.#choices.reconnect || (closes && !(await handshake.isOnline()))) {
      throw new VbdError('ERR_VBD_STATE', 'the backend closed the disk', { vbd: this.vbd })
    }
    this.emit('disconnected', closes ? 'the backend closed' : 'the backend was replaced')
    for (let refusals = 0; ; refusals++) {
      await handshake.setState(XENBUS.initialising)
      try {
        this.#connected(await handshake.negotiate({ signal: this.#life.signal }))
        return
      } catch (error) {
        // A backend that comes and goes again is no reason to give up; anything else is.
        const refused = error instanceof VbdError && error.code === 'ERR_VBD_STATE'
        if (!refused || this.#life.signal.aborted || refusals >= MAX_REFUSALS) throw error
        await this.#follow(handshake, handshake.bus.backendState)
        if (!(await handshake.isOnline())) throw error
      }
    }
  }

  #follow(handshake: Handshake, state: number): Promise<boolean> {
    this.scheduler.pause()
    const wait = { signal: this.#life.signal, timeoutMs: this.#choices.closeTimeoutMs }
    return handshake.follow(state, this.scheduler.quiet(), wait)
  }

  /** Gives back rings and grants. @param strict the backend closed: it must not map anything any more */
  #release(strict: boolean): void {
    clearInterval(this.#purge)
    const stillMapped = this.scheduler.detach()
    this.#guest.memory.sweep()
    if (!strict || stillMapped === 0) return
    const message = `${stillMapped} pages are mapped although the backend closed`
    this.#record({ kind: 'grant-leaked', queue: -1, message })
  }

  /**
   * Closes the disk: finishes the operations (unless `drain` is false), says so in the store, gives back every grant,
   * port and page. Idempotent, never rejects; operations that did not finish reject with ERR_VBD_STATE.
   */
  close(options: { drain?: boolean } = {}): Promise<void> {
    if (this.#state === 'idle') this.#state = 'closed'
    if (this.#isOver()) return this.#closing ?? Promise.resolve()
    this.#closing ??= this.#close(options.drain ?? true)
    return this.#closing
  }

  async #close(drain: boolean): Promise<void> {
    if (drain && this.#state === 'connected') await this.#drain()
    if (this.#isOver()) return
    const failure = this.#failure
    this.#state = 'closing'
    this.#life.abort(new VbdError('ERR_VBD_STATE', 'the frontend closes', { vbd: this.vbd }))
    await this.#task.catch(() => {})
    if (!this.#isOver()) await this.#leave(failure)
  }

  /** Whether it ended by itself meanwhile. */
  #isOver(): boolean {
    return this.#state === 'closed'
  }

  async #drain(): Promise<void> {
    const late = () => new VbdError('ERR_VBD_TIMEOUT', 'operations do not finish')
    const wait = { timeoutMs: this.#choices.closeTimeoutMs, signal: this.#life.signal }
    await within(this.scheduler.idle(), wait, late).catch(() => {})
    if (!this.#choices.manners.flushesAtClose || this.#state !== 'connected') return
    const last = Promise.allSettled([this.flush(), this.barrier()])
    await within(last, wait, late).catch(() => {})
  }

  /** Says goodbye as far as anybody listens, and lets go of everything. */
  async #leave(failure: VbdError | undefined): Promise<void> {
    this.scheduler.pause()
    const handshake = this.#handshake
    const wait = { timeoutMs: this.#choices.closeTimeoutMs, signal: this.#guest.signal }
    try {
      if (handshake !== undefined) {
        const answered = await handshake.leave(wait)
        this.#release(answered)
        if (answered) await handshake.tidy(wait)
      }
    } catch {
      // The store is gone or the disk was detached: there is nobody left to tell.
    }
    await this.#abandon(failure)
  }

  /** The last thing of a life. */
  async #abandon(failure: VbdError | undefined): Promise<void> {
    if (this.#isOver()) return
    this.#state = 'closed'
    this.#failure = failure
    this.#guest.signal.removeEventListener('abort', this.#onGuestGone)
    this.#life.abort(failure)
    this.#release(false)
    this.scheduler.refuse(this.#closedError())
    const bus = this.#handshake?.bus
    this.#handshake = undefined
    this.emit('closed', failure)
    await bus?.close()
  }

  /** Something ended this life from outside. */
  #end(failure: VbdError): void {
    void this.#abandon(failure)
  }

  #violation(violation: Violation): void {
    this.#record(violation)
    if (violation.kind === 'bad-status' || this.#state === 'broken') return
    const message = `the backend broke the protocol: ${violation.message}`
    this.#failure ??= new VbdError('ERR_VBD_PROTOCOL', message, { vbd: this.vbd })
    if (this.#state === 'connected') this.#state = 'broken'
    this.scheduler.pause()
    this.scheduler.refuse(this.#failure)
  }

  #record(violation: Violation): void {
    if (this.#violations.length < MAX_VIOLATIONS) this.#violations.push(violation)
    this.emit('violation', violation)
  }

  #featureLost(feature: Feature): void {
    if (this.#lost.has(feature)) return
    this.#lost.add(feature)
    this.emit('feature-lost', feature)
  }

  protected usable(): DiskProperties | VbdError {
    const usable = this.#state === 'connected' || this.#state === 'connecting'
    if (usable && this.#properties !== undefined) return this.#properties
    if (this.#state === 'broken') return this.#failure!
    return this.#isOver() ? this.#closedError() : this.#wrongState('does no I/O')
  }

  protected isLost(feature: Feature): boolean {
    return this.#lost.has(feature)
  }

  /** What operations of a closed disk reject with. */
  #closedError(): VbdError {
    const message = this.#failure?.message ?? 'the disk is closed'
    return new VbdError('ERR_VBD_STATE', message, { vbd: this.vbd, cause: this.#failure })
  }

  #wrongState(what: string): VbdError {
    const message = `a frontend that is ${this.#state} ${what}`
    return new VbdError('ERR_VBD_STATE', message, { vbd: this.vbd, cause: this.#failure })
  }

  /**
   * Sends one request as it is, for tests; undefined when the connection ended before its answer.
   * Throws ERR_VBD_STATE when not connected, RangeError when the ring is full.
   */
  submit(request: RawRequest, queue = 0): Promise<RawResponse | undefined> {
    const ring = this.scheduler.queues[queue]
    if (this.#state !== 'connected' || ring === undefined) throw this.#wrongState('sends nothing')
    return ring.submitRaw(request)
  }

  /** Requests answered since the frontend was made. */
  get answered(): number {
    return this.scheduler.requestsAnswered
  }

  /**
   * Hands the idle rings to someone else, a load generator or a hostile guest; operations wait until takeBack().
   * `onEvent` is told which ring had an event, unless the addon waits for it meanwhile.
   * Throws ERR_VBD_BUSY with operations in flight, ERR_VBD_STATE when not connected.
   */
  lend(onEvent: (queue: number) => void = () => {}): LentRing[] {
    if (this.#state !== 'connected') throw this.#wrongState('lends no rings')
    if (this.load.operations > 0 || this.load.requests > 0) {
      throw new VbdError('ERR_VBD_BUSY', 'operations are in flight', { vbd: this.vbd })
    }
    this.scheduler.pause()
    return this.scheduler.queues.map((queue) => {
      queue.lend(() => onEvent(queue.index))
      const { byteOffset, pages } = queue.ring
      return { ringOffset: byteOffset, ringPages: pages, port: queue.port }
    })
  }

  /** Takes the rings back, on which every request must have been answered. */
  takeBack(): void {
    for (const queue of this.scheduler.queues) queue.takeBack()
    if (this.#state === 'connected') this.scheduler.resume()
  }

  /** Closes; see close(). */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

function goneReason(signal: AbortSignal): VbdError {
  return toVbdError(signal.reason, 'ERR_VBD_STATE')
}

function anySignal(...signals: (AbortSignal | undefined)[]): AbortSignal {
  return AbortSignal.any(signals.filter((signal) => signal !== undefined))
}
