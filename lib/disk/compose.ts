/**
 * Disks that are parts of another disk, or several in a row. Plain descriptions; see disk.ts.
 */
import { VbdError } from '../errors.js'
import { formatSize, parseSize } from '../units.js'
import { type Disk, type DiskFilter, StagedDisk } from './disk.js'

export interface SliceOptions {
  /** Where it begins in the disk below, in bytes or as `parseSize` takes it. 0 by default. */
  readonly offset?: string | number | bigint
  /** How long it is; to the end of the disk below by default, and then it grows with it. */
  readonly length?: string | number | bigint
}

/**
 * A part of another disk. Offset and length are multiples of its sector size.
 *
 * @throws ERR_VBD_ARGUMENT for a length of 0, or what is no multiple of 512
 */
export function slice(base: Disk, options: SliceOptions = {}): Disk {
  const offsetBytes = sectors('offset', parseSize(options.offset ?? 0))
  const lengthBytes =
    options.length === undefined ? undefined : sectors('length', parseSize(options.length))
  if (lengthBytes === 0) throw bad('the length of a slice is 0', 'give a length above 0')
  const length = lengthBytes === undefined ? '' : `${formatSize(lengthBytes)} `
  return new StagedDisk([base], {
    label: `slice(${length}at ${formatSize(offsetBytes)})`,
    spec: ([below]) => ({
      driver: 'slice',
      base: below!,
      offsetBytes,
      ...(lengthBytes === undefined ? {} : { lengthBytes }),
    }),
  })
}

/** `slice` for `disk.with(...)`. */
export function sliced(options: SliceOptions): DiskFilter {
  return (base) => slice(base, options)
}

function sectors(what: string, bytes: number): number {
  if (bytes % 512 === 0) return bytes
  throw bad(
    `the ${what} of a slice is ${bytes} bytes, which is no multiple of 512`,
    `give a ${what} in whole sectors of the disk`,
  )
}

function bad(message: string, remedy: string): VbdError {
  return new VbdError('ERR_VBD_ARGUMENT', message, { remedy })
}
