/**
 * Lifecycle: the life of one vbd on the bus, from the toolstack's directory to the frontend's rings and back. It reads
 * both sides, asks the pure state machine (xenbus/state.ts) what comes next, does it, and begins again until there is
 * nothing to do. One step at a time: watch events, engine events and operators only wake it, and the latest state of
 * the store wins.
 *
 *     watch, engine event, reconcile ──► poke ──► read both sides ──► decide ──► perform ──┐
 *                                                       ▲──────────────────────────────────┘
 *
 * Owns its Backing (disk and engine vbd) and the device that it is bound to. Runs on the JavaScript thread.
 */
import { Condition, Retry, within } from '../deadline.js'
import type { DiskInfo, EngineEvent, Tunables } from '../engine/engine.js'
import { toVbdError } from '../errors.js'
import { Coalescer } from '../xenbus/coalesce.js'
import {
  type Device,
  type DeviceError,
  type DeviceReading,
  isConnectionLoss,
  type WriteOutcome,
} from '../xenbus/device.js'
import { decide, type Intent, type RingSituation, type Step, XenbusState } from '../xenbus/state.js'
import type { XenstoreOps } from '../xenstore/xenstore.js'
import type { Offer } from './advertise.js'
import { connectionInfo, prepareOffer, readTerms } from './agree.js'
import { Backing, type BackingOptions } from './backing.js'
import { meaningOf } from './engine_event.js'
import { type ConnectionInfo, type LifecycleEvents, Reporter } from './reporter.js'
import { SizeNews } from './resize.js'
import {
  drainedRecord,
  type Inheritance,
  RECORD_KEY,
  ringRecord,
  Succession,
} from './succession.js'

export interface LifecycleOptions
  extends Omit<BackingOptions, 'onEvent' | 'onResize' | 'onDiskError'> {
  readonly events: LifecycleEvents
  /** The device that it is bound to is its only one: once that closes for good, so does the disk. */
  readonly once: boolean
}

/** Milliseconds after which a step that failed is tried again, doubled each time. */
const RETRY_FIRST_MS = 100
const RETRY_MOST_MS = 5000

/** Milliseconds that closing waits for a step in progress. */
const LAST_STEP_MS = 1000

/** Milliseconds of a toolstack's ten that Closed waits for the disk to be let go of. */
const RELEASE_MS = 5000

const EINVAL = 22
const EPROTO = 71

/** One vbd's conversation with its toolstack and its frontend. */
export class Lifecycle {
  readonly #o: LifecycleOptions
  readonly #backing: Backing
  readonly #runner = new Coalescer(() => this.#turn())
  readonly #reporter: Reporter
  readonly #progress = new Condition()
  #device: Device | undefined
  #intent: Intent = 'serve'
  #ring: RingSituation = 'none'
  #offer: Offer | undefined
  /** What the rings that were attached last were agreed on with; told once Connected is written. */
  #connection: ConnectionInfo | undefined
  /** Of the rings, for a process after us. */
  #record = ''
  /** Why this directory cannot be served at all; until it is made again. */
  #failure: DeviceError | undefined
  /** Why the next Closing is written, if not by the frontend's wish. */
  #reason: DeviceError | undefined
  /** The device's watches are registered. */
  #watched = false
  readonly #sizeNews = new SizeNews()
  /** Until we have served this directory: an earlier process may have. */
  #succession: Succession | undefined
  readonly #retry = new Retry(() => this.poke(), RETRY_FIRST_MS, RETRY_MOST_MS)
  #closed = false

  constructor(options: LifecycleOptions) {
    this.#o = options
    this.#reporter = new Reporter(options.events)
    this.#backing = new Backing({
      ...options,
      onEvent: (event) => this.#engineEvent(event),
      onResize: (info) => this.#resized(info),
      onDiskError: (error) => this.#reporter.error(error),
    })
  }

  get state(): XenbusState | undefined {
    return this.#reporter.own
  }

  get frontState(): XenbusState | undefined {
    return this.#reporter.front
  }

  get device(): Device | undefined {
    return this.#device
  }

  /** While both sides are Connected. */
  get connection(): ConnectionInfo | undefined {
    return this.#reporter.connection
  }

  /** For pausing, and for what the engine counts. */
  get backing(): Backing {
    return this.#backing
  }

  get diskInfo(): DiskInfo | undefined {
    return this.#backing.info
  }

  /** Whether no guest page, port or grant is held. */
  get holdsNothing(): boolean {
    return this.#ring === 'none'
  }

  /** Opens the disk now, so that what is wrong with it is told to the operator instead of the guest. */
  open(): Promise<DiskInfo> {
    return this.#backing.open(this.#o.options.readOnly)
  }

  /** Takes care of this device from now on, until its directory is gone. */
  bind(device: Device): void {
    if (this.#closed || this.#device !== undefined) return
    this.#device = device
    this.#failure = undefined
    this.#offer = undefined
    this.#watched = false
    this.#succession = new Succession(device, this.#backing, this.#o.options)
    this.poke()
  }

  poke(): void {
    this.#runner.poke()
  }

  /** Asks the frontend to close and waits for it at most `timeoutMs`; then lets go whatever it says. Idempotent. */
  async close(timeoutMs: number): Promise<void> {
    if (this.#closed) return
    // A guest that is to close has requests to be answered first.
    await this.#backing.resume()
    if (this.#device !== undefined) {
      await this.#part('stop', timeoutMs)
      if (!this.#parted()) await this.#part('abandon', Math.min(timeoutMs, 2000))
    }
    const device = await this.#end()
    if (device !== undefined) await within(device.clearError(), LAST_STEP_MS)
    await this.#letGo()
  }

  /** Stops serving without a word to the frontend: another process goes on, where we end if that can be. Idempotent. */
  async leave(): Promise<void> {
    if (this.#closed) return
    const device = await this.#end()
    const connected = this.#ring === 'attached' && this.#reporter.own === XenbusState.Connected
    // Without one its disk may still be opening, perhaps for ever.
    if (device !== undefined && (await this.#backing.leave()) && connected) {
      const record = drainedRecord(this.#record)
      const write = (tx: XenstoreOps, path: string) => tx.write(`${path}/${RECORD_KEY}`, record)
      await within(device.update(XenbusState.Connected, write), LAST_STEP_MS)
    }
    await this.#letGo()
  }

  tune(tunables: Partial<Tunables>): void {
    this.#backing.tune(tunables)
  }

  /** Changes the disk; resolves when a connected guest has been told of what it has to know. */
  async change(act: (backing: Backing) => Promise<DiskInfo>): Promise<DiskInfo> {
    const info = await act(this.#backing)
    await this.#runner.flush()
    return info
  }

  /** No further step is begun, and no change is heard of. */
  async #end(): Promise<Device | undefined> {
    this.#closed = true
    this.#retry.end()
    // A step that waits for a store that is gone must not keep the engine from letting go.
    await within(this.#runner.stop(), LAST_STEP_MS)
    await this.#device?.close()
    return this.#device
  }

  async #letGo(): Promise<void> {
    await this.#backing.close()
    this.#ring = 'none'
    this.#reporter.disconnected()
  }

  async #part(intent: Intent, timeoutMs: number): Promise<void> {
    this.#intent = intent
    this.poke()
    await this.#progress.reached(() => this.#parted(), timeoutMs)
  }

  /** Nothing is held, and nobody can think that we would still serve. */
  #parted(): boolean {
    if (this.#device === undefined) return this.#ring === 'none'
    const own = this.#reporter.own
    const waiting = own === XenbusState.InitWait || own === XenbusState.Connected
    return this.#ring === 'none' && !waiting && own !== XenbusState.Closing
  }

  /** Everything there is to do now. Never rejects. */
  async #turn(): Promise<void> {
    try {
      while (this.#device !== undefined && !this.#closed) {
        if (!(await this.#advance(this.#device))) break
      }
      if (await this.#sizeNews.tell(this.#device, this.#reporter.own, this.#backing.info))
        this.poke()
      this.#retry.end()
      if (!this.#closed) this.#o.events.settled()
    } catch (thrown) {
      this.#stumble(thrown)
    }
    this.#progress.wake()
  }

  /** One decision and its steps. False: nothing to do. */
  async #advance(device: Device): Promise<boolean> {
    // Before the first reading, so that no change is missed.
    if (!this.#watched) await device.watch(() => this.poke())
    this.#watched = true
    const reading = await device.read()
    if (this.#closed) return false
    this.#reporter.observe(reading.own, reading.front)
    // Published, though the connection was lost before we were told so.
    const connected = reading.own === XenbusState.Connected && this.#ring === 'attached'
    if (connected) this.#reporter.connected(this.#connection!)
    // Advertised by a process before us, on terms that we do not know: we state ours first.
    const unknownTerms =
      reading.own === XenbusState.InitWait && this.#offer === undefined && this.#intent === 'serve'
    const { steps, reason } = decide({
      own: unknownTerms ? XenbusState.Initialising : reading.own,
      front: reading.front,
      online: reading.online,
      disk: this.#failure === undefined && !this.#backing.closed ? 'ready' : 'failed',
      ring: this.#ring,
      intent: this.#intent,
      adoptable: this.#succession?.isPossible === true,
    })
    if (steps.length === 0) return false
    if (reason !== undefined)
      this.#blame({ errno: EPROTO, text: this.#succession?.explain(reason) ?? reason })
    for (const step of steps) {
      if (this.#closed || !(await this.#perform(step, device, reading))) break
      this.#progress.wake()
    }
    return true
  }

  /** False: the steps after it are void. */
  async #perform(step: Step, device: Device, { online }: DeviceReading): Promise<boolean> {
    switch (step) {
      case 'disconnect':
        return this.#disconnect()
      case 'drop':
        return this.#drop(device)
      case 'advertise':
        return this.#advertise(device)
      case 'connect':
        return this.#connect(device)
      case 'adopt':
        return this.#adopt()
      case 'publish':
        return this.#publish(device)
      case 'closing':
        return this.#write(device, XenbusState.Closing, this.#failure ?? this.#reason)
      case 'closed':
        // A toolstack that detaches for good takes Closed for leave to use the image elsewhere.
        if (this.#o.once && !online) await within(this.#backing.close(), RELEASE_MS)
        return this.#write(device, XenbusState.Closed)
    }
  }

  async #advertise(device: Device): Promise<boolean> {
    const own = this.#reporter.own!
    const prepared = await prepareOffer(device, this.#backing, this.#o.options)
    if ('failure' in prepared) {
      this.#failure = prepared.failure
      if (prepared.error === undefined) this.#reporter.warn(prepared.failure.text)
      else this.#reporter.error(prepared.error)
      return false
    }
    this.#offer = prepared.offer
    this.#reason = undefined
    // Cleared before: it may change again while we write.
    this.#sizeNews.settle()
    let outcome: WriteOutcome = 'changed'
    try {
      outcome = await device.update(own, async (tx, path) => {
        await this.#writeKeys(tx, path)
        if (own !== XenbusState.InitWait) await tx.write(`${path}/state`, `${XenbusState.InitWait}`)
      })
    } finally {
      if (outcome !== 'written') this.#offer = undefined
    }
    if (outcome !== 'written') return false
    this.#reporter.observe(XenbusState.InitWait, this.#reporter.front)
    return true
  }

  async #connect(device: Device): Promise<boolean> {
    const result = await readTerms(device, this.#offer!, this.#o.options.defaultProtocol)
    if (!result.ok) return this.#refuse(device, result.reason)
    try {
      // Set first: if the process of connecting is interrupted by a broken ring, it must be undone.
      this.#ring = 'attached'
      this.#succession = undefined
      const { transfer } = await this.#backing.connect(result.connection)
      this.#connection = connectionInfo(result.connection, transfer, this.#offer!.features)
      this.#record = ringRecord(result.connection, this.#backing.journaled ? 'journaled' : 'open')
      return true
    } catch (thrown) {
      // Nothing is left mapped or bound then (Engine contract).
      this.#ring = 'none'
      return this.#refuse(device, toVbdError(thrown).message)
    }
  }

  /** Goes on where an earlier process ended; the guest sees nothing of it. */
  async #adopt(): Promise<boolean> {
    let taken: Inheritance | undefined
    try {
      // Set first, as above.
      this.#ring = 'attached'
      taken = await this.#succession!.takeOver()
    } finally {
      if (taken === undefined) this.#ring = 'none'
    }
    // Whatever it found, there is another decision to be made.
    if (taken === undefined) return false
    this.#succession = undefined
    this.#offer = taken.offer
    this.#connection = taken.info
    this.#record = taken.record
    if (taken.sizeChanged) this.#sizeNews.raise()
    this.#reporter.connected(taken.info)
    return true
  }

  async #publish(device: Device): Promise<boolean> {
    this.#sizeNews.settle()
    // Before: whoever sees Connected must not find the reason of an earlier refusal beside it.
    await device.clearError()
    const outcome = await device.update(XenbusState.InitWait, async (tx, path) => {
      await this.#writeKeys(tx, path)
      await tx.write(`${path}/${RECORD_KEY}`, this.#record)
      await tx.write(`${path}/state`, `${XenbusState.Connected}`)
    })
    if (outcome !== 'written') return false
    this.#reporter.observe(XenbusState.Connected, this.#reporter.front)
    this.#reporter.connected(this.#connection!)
    return true
  }

  async #disconnect(): Promise<boolean> {
    try {
      await this.#backing.disconnect()
    } catch (thrown) {
      // Something is still held: Closed must not be written. We come back to it.
      this.#ring = 'broken'
      throw thrown
    }
    this.#ring = 'none'
    this.#reporter.disconnected()
    return true
  }

  async #drop(device: Device): Promise<boolean> {
    await device.clearError()
    await device.close()
    this.#device = undefined
    this.#offer = undefined
    this.#reason = undefined
    this.#reporter.observe(undefined, undefined)
    this.#o.events.dropped(device)
    return true
  }

  async #refuse(device: Device, text: string): Promise<boolean> {
    this.#blame({ errno: EINVAL, text: `the frontend cannot be connected: ${text}` })
    await this.#write(device, XenbusState.Closing, this.#reason)
    return false
  }

  #blame(reason: DeviceError): void {
    if (this.#reason?.text !== reason.text) this.#reporter.warn(reason.text)
    this.#reason = reason
  }

  async #write(device: Device, to: XenbusState, error?: DeviceError): Promise<boolean> {
    const outcome = await device.writeState(this.#reporter.own!, to, error)
    if (outcome === 'written') {
      this.#reporter.observe(to, this.#reporter.front)
      if (to === XenbusState.Closed) this.#reason = undefined
    }
    return outcome === 'written'
  }

  async #writeKeys(tx: XenstoreOps, path: string): Promise<void> {
    const { write, remove } = this.#backing.advertise(this.#offer!)
    for (const [key, value] of write) await tx.write(`${path}/${key}`, value)
    for (const key of remove) await tx.remove(`${path}/${key}`)
  }

  #engineEvent(event: EngineEvent): void {
    if (this.#closed || (event.type === 'ring-corrupt' && this.#ring !== 'attached')) return
    const { error, reason } = meaningOf(event, this.#o.name, this.#o.options.onFlushFailure)
    this.#reporter.error(error)
    if (reason === undefined || this.#ring !== 'attached') return
    this.#ring = 'broken'
    this.#reason = reason
    this.poke()
  }

  #resized(info: DiskInfo): void {
    this.#sizeNews.raise()
    this.#o.events.resized(info)
    this.poke()
  }

  /** A step failed: the store is gone (it wakes us when it is back), or something passing; both are tried again. */
  #stumble(thrown: unknown): void {
    if (this.#closed) return
    if (!isConnectionLoss(thrown)) this.#reporter.warn(toVbdError(thrown).message)
    this.#retry.later()
  }
}
