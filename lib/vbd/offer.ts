/**
 * DeviceOffer: a device that a toolstack attached and no `serve` has asked for; a program decides what it gets. What
 * it shows comes from the backend directory, which only toolstacks write.
 */
import type { Disk } from '../disk/disk.js'
import { VbdError } from '../errors.js'
import { formatVbdId, formatVdev } from '../units.js'
import { type Device, quietly } from '../xenbus/device.js'
import { parseState, XenbusState } from '../xenbus/state.js'
import type { VbdOptions } from './options.js'
import type { Vbd, VbdTunables } from './vbd.js'

export interface AcceptOptions extends VbdOptions {
  /** Settings that differ from the backend's. */
  readonly tunables?: Partial<VbdTunables>
}

/** A device to be accepted or refused, once. Nothing happens to it while neither is done. */
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
  readonly #device: Device
  readonly #serve: (disk: Disk, options: AcceptOptions) => Promise<Vbd>
  #answered = false

  static async read(
    device: Device,
    serve: (disk: Disk, options: AcceptOptions) => Promise<Vbd>,
  ): Promise<DeviceOffer> {
    const { params, mode } = await device.readBackend(['params', 'mode'])
    return new DeviceOffer(device, params, mode, serve)
  }

  private constructor(
    device: Device,
    params: string | undefined,
    mode: string | undefined,
    serve: (disk: Disk, options: AcceptOptions) => Promise<Vbd>,
  ) {
    const { domid, devid, kind } = device.address
    this.id = formatVbdId({ domid, devid })
    this.domid = domid
    this.devid = devid
    this.vdev = formatVdev(devid)
    this.kind = kind
    this.params = params
    this.mode = mode
    this.#device = device
    this.#serve = serve
  }

  /**
   * Serves this disk until the toolstack detaches the device; the vbd closes itself then.
   *
   * @throws as `Backend.serve`; ERR_VBD_STATE when the offer has been answered
   */
  accept(disk: Disk, options: AcceptOptions = {}): Promise<Vbd> {
    this.#answer()
    return this.#serve(disk, options)
  }

  /**
   * Lets the toolstack's attach fail with this reason.
   *
   * @param reason one line for people; printable ASCII of it is written, 200 characters at most
   * @throws ERR_VBD_STATE when the offer has been answered
   */
  async refuse(reason: string): Promise<void> {
    this.#answer()
    const text = reason.replace(/[^\x20-\x7e]/g, '?').slice(0, 200)
    const { state } = await this.#device.readBackend(['state'])
    if (state === undefined) return
    const own = parseState(state)
    if (own === XenbusState.Closing || own === XenbusState.Closed) return
    await quietly(
      this.#device.writeState(own, XenbusState.Closing, { errno: EPERM, text, hotplug: true }),
    )
    await quietly(this.#device.writeState(XenbusState.Closing, XenbusState.Closed))
  }

  #answer(): void {
    if (this.#answered) {
      throw new VbdError('ERR_VBD_STATE', `${this.id} has been accepted or refused already`, {
        vbd: this.id,
      })
    }
    this.#answered = true
  }
}

const EPERM = 1
