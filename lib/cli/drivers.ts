/** DRIVER [ARG]: which disk a command line means. */
import { existsSync, statSync } from 'node:fs'
import { resolve } from 'node:path'
import { type DriverWords, parseParams } from '../daemon/params.js'
import { concat } from '../disk/compose.js'
import { defineDisk } from '../disk/define.js'
import type { Disk, DiskFilter } from '../disk/disk.js'
import { type FileOptions, file, memory, nullDisk, pattern, zero } from '../disk/drivers.js'
import { isDiskFile, loadDisk } from '../disk/load.js'
import { reach } from '../disk/reach.js'
import { VbdError } from '../errors.js'
import { DRIVERS } from './disk_words.js'

export interface DriverOptions {
  readonly readOnly?: true
  readonly direct?: 'auto' | 'on' | 'off'
  readonly io?: 'auto' | 'uring' | 'sync'
  readonly sectorSize?: string
  readonly writeThrough?: true
  readonly shared?: true
  /** The first is nearest to the disk. */
  readonly filter?: readonly DiskFilter[]
}

/**
 * The disk, behind its filters.
 *
 * @throws ERR_VBD_ARGUMENT for another driver or argument, ERR_VBD_BACKING for a file that cannot be used
 */
export async function diskOf(
  driver: string,
  args: readonly string[],
  options: DriverOptions,
): Promise<Disk> {
  const disk = bareDisk(driver, args, options).with(...(options.filter ?? []))
  await reach(disk.spec)
  for (const { path, writes } of disk.uses()) if (writes) refuseMarkedReadOnly(path)
  disk.validate()
  return disk
}

function bareDisk(driver: string, args: readonly string[], options: DriverOptions): Disk {
  const sectorSize = options.sectorSize === '4096' ? 4096 : 512
  const image = (path: string) => file(path, { ...fileOptions(options), sectorSize })
  switch (driver) {
    case 'file':
      return image(only(driver, args, 'the path of an image or block device'))
    case 'concat':
      return concat(...args.map(image))
    case 'memory':
      return memory(only(driver, args, 'a size'), { sectorSize })
    case 'zero':
      return zero(only(driver, args, 'a size'), { sectorSize })
    case 'pattern': {
      const [size, seed] = args
      if (seed === undefined) return pattern(only(driver, args, 'a size'), { sectorSize })
      return pattern(size!, { sectorSize, seed: Number(only(driver, args.slice(1), 'one seed')) })
    }
    case 'null':
      return nullDisk(only(driver, args, 'a size'), { sectorSize })
    default:
      throw new VbdError('ERR_VBD_ARGUMENT', `there is no driver '${driver}'`, {
        remedy: `use one of: ${DRIVERS}`,
      })
  }
}

/**
 * The disk that a command line means, which may be a module.
 *
 * @throws as `diskOf`; ERR_VBD_BACKING for a module that cannot be used
 */
export async function loadDiskOf(
  driver: string,
  args: readonly string[],
  options: DriverOptions & { readonly ownThread?: boolean },
): Promise<Disk> {
  if (!isDiskFile(driver)) return diskOf(driver, args, options)
  const path = resolve(driver)
  if (!existsSync(path)) {
    throw new VbdError('ERR_VBD_BACKING', `${path} does not exist`, {
      path,
      remedy: 'check the path, or write a disk with `vbdkit init`',
    })
  }
  const given = pairs(args)
  if (options.ownThread === true) return defineDisk({ module: path, options: given })
  const disk = await loadDisk(path, given)
  disk.validate()
  return disk
}

/**
 * The disk that `params` name, as a toolstack and `vbdkit swap` send them. One that is a program has a thread of its
 * own: it may be busy, and others must not wait for it.
 *
 * @throws as `loadDiskOf`
 */
export function diskNamed(driver: string, argument: string, words: DriverWords): Promise<Disk> {
  return driver === 'script'
    ? loadDiskOf(argument, [], { ...words, ownThread: true })
    : loadDiskOf(driver, [argument], words)
}

/**
 * The same from their text.
 *
 * @throws as `loadDiskOf` and `parseParams`
 */
export function diskOfParams(params: string): Promise<Disk> {
  const { driver, argument, words } = parseParams(params)
  return diskNamed(driver, argument, words)
}

/** KEY=VALUE words as an object. */
function pairs(args: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    args.map((arg) => {
      const [, key, value] = /^([A-Za-z_]\w*)=(.*)$/s.exec(arg) ?? []
      if (key !== undefined && value !== undefined) return [key, value]
      throw new VbdError('ERR_VBD_ARGUMENT', `'${arg}' is no option of a disk`, {
        remedy: 'write KEY=VALUE for each option that its module takes',
      })
    }),
  )
}

function fileOptions({ readOnly, direct, io, writeThrough, shared }: DriverOptions): FileOptions {
  return {
    ...(readOnly === undefined ? {} : { readOnly }),
    ...(direct === undefined ? {} : { direct: direct === 'auto' ? 'auto' : direct === 'on' }),
    ...(io === undefined ? {} : { io }),
    ...(writeThrough === undefined ? {} : { writeThrough }),
    ...(shared === undefined ? {} : { shared }),
  }
}

/** The one argument of a driver. */
function only(driver: string, args: readonly string[], what: string): string {
  const [arg] = args
  if (arg === undefined || args.length > 1) {
    const message =
      arg === undefined
        ? `${driver} needs ${what}`
        : `${driver} takes one argument, not ${args.length}`
    throw new VbdError('ERR_VBD_ARGUMENT', message, { remedy: `write: ${DRIVERS}` })
  }
  return arg
}

/** Root may write to any file, and still means it when nobody has the right to. */
function refuseMarkedReadOnly(path: string): void {
  const stats = statSync(path, { throwIfNoEntry: false })
  if (stats === undefined || !stats.isFile() || (stats.mode & 0o222) !== 0) return
  throw new VbdError('ERR_VBD_BACKING', `${path} is a read-only file`, {
    path,
    remedy: 'serve it with --read-only, or make it writable with chmod u+w',
  })
}
