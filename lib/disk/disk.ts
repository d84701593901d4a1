/**
 * Disk: the description of a disk, before anything is opened. Immutable and reusable; an engine opens what `spec` says.
 */

/** A native disk, as drivers describe it. */
export type DiskSpec =
  | {
      readonly driver: 'file'
      readonly path: string
      readonly readOnly?: boolean
      /** O_DIRECT: `auto` uses it where the file's alignment allows 512-byte sectors. */
      readonly direct?: boolean | 'auto'
      readonly io?: 'auto' | 'uring' | 'sync'
      /** 512 (default) or 4096. */
      readonly sectorSize?: number
      /** Answer each write only when it is on stable storage. */
      readonly writeThrough?: boolean
    }
  | { readonly driver: 'memory'; readonly sizeBytes: number; readonly sectorSize?: number }
  | { readonly driver: 'null'; readonly sizeBytes: number; readonly sectorSize?: number }

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
  /** The same disk, to be opened without the right to write where its driver can do that. */
  asReadOnly(): Disk
}
