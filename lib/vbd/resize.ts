/**
 * Resize: how a connected frontend learns that its disk has another size. One transaction writes `sectors` and writes
 * `state` again with the value that it has; the rewrite fires the frontend's watch on our state (Linux
 * `xen_vbd_resize`, QEMU `xen_block_resize_cb`).
 */
import type { DiskInfo } from '../engine/engine.js'
import { VbdError } from '../errors.js'
import { parseSize } from '../units.js'
import type { Device, WriteOutcome } from '../xenbus/device.js'
import { XenbusState } from '../xenbus/state.js'
import { sectorsValue } from './advertise.js'

export interface ResizeOptions {
  /** Allow the disk to become smaller; what lies beyond its new end is lost. */
  readonly shrink?: boolean
}

/**
 * The new size in bytes, checked against the disk as it is.
 *
 * @throws ERR_VBD_ARGUMENT for a size that is 0, no multiple of the sector size, or smaller without `shrink`;
 *   ERR_VBD_UNSUPPORTED for a disk that is read-only
 */
export function checkResize(
  vbd: string,
  disk: DiskInfo,
  size: string | number | bigint,
  { shrink = false }: ResizeOptions,
): number {
  const sizeBytes = parseSize(size)
  if (disk.readOnly) {
    throw new VbdError('ERR_VBD_UNSUPPORTED', 'a read-only disk cannot be resized', { vbd })
  }
  if (sizeBytes === 0 || sizeBytes % disk.sectorSize !== 0) {
    throw new VbdError('ERR_VBD_ARGUMENT', `the disk cannot have ${sizeBytes} bytes`, {
      vbd,
      remedy: `give a size above 0 that is a multiple of ${disk.sectorSize} bytes`,
    })
  }
  if (sizeBytes < disk.sizeBytes && !shrink) {
    const message = `${sizeBytes} bytes are fewer than the disk's ${disk.sizeBytes}`
    throw new VbdError('ERR_VBD_ARGUMENT', message, {
      vbd,
      remedy: 'shrinking loses data; ask for it with the option shrink',
    })
  }
  return sizeBytes
}

/** Whether a frontend has still to be told that the disk has another size. */
export class SizeNews {
  #due = false

  /** The disk has changed. */
  raise(): void {
    this.#due = true
  }

  /** The size is being written now, with everything else. Called before: it may change again meanwhile. */
  settle(): void {
    this.#due = false
  }

  /**
   * Tells it what it does not know. True: our state has changed meanwhile, try again.
   *
   * @param own our state
   */
  async tell(
    device: Device | undefined,
    own: XenbusState | undefined,
    disk: DiskInfo | undefined,
  ): Promise<boolean> {
    if (!this.#due || device === undefined || disk === undefined) return false
    if (own !== XenbusState.InitWait && own !== XenbusState.Connected) return false
    this.settle()
    let outcome: WriteOutcome = 'changed'
    try {
      outcome = await announceSize(device, own, disk)
    } finally {
      if (outcome === 'changed') this.raise()
    }
    return outcome === 'changed'
  }
}

/** Writes the size where our state is `own`; announces it where that is Connected. */
function announceSize(device: Device, own: XenbusState, disk: DiskInfo): Promise<WriteOutcome> {
  return device.update(own, async (tx, path) => {
    await tx.write(`${path}/sectors`, sectorsValue(disk))
    if (own === XenbusState.Connected) await tx.write(`${path}/state`, String(own))
  })
}
