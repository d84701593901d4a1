/**
 * Refusal: a device that gets no disk, until its directory is gone. The toolstack is told why where it looks: it waits
 * for InitWait, runs its hotplug script, and the script finds the reason; so the device goes there, but never further.
 * A guest that connects is asked to close.
 *
 * Owns the watches of its device. Runs on the JavaScript thread.
 */
import { Coalescer } from '../xenbus/coalesce.js'
import { type Device, quietly, type WriteOutcome } from '../xenbus/device.js'
import { decide, type Step, XenbusState } from '../xenbus/state.js'

export interface RefusalOptions {
  readonly device: Device
  /** One line, printable ASCII. */
  readonly reason: string
  /** The directory is gone, or is a new device's. */
  readonly onGone: () => void
}

const EPERM = 1

/** One refused device. */
export class Refusal {
  readonly #o: RefusalOptions
  readonly #runner = new Coalescer(() => quietly(this.#turn()))
  #watched = false
  #over = false

  constructor(options: RefusalOptions) {
    this.#o = options
  }

  /** Look again. */
  poke(): void {
    this.#runner.poke()
  }

  /** Resolves when the toolstack has been told. */
  start(): Promise<void> {
    return this.#runner.flush()
  }

  /** Leaves the directory as it is. */
  async close(): Promise<void> {
    this.#over = true
    await this.#runner.stop()
    await this.#o.device.close()
  }

  async #turn(): Promise<void> {
    const { device } = this.#o
    if (!this.#watched) await device.watch(() => this.poke())
    this.#watched = true
    for (let outcome: WriteOutcome = 'written'; outcome === 'written' && !this.#over; ) {
      const { own, front, online } = await device.read()
      const situation = { own, front, online, disk: 'refused', ring: 'none' } as const
      const [step] = decide({ ...situation, intent: 'serve' }).steps
      if (step === undefined) return
      if (step === 'drop') return this.#gone()
      outcome = await device.writeState(own!, stateAfter(step), this.#error(step))
    }
  }

  #error(step: Step) {
    return step === 'closed'
      ? undefined
      : { errno: EPERM, text: this.#o.reason, hotplug: step === 'advertise' }
  }

  async #gone(): Promise<void> {
    this.#over = true
    await this.#o.device.clearError()
    await this.#o.device.close()
    this.#o.onGone()
  }
}

function stateAfter(step: Step): XenbusState {
  if (step === 'advertise') return XenbusState.InitWait
  return step === 'closing' ? XenbusState.Closing : XenbusState.Closed
}
