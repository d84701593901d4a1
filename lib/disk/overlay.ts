/**
 * Overlays: copy on write over a disk that is only read. A plain description; see disk.ts.
 */
import { resolve } from 'node:path'
import { VbdError } from '../errors.js'
import { parseSize } from '../units.js'
import { type Disk, type DiskFilter, type DiskUse, StagedDisk } from './disk.js'
import { type DiskSpec, mapStages, type OverlaySpec } from './spec.js'

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
  return (base) => new OverlayDisk(base, scratch, granuleBytes, false)
}

/** An overlay; see `overlay`. */
export class OverlayDisk extends StagedDisk {
  readonly #given: Disk
  readonly #base: Disk
  readonly #scratch: string | undefined
  readonly #granuleBytes: number
  readonly #readOnly: boolean

  /** @param given as it was given: it is opened without the right to write but for a commit */
  constructor(given: Disk, scratch: string | undefined, granuleBytes: number, readOnly: boolean) {
    const base = given.asReadOnly()
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
    this.#given = given
    this.#base = base
    this.#scratch = scratch
    this.#granuleBytes = granuleBytes
    this.#readOnly = readOnly
  }

  /** What `snapshot`, `reset` and `commit` need; undefined where there is nothing to change. */
  get changeable(): OverlaySpec | undefined {
    if (this.#readOnly || this.#scratch === undefined) return undefined
    return { ...(this.spec as OverlaySpec), base: this.#given.spec }
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
    return new OverlayDisk(this.#given, this.#scratch, this.#granuleBytes, true)
  }
}

/**
 * The overlay of a disk that is kept in a file and may be written, over its base as that was given.
 *
 * @throws ERR_VBD_UNSUPPORTED unless there is exactly one
 */
export function overlayOf(disk: Disk): OverlaySpec {
  const found: OverlaySpec[] = []
  const look = (each: Disk): void => {
    if (each instanceof OverlayDisk && each.changeable !== undefined) found.push(each.changeable)
    else if (each instanceof StagedDisk) each.bases.forEach(look)
  }
  look(disk)
  if (found.length === 1) return found[0]!
  const message =
    found.length === 0
      ? `${disk.description} has no overlay that is kept in a file`
      : `${disk.description} has several overlays`
  throw new VbdError('ERR_VBD_UNSUPPORTED', message, {
    remedy: 'serve overlay(disk, { scratch: FILE }), or with --filter overlay:FILE',
  })
}

/** The same disk with the layers that its overlays stand on; `layersOf` tells how many a scratch file has. */
export function withLayers(spec: DiskSpec, layersOf: (scratch: string) => number): DiskSpec {
  return mapStages(spec, (stage) => {
    if (stage.driver !== 'overlay' || stage.scratch === undefined) return stage
    const { scratch, granuleBytes } = stage
    let { base } = stage
    for (let i = 1; i <= layersOf(scratch); i++) {
      base = { driver: 'overlay', base, scratch: `${scratch}.${i}`, granuleBytes, readOnly: true }
    }
    return { ...stage, base }
  })
}

function bad(message: string, remedy: string): VbdError {
  return new VbdError('ERR_VBD_ARGUMENT', message, { remedy })
}
