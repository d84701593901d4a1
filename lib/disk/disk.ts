/**
 * Disk: the description of a disk, before anything is opened. Immutable and reusable; an engine opens what `spec` says.
 * Drivers make disks, filters make a disk of another: `file('a.img').with(throttle({ iops: 500 }))`.
 */
import type { DiskSpec } from './spec.js'

/** What two vbds may not have at once while one of them writes it. */
export interface DiskUse {
  /** Equal for two ways to name the same data: `file 8:4711`. */
  readonly identity: string
  readonly writes: boolean
  readonly path: string
}

/** A disk out of the disk below it. */
export type DiskFilter = (next: Disk) => Disk

/** The description of a disk. */
export interface Disk {
  readonly spec: DiskSpec
  /** May be served to more than one guest although one of them writes: for cluster file systems alone. */
  readonly shared: boolean
  /** One line for people: `file(/srv/a.raw)`. */
  readonly description: string
  /** What stands in `params` for toolstacks and people; no secrets. */
  readonly params: string
  /**
   * Looks whether the disk can be opened as described, without opening it.
   *
   * @throws ERR_VBD_BACKING naming the path and what to do, ERR_VBD_ARGUMENT for options out of range
   */
  validate(): void
  /**
   * What identifies the data, equal for two descriptions of the same file; undefined where every opening is a new
   * disk.
   */
  identity(): string | undefined
  /** Everything that it holds open and others may want: the files of the whole chain. */
  uses(): readonly DiskUse[]
  /** The same disk, to be opened without the right to write where its driver can do that. */
  asReadOnly(): Disk
  /** This disk behind filters: the first is nearest to it, the last is what a guest meets. */
  with(...filters: readonly DiskFilter[]): Disk
}

/** What every disk has alike. */
export abstract class DescribedDisk implements Disk {
  abstract readonly spec: DiskSpec
  abstract readonly shared: boolean
  abstract readonly description: string
  abstract readonly params: string
  abstract validate(): void
  abstract identity(): string | undefined
  abstract uses(): readonly DiskUse[]
  abstract asReadOnly(): Disk

  with(...filters: readonly DiskFilter[]): Disk {
    return filters.reduce<Disk>((disk, filter) => filter(disk), this)
  }
}

/** How a stage stands on its disks. */
export interface Stage {
  /** The spec, from those of the disks below. */
  spec(bases: readonly DiskSpec[]): DiskSpec
  /** What it does, for people, without the disks below: `slice(1MiB at 512B)`. */
  readonly label: string
  /** More than the disks below check. */
  validate?(): void
}

/** A disk made of one or several others; what it does not say is theirs. */
export class StagedDisk extends DescribedDisk {
  readonly bases: readonly Disk[]
  readonly #stage: Stage
  #spec: DiskSpec | undefined

  constructor(bases: readonly Disk[], stage: Stage) {
    super()
    this.bases = bases
    this.#stage = stage
  }

  get spec(): DiskSpec {
    this.#spec ??= Object.freeze(this.#stage.spec(this.bases.map(({ spec }) => spec)))
    return this.#spec
  }

  get shared(): boolean {
    return this.bases.every(({ shared }) => shared)
  }

  get description(): string {
    return `${this.bases.map(({ description }) => description).join(' + ')} → ${this.#stage.label}`
  }

  get params(): string {
    return this.bases[0]!.params
  }

  validate(): void {
    for (const base of this.bases) base.validate()
    this.#stage.validate?.()
  }

  identity(): string | undefined {
    const identities = this.bases.map((base) => base.identity())
    return identities.includes(undefined) ? undefined : identities.join(' + ')
  }

  uses(): readonly DiskUse[] {
    return this.bases.flatMap((base) => base.uses())
  }

  asReadOnly(): Disk {
    const bases = this.bases.map((base) => base.asReadOnly())
    const same = bases.every((base, i) => base === this.bases[i])
    return same ? this : new StagedDisk(bases, this.#stage)
  }
}
