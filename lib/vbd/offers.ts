/**
 * Offers: the devices that nobody serves. Each is offered once to whoever listens, also those that were there before
 * anybody did; those that were refused are kept in order until their directories are gone.
 *
 * Owned by the Backend; owns the refusals.
 */
import type { Disk } from '../disk/disk.js'
import { VbdError } from '../errors.js'
import { formatVbdId } from '../units.js'
import type { Bus } from '../xenbus/bus.js'
import { type Device, quietly } from '../xenbus/device.js'
import { type AcceptOptions, DeviceOffer } from './offer.js'
import { Refusal } from './refusal.js'
import type { Vbd } from './vbd.js'

export interface OffersOptions {
  readonly bus: () => Bus
  /** Whether anybody wants to hear of devices. */
  readonly wanted: () => boolean
  readonly emit: (offer: DeviceOffer) => void
  readonly serve: (device: Device, disk: Disk, options: AcceptOptions) => Promise<Vbd>
  /** The vbd at the device's place, of this device or of one before. */
  readonly servedAs: (device: Device) => Vbd | undefined
  /** Something that nobody waits for. */
  readonly background: (promise: Promise<unknown>) => void
}

/** The devices without a vbd. */
export class Offers {
  readonly #o: OffersOptions
  readonly #offered = new WeakSet<Device>()
  readonly #refusals = new Map<Device, Refusal>()
  /** By frontend path: what was accepted there last. */
  readonly #accepted = new Map<string, Promise<Vbd>>()

  constructor(options: OffersOptions) {
    this.#o = options
  }

  /** A device that nobody serves. */
  found(device: Device): void {
    if (!this.#o.wanted() || this.#offered.has(device)) return
    this.#offered.add(device)
    const offered = this.#offer(device).catch((thrown) => {
      // The connection to xenstore was lost on the way, perhaps: with the next look it is offered again.
      this.#offered.delete(device)
      throw thrown
    })
    this.#o.background(offered)
  }

  /** Look again at a device that may have been refused. */
  poke(device: Device): void {
    this.#refusals.get(device)?.poke()
  }

  /** The directory is gone. */
  missing(device: Device): void {
    const refusal = this.#refusals.get(device)
    if (refusal !== undefined) refusal.poke()
    else this.#o.bus().forget(device)
  }

  /** @throws ERR_VBD_NOT_FOUND when the device is gone */
  requirePresent(device: Device): void {
    if (this.#o.bus().devices().includes(device)) return
    const vbd = formatVbdId(device.address)
    throw new VbdError('ERR_VBD_NOT_FOUND', `${vbd} has been detached meanwhile`, { vbd })
  }

  async close(): Promise<void> {
    await Promise.all([...this.#refusals.values()].map((refusal) => refusal.close()))
    this.#refusals.clear()
  }

  async #offer(device: Device): Promise<void> {
    const offer = await DeviceOffer.read(device, {
      accept: (of, disk, options) => this.#accept(of, disk, options),
      refuse: (of, reason) => this.#refuse(of, reason),
      ignore: (of) => this.#o.bus().leave(of),
    })
    this.#o.emit(offer)
  }

  /** One after the other at one place: the device before may be on its way out, still. */
  #accept(device: Device, disk: Disk, options: AcceptOptions): Promise<Vbd> {
    const place = device.paths.frontend
    const before = this.#accepted.get(place)
    const serve = async () => {
      if (before !== undefined) await quietly(before)
      const vbd = this.#o.servedAs(device)
      if (vbd?.closing) await quietly(vbd.close())
      this.requirePresent(device)
      return this.#o.serve(device, disk, options)
    }
    const accepted = serve().finally(() => {
      if (this.#accepted.get(place) === accepted) this.#accepted.delete(place)
    })
    this.#accepted.set(place, accepted)
    return accepted
  }

  #refuse(device: Device, reason: string): Promise<void> {
    const onGone = () => {
      this.#refusals.delete(device)
      this.#o.bus().forget(device)
    }
    const refusal = new Refusal({ device, reason, onGone })
    this.#refusals.set(device, refusal)
    return refusal.start()
  }
}
