/**
 * Backing: what a vbd stands on, its lease of the disk and the engine's vbd on it. Knows when they have to be made
 * anew, and lets go of them in the right order. Owned by one Lifecycle, used by one step at a time.
 */
import type { Disk } from '../disk/disk.js'
import type { DiskInfo, Engine, EngineEvent, EngineVbd, Tunables } from '../engine/engine.js'
import {
  type Advertisement,
  advertise,
  makeOffer,
  type Offer,
  type ToolstackKeys,
} from './advertise.js'
import type { DiskLease, DiskPool } from './disk_pool.js'
import type { ResolvedVbdOptions } from './options.js'

export interface BackingOptions {
  /** `1:xvda` */
  readonly name: string
  readonly engine: Engine
  readonly disks: DiskPool
  readonly disk: Disk
  readonly options: ResolvedVbdOptions
  readonly tunables: Tunables
  readonly onEvent: (event: EngineEvent) => void
  /** The disk has another size. */
  readonly onResize: (info: DiskInfo) => void
}

/** The disk and the engine's vbd behind one Lifecycle. */
export class Backing {
  readonly #o: BackingOptions
  readonly #readOnlyDisk: Disk
  #tunables: Tunables
  #lease: DiskLease | undefined
  #vbd: EngineVbd | undefined
  #vbdKey = ''
  #closed: Promise<void> | undefined

  constructor(options: BackingOptions) {
    this.#o = options
    this.#readOnlyDisk = options.disk.asReadOnly()
    this.#tunables = options.tunables
  }

  /** Of the open disk. */
  get info(): DiskInfo | undefined {
    return this.#lease?.info
  }

  get vbd(): EngineVbd | undefined {
    return this.#vbd
  }

  /** Opens the disk, or opens it anew where it is open with the other right. */
  async open(readOnly: boolean): Promise<DiskInfo> {
    const disk = readOnly ? this.#readOnlyDisk : this.#o.disk
    if (this.#lease !== undefined && this.#lease.disk === disk) return this.#lease.info
    const { disks, name, onResize } = this.#o
    const lease = await disks.lease(disk, name, () => onResize(lease.info))
    await this.#dropVbd()
    await this.#lease?.release()
    this.#lease = lease
    return lease.info
  }

  /** Makes ready what these keys of the toolstack ask for. No ring may be attached. */
  async prepare(readOnly: boolean, keys: ToolstackKeys): Promise<Offer> {
    const info = await this.open(readOnly)
    const offer = makeOffer(info, this.#o.options, keys)
    // A new one only where the features differ: its counters begin at nothing.
    const key = JSON.stringify(offer.features)
    if (this.#vbd === undefined || this.#vbdKey !== key) {
      await this.#dropVbd()
      this.#vbd = this.#o.engine.createVbd({
        name: this.#o.name,
        disk: this.#lease!.engineDisk,
        features: offer.features,
        tunables: this.#tunables,
        onEvent: this.#o.onEvent,
      })
      this.#vbdKey = key
    }
    return offer
  }

  /** The keys for the disk as it is now. */
  advertise(offer: Offer): Advertisement {
    return advertise(this.#lease!.info, offer)
  }

  tune(tunables: Partial<Tunables>): void {
    this.#tunables = { ...this.#tunables, ...tunables }
    this.#vbd?.tune(tunables)
  }

  resize(sizeBytes: number): Promise<DiskInfo> {
    return this.#lease!.resize(sizeBytes)
  }

  /** Lets go of guest and disk. Idempotent; the disk is given back even where the engine fails. */
  close(): Promise<void> {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #close(): Promise<void> {
    try {
      // Kept, so that its last counters can still be read.
      await this.#vbd?.close()
    } finally {
      await this.#lease?.release()
    }
  }

  async #dropVbd(): Promise<void> {
    const vbd = this.#vbd
    this.#vbd = undefined
    await vbd?.close()
  }
}
