/**
 * Swap: whether another disk may take the place of the one that a guest has. What the guest was told when it connected
 * holds for as long as it stays, but for the size, which it can be told again. Pure.
 */
import type { DiskInfo, VbdFeatures } from '../engine/engine.js'
import { VbdError } from '../errors.js'

export interface SwapOptions {
  /** Allow the new disk to be smaller than the one before: the guest loses what lies beyond its end. */
  readonly shrink?: boolean
}

/**
 * @param features what was offered, if anything has been
 * @throws ERR_VBD_ARGUMENT with what the new disk lacks
 */
export function checkSwap(
  vbd: string,
  before: DiskInfo,
  after: DiskInfo,
  features: VbdFeatures | undefined,
  { shrink = false }: SwapOptions,
): void {
  const lacking = lacks(before, after, features)
  if (lacking !== undefined) {
    throw new VbdError(
      'ERR_VBD_ARGUMENT',
      `${after.description} ${lacking}, as the guest was told`,
      {
        vbd,
        remedy: 'swap in a disk that can, or detach this one and serve the other anew',
      },
    )
  }
  if (after.sizeBytes < before.sizeBytes && !shrink) {
    const message = `${after.description} has ${after.sizeBytes} bytes, fewer than ${before.sizeBytes}`
    throw new VbdError('ERR_VBD_ARGUMENT', message, {
      vbd,
      remedy: 'the guest would lose its end; ask for it with the option shrink',
    })
  }
}

/** @throws ERR_VBD_STATE where a guest would find other data under it, unless it is forced */
export function checkReset(vbd: string, connected: boolean, force: boolean): void {
  if (!connected || force) return
  throw new VbdError('ERR_VBD_STATE', `a guest uses ${vbd}, and would find other data under it`, {
    vbd,
    remedy: 'have it detach the disk or shut down first, or ask for it with force',
  })
}

function lacks(
  before: DiskInfo,
  after: DiskInfo,
  features: VbdFeatures | undefined,
): string | undefined {
  if (after.sectorSize !== before.sectorSize) {
    return `has sectors of ${after.sectorSize} bytes, not of ${before.sectorSize}`
  }
  if (features === undefined) return undefined
  if (after.readOnly && features.readOnly !== true) return 'cannot be written'
  if (features.flush && !after.canFlush) return 'cannot be flushed'
  if (features.discard && !after.canDiscard) return 'cannot discard'
  if (features.secureDiscard && !after.canSecureDiscard) return 'cannot discard securely'
  return undefined
}
