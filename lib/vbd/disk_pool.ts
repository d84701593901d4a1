/**
 * DiskPool: the disks that are open, each once however many vbds serve it. Owns the engine's disks; a vbd holds a
 * lease and gives it back. Refuses to have one image written by one guest while another uses it, which no file system
 * survives.
 */
import type { Disk, DiskUse } from '../disk/disk.js'
import { reach } from '../disk/reach.js'
import type { DiskInfo, Engine, EngineDisk } from '../engine/engine.js'
import { VbdError } from '../errors.js'

interface Entry {
  readonly uses: readonly DiskUse[]
  readonly opened: Promise<EngineDisk>
  readonly leases: Set<Lease>
}

/** One vbd's hold on an open disk. */
export interface DiskLease {
  /** Nobody else has the disk. */
  readonly alone: boolean
  readonly vbd: string
  /** As it was asked for. */
  readonly disk: Disk
  readonly engineDisk: EngineDisk
  readonly info: DiskInfo
  /** Resizes the disk and tells every holder. */
  resize(sizeBytes: number): Promise<DiskInfo>
  /** Gives it back; the last one closes the disk. Idempotent. */
  release(): Promise<void>
}

/** The disks that an engine has open. */
export class DiskPool {
  readonly #engine: Engine
  readonly #entries = new Map<string, Entry>()
  #descriptions = new WeakMap<Disk, string>()
  #anonymous = 0

  constructor(engine: Engine) {
    this.#engine = engine
  }

  /**
   * Opens the disk, or shares the one that is open for the same description.
   *
   * @param onResize told of every change of size, whoever caused it
   * @param onError told of what fails in the disk's own functions, for this vbd's requests or for all
   * @throws ERR_VBD_BUSY when another vbd uses the image and one of the two may write; ERR_VBD_BACKING when it cannot
   *   be opened
   */
  async lease(
    disk: Disk,
    vbd: string,
    onResize: () => void,
    onError: (error: VbdError) => void = () => {},
  ): Promise<DiskLease> {
    await reach(disk.spec)
    disk.validate()
    this.#refuseConflict(disk, vbd)
    const name = this.#name(disk)
    let entry = this.#entries.get(name)
    if (entry === undefined) {
      const leases = new Set<Lease>()
      entry = { uses: disk.uses(), opened: this.#open(disk, leases), leases }
      this.#entries.set(name, entry)
    }
    const lease = new Lease(vbd, disk, entry, { onResize, onError }, () =>
      this.#entries.delete(name),
    )
    entry.leases.add(lease)
    try {
      await lease.open()
      return lease
    } catch (thrown) {
      entry.leases.delete(lease)
      if (entry.leases.size === 0) this.#entries.delete(name)
      throw thrown
    }
  }

  async #open(disk: Disk, leases: ReadonlySet<Lease>): Promise<EngineDisk> {
    const opened = await this.#engine.openDisk(disk.spec)
    opened.onError?.((error, vbd) => {
      for (const lease of leases) if (vbd === '' || vbd === lease.vbd) lease.told.onError(error)
    })
    return opened
  }

  /** Files by what they are and how they are opened; everything else by the description itself. */
  #name(disk: Disk): string {
    const identity = disk.identity()
    if (identity !== undefined) return `${identity} ${JSON.stringify(disk.spec)}`
    let name = this.#descriptions.get(disk)
    if (name === undefined) {
      name = `anonymous ${this.#anonymous++}`
      this.#descriptions.set(disk, name)
    }
    return name
  }

  #refuseConflict(disk: Disk, vbd: string): void {
    if (disk.shared) return
    for (const use of disk.uses()) {
      for (const entry of this.#entries.values()) {
        const theirs = entry.uses.filter(({ identity }) => identity === use.identity)
        if (!theirs.some(({ writes }) => writes || use.writes)) continue
        const other = [...entry.leases].find((lease) => lease.vbd !== vbd)
        if (other === undefined) continue
        throw new VbdError(
          'ERR_VBD_BUSY',
          `${disk.description} is served as ${other.vbd} already`,
          {
            vbd,
            path: use.path,
            remedy:
              'serve both read-only, or mark the disk as shared if a cluster file system is on it',
          },
        )
      }
    }
  }
}

interface Told {
  onResize(): void
  onError(error: VbdError): void
}

class Lease implements DiskLease {
  readonly vbd: string
  readonly disk: Disk
  readonly #entry: Entry
  readonly told: Told
  readonly #onLast: () => void
  #engineDisk: EngineDisk | undefined
  #released: Promise<void> | undefined

  constructor(vbd: string, disk: Disk, entry: Entry, told: Told, onLast: () => void) {
    this.vbd = vbd
    this.disk = disk
    this.#entry = entry
    this.told = told
    this.#onLast = onLast
  }

  async open(): Promise<void> {
    this.#engineDisk = await this.#entry.opened
  }

  get engineDisk(): EngineDisk {
    return this.#engineDisk!
  }

  get info(): DiskInfo {
    return this.engineDisk.info
  }

  get alone(): boolean {
    return this.#entry.leases.size === 1
  }

  async resize(sizeBytes: number): Promise<DiskInfo> {
    const info = await this.engineDisk.resize(sizeBytes)
    for (const lease of this.#entry.leases) lease.told.onResize()
    return info
  }

  release(): Promise<void> {
    this.#released ??= this.#release()
    return this.#released
  }

  async #release(): Promise<void> {
    const { leases } = this.#entry
    leases.delete(this)
    if (leases.size > 0) return
    this.#onLast()
    await this.engineDisk.close()
  }
}
