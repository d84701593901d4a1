/**
 * The drivers of native disks: files and block devices, memory, zeroes, and nothing at all. Plain descriptions; see
 * disk.ts.
 */
import { accessSync, constants, type Stats, statSync } from 'node:fs'
import { resolve } from 'node:path'
import { VbdError } from '../errors.js'
import { formatSize, parseSize } from '../units.js'
import { DescribedDisk, type Disk, type DiskUse } from './disk.js'
import type { FileSpec, PatternSpec, SizedSpec } from './spec.js'

export interface FileOptions {
  /** Open without the right to write. */
  readonly readOnly?: boolean
  /** Past the page cache (O_DIRECT): `auto` (default) where the file's alignment allows the sector size. */
  readonly direct?: boolean | 'auto'
  /** `auto` (default): io_uring, or a pool of threads where the kernel forbids it. */
  readonly io?: 'auto' | 'uring' | 'sync'
  /** Logical sector size in bytes: 512 (default), which every guest understands, or 4096. */
  readonly sectorSize?: 512 | 4096
  /** Answer each write only when it is on stable storage. */
  readonly writeThrough?: boolean
  /** Allow several guests at once although one of them writes. */
  readonly shared?: boolean
}

export interface SizedOptions {
  /** Logical sector size in bytes: 512 (default) or 4096. */
  readonly sectorSize?: 512 | 4096
}

/**
 * A raw image file or a block device. The image is never probed for another format.
 *
 * @param path of a file or block device; relative ones are taken from the present working directory, now
 * @throws ERR_VBD_ARGUMENT for an empty path or an option out of range
 */
export function file(path: string, options: FileOptions = {}): Disk {
  if (path === '' || path.includes('\0')) {
    throw new VbdError('ERR_VBD_ARGUMENT', 'the path of the image is empty or holds a NUL', {
      remedy: 'name an image file or a block device',
    })
  }
  const { sectorSize = 512, shared = false, ...rest } = options
  checkSectorSize(sectorSize)
  return new FileDisk({ driver: 'file', path: resolve(path), sectorSize, ...rest }, shared)
}

/**
 * A disk in memory, zeroes at first, gone when it is closed.
 *
 * @param size as `parseSize` takes it, a multiple of the sector size above 0
 * @throws ERR_VBD_ARGUMENT
 */
export function memory(size: string | number | bigint, options: SizedOptions = {}): Disk {
  return new SizedDisk({ driver: 'memory', ...sized(size, options) })
}

export interface NullOptions extends SizedOptions {
  /** Reads leave the guest's pages as they are: nothing but the ring is measured then. */
  readonly noFill?: boolean
}

/**
 * A disk that reads as zeroes and forgets what is written: for measurements.
 *
 * @param size as `parseSize` takes it, a multiple of the sector size above 0
 * @throws ERR_VBD_ARGUMENT
 */
export function nullDisk(size: string | number | bigint, options: NullOptions = {}): Disk {
  const { noFill = false } = options
  return new SizedDisk({ driver: 'null', ...sized(size, options), ...(noFill && { noFill }) })
}

/**
 * A disk of zeroes that refuses to forget: a write of anything but zeroes is answered with an error. A blank base for
 * overlays, of any size.
 *
 * @param size as `parseSize` takes it, a multiple of the sector size above 0
 * @throws ERR_VBD_ARGUMENT
 */
export function zero(size: string | number | bigint, options: SizedOptions = {}): Disk {
  return new SizedDisk({ driver: 'zero', ...sized(size, options) })
}

/** Options of `pattern`. */
export interface PatternOptions extends SizedOptions {
  /** A whole number; equal seeds make equal disks. 0 by default. */
  readonly seed?: number
}

/**
 * A disk whose every byte follows from its place and a seed. It keeps nothing: a write is compared with what the disk
 * holds anyway, and is an error where it differs.
 *
 * @param size as `parseSize` takes it, a multiple of the sector size above 0
 * @throws ERR_VBD_ARGUMENT
 */
export function pattern(size: string | number | bigint, options: PatternOptions = {}): Disk {
  const { seed = 0 } = options
  if (!Number.isSafeInteger(seed) || seed < 0) {
    throw new VbdError('ERR_VBD_ARGUMENT', `seed cannot be ${seed}`, {
      remedy: 'give a whole number of 0 or more',
    })
  }
  return new SizedDisk({ driver: 'pattern', ...sized(size, options), seed })
}

function sized(size: string | number | bigint, options: SizedOptions) {
  const { sectorSize = 512 } = options
  checkSectorSize(sectorSize)
  const sizeBytes = parseSize(size)
  if (sizeBytes === 0 || sizeBytes % sectorSize !== 0) {
    throw new VbdError('ERR_VBD_ARGUMENT', `a disk cannot have ${sizeBytes} bytes`, {
      remedy: `give a size above 0 that is a multiple of ${sectorSize} bytes`,
    })
  }
  return { sizeBytes, sectorSize }
}

function checkSectorSize(sectorSize: number): void {
  if (sectorSize === 512 || sectorSize === 4096) return
  throw new VbdError('ERR_VBD_ARGUMENT', `sectorSize cannot be ${sectorSize}`, {
    remedy: 'give sectorSize 512 or 4096',
  })
}

class SizedDisk extends DescribedDisk {
  readonly shared = true
  readonly spec: SizedSpec | PatternSpec

  constructor(spec: SizedSpec | PatternSpec) {
    super()
    this.spec = Object.freeze(spec)
  }

  get description(): string {
    return `${this.spec.driver}(${formatSize(this.spec.sizeBytes)})`
  }

  get params(): string {
    return `${this.spec.driver}:${this.spec.sizeBytes}`
  }

  /** Its options were checked when it was made. */
  validate(): void {}

  identity(): undefined {
    return undefined
  }

  uses(): readonly DiskUse[] {
    return []
  }

  /** The engine refuses writes to it all the same. */
  asReadOnly(): Disk {
    return this
  }
}

class FileDisk extends DescribedDisk {
  readonly shared: boolean
  readonly spec: FileSpec

  constructor(spec: FileSpec, shared: boolean) {
    super()
    this.spec = Object.freeze(spec)
    this.shared = shared
  }

  get description(): string {
    return `file(${this.spec.path})`
  }

  get params(): string {
    return `aio:${this.spec.path}`
  }

  validate(): void {
    const { path, readOnly } = this.spec
    const stats = this.#stat()
    if (stats.isDirectory()) throw this.#unusable('is a directory', NAME_ANOTHER)
    if (!stats.isFile() && !stats.isBlockDevice()) {
      throw this.#unusable('is neither a file nor a block device', NAME_ANOTHER)
    }
    if (stats.isFile()) this.#checkLength(stats.size)
    try {
      accessSync(path, readOnly ? constants.R_OK : constants.R_OK | constants.W_OK)
    } catch (cause) {
      const wish = readOnly ? 'read' : 'written'
      throw this.#unusable(
        `cannot be ${wish}`,
        readOnly ? 'run as a user who may read it' : 'serve it read-only, or make it writable',
        cause,
      )
    }
  }

  identity(): string | undefined {
    try {
      const stats = statSync(this.spec.path)
      return stats.isBlockDevice() ? `device ${stats.rdev}` : `file ${stats.dev}:${stats.ino}`
    } catch {
      return undefined
    }
  }

  uses(): readonly DiskUse[] {
    const identity = this.identity()
    const { path, readOnly = false } = this.spec
    return identity === undefined ? [] : [{ identity, writes: !readOnly, path }]
  }

  asReadOnly(): Disk {
    return this.spec.readOnly ? this : new FileDisk({ ...this.spec, readOnly: true }, this.shared)
  }

  #stat(): Stats {
    try {
      return statSync(this.spec.path)
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException
      throw code === 'ENOENT' || code === 'ENOTDIR'
        ? this.#unusable(
            'does not exist',
            'check the path, or make one with `truncate -s 10G`',
            cause,
          )
        : this.#unusable(
            `cannot be looked at (${code})`,
            'check the path and its permissions',
            cause,
          )
    }
  }

  #checkLength(bytes: number): void {
    const { sectorSize = 512 } = this.spec
    if (bytes === 0) throw this.#unusable('is empty', 'give it a size with `truncate -s 10G`')
    if (bytes % sectorSize !== 0) {
      const remedy = `extend it with \`truncate -s %${sectorSize}\``
      throw this.#unusable(`has ${bytes} bytes, not a multiple of ${sectorSize}`, remedy)
    }
  }

  #unusable(why: string, remedy: string, cause?: unknown): VbdError {
    const { path } = this.spec
    return new VbdError('ERR_VBD_BACKING', `${path} ${why}`, { path, remedy, cause })
  }
}

const NAME_ANOTHER = 'name an image file or a block device'
