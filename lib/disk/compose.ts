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
  return sliced(options)(base)
}

/** `slice` for `disk.with(...)`. */
export function sliced(options: SliceOptions = {}): DiskFilter {
  const offsetBytes = sectors('offset', parseSize(options.offset ?? 0))
  const lengthBytes =
    options.length === undefined ? undefined : sectors('length', parseSize(options.length))
  if (lengthBytes === 0) throw bad('the length of a slice is 0', 'give a length above 0')
  const length = lengthBytes === undefined ? '' : `${formatSize(lengthBytes)} `
  return (base) =>
    new StagedDisk([base], {
      label: `slice(${length}at ${formatSize(offsetBytes)})`,
      spec: ([below]) => ({
        driver: 'slice',
        base: below!,
        offsetBytes,
        ...(lengthBytes === undefined ? {} : { lengthBytes }),
      }),
    })
}

/**
 * Several disks in a row, as one. They have one sector size; what one of them cannot do is not offered. Only the last
 * one can be resized.
 *
 * @throws ERR_VBD_ARGUMENT for fewer than two disks
 */
export function concat(...disks: readonly Disk[]): Disk {
  if (disks.length < 2) {
    throw bad('a concatenation has at least two disks', 'give two disks or more')
  }
  return new StagedDisk(disks, {
    label: 'concat',
    spec: (parts) => ({ driver: 'concat', parts }),
  })
}

/**
 * Partition `number` of a disk, by the MBR or GPT that is on it when it is opened. Numbers are those of Linux: from 1,
 * logical partitions of an MBR from 5.
 *
 * @throws ERR_VBD_ARGUMENT for what is no number of a partition; what the table says is found at opening
 */
export function partition(base: Disk, number: number): Disk {
  return partitioned(number)(base)
}

/** `partition` for `disk.with(...)`. */
export function partitioned(number: number): DiskFilter {
  if (!Number.isInteger(number) || number < 1 || number > 128) {
    throw bad(`a partition cannot have the number ${number}`, 'give 1 to 128')
  }
  return (base) =>
    new StagedDisk([base], {
      label: `partition(${number})`,
      spec: ([below]) => ({ driver: 'partition', base: below!, number }),
    })
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
