/**
 * NullDisk: reads as zeroes and forgets what is written. For measuring what a request costs without its disk.
 */
import type { SizedSpec } from '../../disk/spec.js'
import type { DiskInfo } from '../engine.js'
import { IO } from '../primitives.js'
import { DiskQueue, ERRNO } from './disk_queue.js'
import type { InFlight } from './in_flight.js'
import { checkDiskSize, JsDisk } from './js_disk.js'

class NullQueue extends DiskQueue {
  readonly #fills: boolean

  constructor(fills: boolean, onComplete: () => void) {
    super(onComplete)
    this.#fills = fills
  }

  submit(batch: readonly InFlight[]): void {
    for (let i = 0; i < batch.length; i++) {
      const item = batch[i]!
      if (this.#fills && item.io === IO.read) fillZero(item)
      this.complete(item, item.io === IO.secureDiscard ? ERRNO.opNotSupp : 0)
    }
  }

  close(): void {}
}

function fillZero(item: InFlight): void {
  const { regions, starts, lengths } = item.arrays
  for (let i = 0; i < item.pieceCount; i++) {
    const start = starts[i]!
    regions[i]!.bytes.fill(0, start, start + lengths[i]!)
  }
}

export class NullDisk extends JsDisk {
  /** Not with `noFill`: then nothing but the ring is measured. */
  override readonly fillsReads: boolean

  /** @throws ERR_VBD_ARGUMENT for a size that no disk has */
  constructor(spec: SizedSpec, onClose: (disk: JsDisk) => void) {
    const { sizeBytes, sectorSize = 512, noFill = false } = spec
    checkDiskSize(sizeBytes, sectorSize)
    super(
      {
        sizeBytes,
        sectorSize,
        physicalSectorSize: sectorSize,
        readOnly: false,
        canFlush: true,
        canDiscard: true,
        canSecureDiscard: false,
        discardGranularity: sectorSize,
        discardAlignment: 0,
        description: `null(${sizeBytes} bytes${noFill ? ', reads leave buffers as they are' : ''})`,
      },
      onClose,
    )
    this.fillsReads = !noFill
  }

  openQueue(_vbd: string, onComplete: () => void): DiskQueue {
    return new NullQueue(this.fillsReads, onComplete)
  }

  protected resized(sizeBytes: number): DiskInfo {
    checkDiskSize(sizeBytes, this.info.sectorSize)
    return { ...this.info, sizeBytes }
  }

  protected shut(): void {}
}
