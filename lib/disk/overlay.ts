/**
 * Overlays: copy on write over a disk that is only read. A plain description; see disk.ts.
 */
import { resolve } from 'node:path'
import { VbdError } from '../errors.js'
import { parseSize } from '../units.js'
import { type Disk, type DiskFilter, type DiskUse, StagedDisk } from './disk.js'

export interface OverlayOptions {
  /**
   * The file that keeps what is written, made when there is none; it goes on where it was left, also after a crash.
   * Absent: in memory, and gone with the disk.
   */
  readonly scratch?: string
  /** Bytes that are taken over at a time, a power of two of 4KiB (default) to 1MiB. */
  readonly granularity?: string | number
}

/**
 * A disk that begins as `base` and keeps what is written elsewhere: many guests on one golden image. The base is opened
 * read-only, and must stay as it is for as long as overlays of it exist.
 *
 * @throws ERR_VBD_ARGUMENT for an empty path or a granularity that is none
 */
export function overlay(base: Disk, options: OverlayOptions = {}): Disk {
  return overlaid(options)(base)
}

/** `overlay` for `disk.with(...)`. */
export function overlaid(options: OverlayOptions = {}): DiskFilter {
  const granuleBytes = parseSize(options.granularity ?? 4096)
  if (!Number.isInteger(Math.log2(granuleBytes)) || granuleBytes < 4096 || granuleBytes > 1 << 20) {
    throw bad(`an overlay cannot have granules of ${granuleBytes} bytes`, 'give 4KiB to 1MiB')
  }
  if (options.scratch === '' || options.scratch?.includes('\0')) {
    throw bad('the path of the overlay is empty or holds a NUL', 'name a file')
  }
  const scratch = options.scratch === undefined ? undefined : resolve(options.scratch)
  return (base) => new OverlayDisk(base.asReadOnly(), scratch, granuleBytes, false)
}

class OverlayDisk extends StagedDisk {
  readonly #base: Disk
  readonly #scratch: string | undefined
  readonly #granuleBytes: number
  readonly #readOnly: boolean

  constructor(base: Disk, scratch: string | undefined, granuleBytes: number, readOnly: boolean) {
    super([base], {
      label: `overlay(${scratch ?? 'in memory'})`,
      spec: ([below]) => ({
        driver: 'overlay',
        base: below!,
        ...(scratch === undefined ? {} : { scratch }),
        granuleBytes,
        readOnly,
      }),
    })
    this.#base = base
    this.#scratch = scratch
    this.#granuleBytes = granuleBytes
    this.#readOnly = readOnly
  }

  /** Two guests that write one overlay are two guests that write one disk. */
  override get shared(): boolean {
    return false
  }

  /** The container by its path, which it has before there is one. */
  override identity(): string | undefined {
    const below = this.#base.identity()
    return this.#scratch === undefined || below === undefined
      ? undefined
      : `${below} + overlay ${this.#scratch}`
  }

  override uses(): readonly DiskUse[] {
    if (this.#scratch === undefined) return this.#base.uses()
    const identity = `overlay ${this.#scratch}`
    return [...this.#base.uses(), { identity, writes: !this.#readOnly, path: this.#scratch }]
  }

  override asReadOnly(): Disk {
    if (this.#readOnly || this.#scratch === undefined) return this
    return new OverlayDisk(this.#base, this.#scratch, this.#granuleBytes, true)
  }
}

function bad(message: string, remedy: string): VbdError {
  return new VbdError('ERR_VBD_ARGUMENT', message, { remedy })
}
