/**
 * Sizes, durations and virtual device numbers as people write them. Pure; depends on errors.ts alone.
 *
 * Device names follow xl: `libxl__device_disk_dev_number` and xen-vbd-interface(7).
 */
import { VbdError } from './errors.js'

/** Powers of 1024: `K`, `KiB`, ...; powers of 1000: `kB`, `KB`, `MB`, ... */
const SIZE_UNITS: ReadonlyMap<string, bigint> = new Map(
  ['', 'K', 'M', 'G', 'T', 'P'].flatMap((letter, power) => {
    const binary = 1024n ** BigInt(power)
    if (letter === '') return [['', 1n] as const, ['B', 1n] as const]
    return [
      [letter, binary] as const,
      [`${letter}IB`, binary] as const,
      [`${letter}B`, 1000n ** BigInt(power)] as const,
    ]
  }),
)

/**
 * A size in bytes. Strings are a decimal number and a unit: none or `B` (bytes), `K`/`KiB`, `M`/`MiB`, `G`/`GiB`,
 * `T`/`TiB`, `P`/`PiB` (powers of 1024), `KB`, `MB`, `GB`, `TB`, `PB` (powers of 1000); upper and lower case alike,
 * with or without a space. `'1.5TB'` is 1,500,000,000,000. Numbers and bigints are bytes.
 *
 * @returns a whole number of bytes, 0..2^53-1
 * @throws ERR_VBD_ARGUMENT for anything else
 */
export function parseSize(size: string | number | bigint): number {
  const bytes = typeof size === 'string' ? sizeFromText(size) : size
  if (typeof bytes === 'number' ? !Number.isSafeInteger(bytes) : bytes > Number.MAX_SAFE_INTEGER) {
    throw badSize(size, 'it is not a whole number of bytes below 2^53')
  }
  if (bytes < 0) throw badSize(size, 'it is negative')
  return Number(bytes)
}

function sizeFromText(text: string): bigint {
  const match = /^(\d{1,20})(?:\.(\d{1,15}))?\s?([a-z]{0,3})$/i.exec(text.trim())
  const unit = match ? SIZE_UNITS.get(match[3]!.toUpperCase()) : undefined
  if (!match || unit === undefined) throw badSize(text, 'it is not a number with a unit')
  const [, whole = '', fraction = ''] = match
  const scale = 10n ** BigInt(fraction.length)
  const scaled = BigInt(whole + fraction) * unit
  if (scaled % scale !== 0n) throw badSize(text, 'it is not a whole number of bytes')
  return scaled / scale
}

function badSize(size: string | number | bigint, why: string): VbdError {
  return new VbdError('ERR_VBD_ARGUMENT', `'${size}' is not a size: ${why}`, {
    remedy: 'write bytes, or a number with K, M, G, T or KiB, MiB, GiB, TiB, for example 10GiB',
  })
}

/**
 * Bytes for people, in powers of 1024 with at most two decimals: `10GiB`, `1.46TiB`, `512B`. `parseSize` reads it
 * back, exactly where no decimals were cut.
 */
export function formatSize(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  const rounded = Math.round(value * 100) / 100
  // Rounding may reach the next unit: 1023.999KiB is 1MiB.
  if (rounded >= 1024 && unit < units.length - 1) return `1${units[unit + 1]}`
  return `${rounded}${units[unit]}`
}

const DURATION_UNITS: ReadonlyMap<string, number> = new Map([
  ['us', 0.001],
  ['µs', 0.001],
  ['ms', 1],
  ['s', 1000],
  ['m', 60_000],
  ['h', 3_600_000],
])

/**
 * A duration in milliseconds. Strings need a unit: `us`, `ms`, `s`, `m` (minutes), `h`; `'1.5s'` is 1500. Numbers are
 * milliseconds.
 *
 * @returns a finite number, 0 or more
 * @throws ERR_VBD_ARGUMENT for anything else
 */
export function parseDuration(duration: string | number): number {
  if (typeof duration === 'number') {
    if (Number.isFinite(duration) && duration >= 0) return duration
    throw badDuration(duration)
  }
  const match = /^(\d{1,12}(?:\.\d{1,9})?)\s?(us|µs|ms|s|m|h)$/.exec(duration.trim())
  if (!match) throw badDuration(duration)
  const milliseconds = Number(match[1]) * DURATION_UNITS.get(match[2]!)!
  // 0.1s must be 100 and not 100.00000000000001.
  return Number(milliseconds.toPrecision(15))
}

function badDuration(duration: string | number): VbdError {
  return new VbdError('ERR_VBD_ARGUMENT', `'${duration}' is not a duration`, {
    remedy: 'write a number with us, ms, s, m or h, for example 100ms',
  })
}

/** Nanoseconds for people, three digits: `850ns`, `12.3µs`, `4.56ms`, `1.2s`. */
export function formatNanoseconds(nanoseconds: number): string {
  const units = ['ns', 'µs', 'ms', 's']
  let value = nanoseconds
  let unit = 0
  while (Number(value.toPrecision(3)) >= 1000 && unit < units.length - 1) {
    value /= 1000
    unit++
  }
  return `${value < 1000 ? Number(value.toPrecision(3)) : Math.round(value)}${units[unit]}`
}

/** A disk and partition of one of the kinds of names; partition 0 is the whole disk. */
interface VdevScheme {
  readonly prefix: string
  readonly disks: number
  readonly partitions: number
  number(disk: number, partition: number): number
}

const EXTENDED = 1 << 28

const SCHEMES: readonly VdevScheme[] = [
  {
    prefix: 'xvd',
    disks: 1 << 20,
    partitions: 256,
    number: (disk, partition) =>
      disk < 16 && partition < 16
        ? (202 << 8) | (disk << 4) | partition
        : EXTENDED | (disk << 8) | partition,
  },
  {
    prefix: 'sd',
    disks: 16,
    partitions: 16,
    number: (disk, partition) => (8 << 8) | (disk << 4) | partition,
  },
  {
    prefix: 'hd',
    disks: 4,
    partitions: 64,
    number: (disk, partition) => ((disk < 2 ? 3 : 22) << 8) | ((disk & 1) << 6) | partition,
  },
]

/** Largest number that xl takes for a device: 2^31-1. */
const MAX_VDEV = 0x7fff_ffff

/**
 * The device number of a virtual device: `xvda`, `xvdaa5`, `sdb`, `hda1`, `d0p1` (disk and partition), `51712` or
 * `0xca00`.
 *
 * @returns 0..2^31-1, for example 51712 for `xvda`
 * @throws ERR_VBD_ARGUMENT for names that xl refuses, and for numbers with leading zeros (xl reads those as octal)
 */
export function parseVdev(vdev: string | number): number {
  const number = vdevNumber(String(vdev))
  if (number !== undefined) return number
  throw new VbdError('ERR_VBD_ARGUMENT', `'${vdev}' is not a virtual device`, {
    remedy: 'write a name such as xvda, xvdb1, sda, hda or d0p1, or a number such as 51712',
  })
}

function vdevNumber(text: string): number | undefined {
  if (/^(0|[1-9]\d{0,9}|0x[0-9a-f]{1,8})$/i.test(text)) {
    const number = Number(text)
    return number <= MAX_VDEV ? number : undefined
  }
  const plain = /^d(0|[1-9]\d{0,6})p(0|[1-9]\d{0,2})$/.exec(text)
  if (plain) return schemeNumber(SCHEMES[0]!, Number(plain[1]), Number(plain[2]))

  const named = /^(xvd|sd|hd)([a-z]{1,5})([1-9]\d{0,2})?$/.exec(text)
  if (!named) return undefined
  const scheme = SCHEMES.find(({ prefix }) => prefix === named[1])!
  return schemeNumber(scheme, diskFromLetters(named[2]!), Number(named[3] ?? 0))
}

function schemeNumber(scheme: VdevScheme, disk: number, partition: number): number | undefined {
  if (disk >= scheme.disks || partition >= scheme.partitions) return undefined
  return scheme.number(disk, partition)
}

/** a..z, aa..zz, ...: 0..25, 26..701, ... */
function diskFromLetters(letters: string): number {
  let disk = -1
  for (const letter of letters) disk = (disk + 1) * 26 + (letter.charCodeAt(0) - 97)
  return disk
}

function lettersFromDisk(disk: number): string {
  const last = String.fromCharCode(97 + (disk % 26))
  return disk < 26 ? last : lettersFromDisk(Math.floor(disk / 26) - 1) + last
}

/** The name of a device number, `parseVdev` of which is the number again; numbers without a name stay numbers. */
export function formatVdev(devid: number): string {
  const name = vdevName(devid)
  return name !== undefined && vdevNumber(name) === devid ? name : String(devid)
}

function vdevName(devid: number): string | undefined {
  if (devid >= EXTENDED && devid < 2 * EXTENDED) {
    return diskName('xvd', (devid & 0x0fff_ffff) >> 8, devid & 0xff)
  }
  const major = devid >> 8
  const minor = devid & 0xff
  if (major === 202) return diskName('xvd', minor >> 4, minor & 15)
  if (major === 8) return diskName('sd', minor >> 4, minor & 15)
  if (major === 3) return diskName('hd', minor >> 6, minor & 63)
  if (major === 22) return diskName('hd', 2 + (minor >> 6), minor & 63)
  return undefined
}

function diskName(prefix: string, disk: number, partition: number): string {
  return `${prefix}${lettersFromDisk(disk)}${partition === 0 ? '' : partition}`
}

/** Domain ids of guests and dom0; 0x7FF0 and above have meanings of their own in Xen. */
export const MAX_DOMID = 0x7fef

/** Names one vbd: the guest's domain and the device in it. */
export interface VbdId {
  readonly domid: number
  readonly devid: number
}

/**
 * Reads `DOM:VDEV`, for example `1:xvda`, `7:51712`.
 *
 * @throws ERR_VBD_ARGUMENT for a domain outside 0..32751 or a device that `parseVdev` refuses
 */
export function parseVbdId(id: string): VbdId {
  const match = /^(0|[1-9]\d{0,4}):([^:]+)$/.exec(id)
  const domid = match ? Number(match[1]) : Number.NaN
  if (!match || domid > MAX_DOMID) {
    throw new VbdError('ERR_VBD_ARGUMENT', `'${id}' does not name a disk of a guest`, {
      remedy: 'write DOMAIN:DEVICE with the number of the domain, for example 1:xvda',
    })
  }
  return { domid, devid: parseVdev(match[2]!) }
}

/** `1:xvda` */
export function formatVbdId(id: VbdId): string {
  return `${id.domid}:${formatVdev(id.devid)}`
}
