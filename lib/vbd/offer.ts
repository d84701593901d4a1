/**
 * DeviceOffer: a device that a toolstack attached and no `serve` has asked for; a program decides what it gets. What
 * it shows comes from the backend directory, which only toolstacks write.
 */
import type { Disk } from '../disk/disk.js'
import { VbdError } from '../errors.js'
import { formatVbdId, formatVdev } from '../units.js'
import type { Device } from '../xenbus/device.js'
import { parseState, XenbusState } from '../xenbus/state.js'
import type { VbdOptions } from './options.js'
import type { Vbd, VbdTunables } from './vbd.js'

export interface AcceptOptions extends VbdOptions {
  /** Settings that differ from the backend's. */
  readonly tunables?: Partial<VbdTunables>
}

/** What becomes of an offer; the backend does it. */
export interface OfferAnswers {
  accept(device: Device, disk: Disk, options: AcceptOptions): Promise<Vbd>
  refuse(device: Device, reason: string): Promise<void>
  ignore(device: Device): void
}

const KEYS = ['params', 'mode', 'script', 'type', 'device-type', 'created-by', 'state'] as const

type Keys = Readonly<Record<(typeof KEYS)[number], string | undefined>>

/** A device to be accepted, refused or ignored, once. Nothing happens to it while none of it is done. */
export class DeviceOffer {
  /** `1:xvda` */
  readonly id: string
  readonly domid: number
  readonly devid: number
  /** `xvda` */
  readonly vdev: string
  /** `vbd`, `vbd3`, ... */
  readonly kind: string
  /** What the toolstack says that the disk is: for raw files a path, or `aio:` and a path. */
  readonly params: string | undefined
  /** What the toolstack allows: writable when it holds a `w`. */
  readonly mode: string | undefined
  /** Path of the hotplug script that the toolstack runs. */
  readonly script: string | undefined
  /** `disk` or `cdrom`. */
  readonly deviceType: string | undefined
  /** Who made the directories, where it was no toolstack: `vbdkit`, ... */
  readonly createdBy: string | undefined
  /** A guest uses it: an earlier process served it, and we may go on where that ended. */
  readonly connected: boolean
  readonly #device: Device
  readonly #answers: OfferAnswers
  #answered = false

  static async read(device: Device, answers: OfferAnswers): Promise<DeviceOffer> {
    const keys = await device.readBackend(KEYS)
    device.pinParams(keys.params)
    return new DeviceOffer(device, keys, answers)
  }

  private constructor(device: Device, keys: Keys, answers: OfferAnswers) {
    const { domid, devid, kind } = device.address
    this.id = formatVbdId({ domid, devid })
    this.domid = domid
    this.devid = devid
    this.vdev = formatVdev(devid)
    this.kind = kind
    this.params = keys.params
    this.mode = keys.mode
    this.script = keys.script
    this.deviceType = keys['device-type']
    this.createdBy = keys['created-by']
    this.connected = parseState(keys.state) === XenbusState.Connected
    this.#device = device
    this.#answers = answers
  }

  /** Whether the toolstack allows writes. */
  get writable(): boolean {
    return this.mode?.includes('w') ?? true
  }

  /**
   * Serves this disk until the toolstack detaches the device; the vbd closes itself then. When this fails, the offer
   * can still be refused.
   *
   * @throws as `Backend.serve`; ERR_VBD_NOT_FOUND when the device is gone, ERR_VBD_STATE when the offer has been
   *   answered
   */
  async accept(disk: Disk, options: AcceptOptions = {}): Promise<Vbd> {
    this.#answer()
    try {
      return await this.#answers.accept(this.#device, disk, options)
    } catch (thrown) {
      this.#answered = false
      throw thrown
    }
  }

  /**
   * Lets the toolstack's attach fail with this reason, which xl prints where the hotplug script is ours.
   *
   * @param reason one line for people; printable ASCII of it is written, 200 characters at most
   * @throws ERR_VBD_STATE when the offer has been answered
   */
  async refuse(reason: string): Promise<void> {
    this.#answer()
    await this.#answers.refuse(
      this.#device,
      reason.replace(/[^\x20-\x7e]/g, '?').slice(0, MAX_REASON),
    )
  }

  /**
   * Leaves the device to another backend. It is offered again when it is made again.
   *
   * @throws ERR_VBD_STATE when the offer has been answered
   */
  ignore(): void {
    this.#answer()
    this.#answers.ignore(this.#device)
  }

  #answer(): void {
    if (this.#answered) {
      throw new VbdError('ERR_VBD_STATE', `the offer of ${this.id} has been answered already`, {
        vbd: this.id,
      })
    }
    this.#answered = true
  }
}

const MAX_REASON = 200
