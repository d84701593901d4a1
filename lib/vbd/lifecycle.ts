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
import { Condition, within } from '../deadline.js'
import type { DiskInfo, EngineEvent, Tunables } from '../engine/engine.js'
import { toVbdError, VbdError } from '../errors.js'
import { Coalescer } from '../xenbus/coalesce.js'
import {
  type Device,
  type DeviceError,
  isConnectionLoss,
  type WriteOutcome,
} from '../xenbus/device.js'
import { decide, type Intent, type RingSituation, type Step, XenbusState } from '../xenbus/state.js'
import type { XenstoreOps } from '../xenstore/xenstore.js'
import { isReadOnly, type Offer, offersPersistent, TOOLSTACK_KEYS } from './advertise.js'
import { Backing, type BackingOptions } from './backing.js'
import { negotiate, ringKeys, SHAPE_KEYS, type Terms } from './negotiate.js'
import { type ConnectionInfo, type LifecycleEvents, Reporter } from './reporter.js'
import { announceSize } from './resize.js'

export interface LifecycleOptions
  extends Omit<BackingOptions, 'onEvent' | 'onResize' | 'onDiskError'> {
  readonly events: LifecycleEvents
}

/** Milliseconds after which a step that failed is tried again, doubled each time. */
const RETRY_FIRST_MS = 100
const RETRY_MOST_MS = 5000

/** Milliseconds that closing waits for a step in progress. */
const LAST_STEP_MS = 1000

const EIO = 5
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
  #connection: ConnectionInfo | undefined
  /** Connected was written, so that `disconnected` is due. */
  #announced = false
  /** Why this directory cannot be served at all; until it is made again. */
  #failure: DeviceError | undefined
  /** Why the next Closing is written, if not by the frontend's wish. */
  #reason: DeviceError | undefined
  /** The device's watches are registered. */
  #watched = false
  #sizeChanged = false
  #retry: NodeJS.Timeout | undefined
  #retryMs = RETRY_FIRST_MS
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
    return this.#announced ? this.#connection : undefined
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
    this.#closed = true
    clearTimeout(this.#retry)
    // A step that waits for a store that is gone must not keep the engine from letting go.
    await within(this.#runner.stop(), LAST_STEP_MS)
    const device = this.#device
    if (device !== undefined) {
      await device.close()
      await within(device.clearError(), LAST_STEP_MS)
    }
    await this.#backing.close()
    this.#ring = 'none'
    this.#leave()
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
      await this.#tellSize()
      clearTimeout(this.#retry)
      this.#retry = undefined
      this.#retryMs = RETRY_FIRST_MS
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
    if (connected && !this.#announced) this.#announce()
    // Advertised by a process before us, on terms that we do not know: we state ours first.
    const unknownTerms =
      reading.own === XenbusState.InitWait && this.#offer === undefined && this.#intent === 'serve'
    const { steps, reason } = decide({
      own: unknownTerms ? XenbusState.Initialising : reading.own,
      front: reading.front,
      online: reading.online,
      disk: this.#failure === undefined ? 'ready' : 'failed',
      ring: this.#ring,
      intent: this.#intent,
    })
    if (steps.length === 0) return false
    if (reason !== undefined) this.#blame({ errno: EPROTO, text: reason })
    for (const step of steps) {
      if (this.#closed || !(await this.#perform(step, device))) break
      this.#progress.wake()
    }
    return true
  }

  /** False: the steps after it are void. */
  async #perform(step: Step, device: Device): Promise<boolean> {
    switch (step) {
      case 'disconnect':
        return this.#disconnect()
      case 'drop':
        return this.#drop(device)
      case 'advertise':
        return this.#advertise(device)
      case 'connect':
        return this.#connect(device)
      case 'publish':
        return this.#publish(device)
      case 'closing':
        return this.#write(device, XenbusState.Closing, this.#failure ?? this.#reason)
      case 'closed':
        return this.#write(device, XenbusState.Closed)
    }
  }

  async #advertise(device: Device): Promise<boolean> {
    const own = this.#reporter.own!
    const wrong = await device.checkIdentity()
    if (wrong !== undefined) {
      this.#failure = { errno: EINVAL, text: wrong, hotplug: true }
      this.#reporter.warn(wrong)
      return false
    }
    const keys = await device.readBackend(TOOLSTACK_KEYS)
    try {
      this.#offer = await this.#backing.prepare(isReadOnly(this.#o.options, keys), keys)
    } catch (thrown) {
      const error = toVbdError(thrown)
      this.#failure = { errno: EIO, text: error.message, hotplug: true }
      this.#reporter.error(error)
      return false
    }
    this.#reason = undefined
    // Cleared before: it may change again while we write.
    this.#sizeChanged = false
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
    const { features, maxRingPageOrder, maxQueues } = this.#offer!
    const terms: Terms = {
      domid: device.address.domid,
      maxRingPageOrder,
      maxQueues,
      persistent: offersPersistent(features),
      defaultProtocol: this.#o.options.defaultProtocol,
    }
    const shape = await device.readFrontend(SHAPE_KEYS)
    const rings = await device.readFrontend(ringKeys(shape, terms))
    const result = negotiate(new Map([...shape, ...rings]), terms)
    if (!result.ok) return this.#refuse(device, result.reason)

    const { connection } = result
    try {
      // Set first: if the process of connecting is interrupted by a broken ring, it must be undone.
      this.#ring = 'attached'
      const { transfer } = await this.#backing.connect(connection)
      this.#connection = {
        protocol: connection.protocol,
        transfer,
        persistent: connection.persistent,
        queues: connection.rings.length,
        ringPages: connection.rings[0]!.ringRefs.length,
        features,
      }
      return true
    } catch (thrown) {
      // Nothing is left mapped or bound then (Engine contract).
      this.#ring = 'none'
      return this.#refuse(device, toVbdError(thrown).message)
    }
  }

  async #publish(device: Device): Promise<boolean> {
    this.#sizeChanged = false
    // Before: whoever sees Connected must not find the reason of an earlier refusal beside it.
    await device.clearError()
    const outcome = await device.update(XenbusState.InitWait, async (tx, path) => {
      await this.#writeKeys(tx, path)
      await tx.write(`${path}/state`, `${XenbusState.Connected}`)
    })
    if (outcome !== 'written') return false
    this.#reporter.observe(XenbusState.Connected, this.#reporter.front)
    this.#announce()
    return true
  }

  #announce(): void {
    this.#announced = true
    this.#o.events.connected(this.#connection!)
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
    this.#leave()
    return true
  }

  #leave(): void {
    this.#connection = undefined
    if (!this.#announced) return
    this.#announced = false
    this.#o.events.disconnected()
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
    if (this.#closed) return
    const vbd = this.#o.name
    if (event.type === 'ring-corrupt') {
      if (this.#ring !== 'attached') return
      this.#ring = 'broken'
      const text = `ring ${event.queue} is corrupt: ${event.message}`
      this.#reason = { errno: EPROTO, text }
      this.#reporter.error(new VbdError('ERR_VBD_PROTOCOL', text, { vbd }))
    } else {
      const hold = this.#o.options.onFlushFailure === 'hold'
      const text = `a flush failed: ${event.message}`
      this.#reporter.error(
        new VbdError('ERR_VBD_IO', text, {
          vbd,
          remedy: 'check the disk, then detach it from the guest and serve it again',
        }),
      )
      if (hold || this.#ring !== 'attached') return
      this.#ring = 'broken'
      this.#reason = { errno: EIO, text }
    }
    this.poke()
  }

  #resized(info: DiskInfo): void {
    this.#sizeChanged = true
    this.#o.events.resized(info)
    this.poke()
  }

  /** Tells a connected frontend that the disk has another size. */
  async #tellSize(): Promise<void> {
    const device = this.#device
    const info = this.#backing.info
    if (!this.#sizeChanged || device === undefined || info === undefined) return
    const own = this.#reporter.own
    if (own !== XenbusState.InitWait && own !== XenbusState.Connected) return
    // Cleared before, as above.
    this.#sizeChanged = false
    let outcome: WriteOutcome = 'changed'
    try {
      outcome = await announceSize(device, own, info)
    } finally {
      if (outcome === 'changed') this.#sizeChanged = true
    }
    if (outcome === 'changed') this.poke()
  }

  /** A step failed: the store is gone (it wakes us when it is back), or something passing; both are tried again. */
  #stumble(thrown: unknown): void {
    if (this.#closed) return
    if (!isConnectionLoss(thrown)) this.#reporter.warn(toVbdError(thrown).message)
    clearTimeout(this.#retry)
    this.#retry = setTimeout(() => this.poke(), this.#retryMs).unref()
    this.#retryMs = Math.min(this.#retryMs * 2, RETRY_MOST_MS)
  }
}
