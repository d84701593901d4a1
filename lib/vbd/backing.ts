/**
 * Backing: what a vbd stands on, its lease of the disk and the engine's vbd on it. Knows when they have to be made
 * anew, and lets go of them in the right order. Owned by one Lifecycle, whose steps come one at a time; pausing and
 * swapping come whenever an operator likes, and take turns with them here.
 *
 * Paused, the engine holds nothing of a connected guest: what was taken is answered, the rings stay as they are, and
 * the engine takes them up again where it left them. To the guest it is a slow disk.
 */
import type { Disk } from '../disk/disk.js'
import { overlayOf } from '../disk/overlay.js'
import { holdsBack } from '../disk/spec.js'
import type {
  Connection,
  DiskInfo,
  DiskSpec,
  Engine,
  EngineDisk,
  EngineEvent,
  EngineVbd,
  OverlayAct,
  Transfer,
  Tunables,
} from '../engine/engine.js'
import { toVbdError, VbdError } from '../errors.js'
import {
  type Advertisement,
  advertise,
  makeOffer,
  type Offer,
  type ToolstackKeys,
} from './advertise.js'
import type { DiskLease, DiskPool } from './disk_pool.js'
import { withJournal } from './journal.js'
import type { ResolvedVbdOptions } from './options.js'
import { checkSwap, type SwapOptions } from './swap.js'

export interface BackingOptions {
  /** `1:xvda` */
  readonly name: string
  readonly engine: Engine
  readonly disks: DiskPool
  readonly disk: Disk
  readonly options: ResolvedVbdOptions
  readonly tunables: Tunables
  /** Where its rings' journals are (journal.ts); by default there are none. */
  readonly journal?: string
  readonly onEvent: (event: EngineEvent) => void
  /** The disk has another size. */
  readonly onResize: (info: DiskInfo) => void
  /** A function of the disk's failed. */
  readonly onDiskError: (error: VbdError) => void
}

/** The disk and the engine's vbd behind one Lifecycle. */
export class Backing {
  readonly #o: BackingOptions
  #disk: Disk
  #readOnlyDisk: Disk
  #readOnly = false
  #tunables: Tunables
  #lease: DiskLease | undefined
  #vbd: EngineVbd | undefined
  #vbdKey = ''
  #offer: Offer | undefined
  /** Of the guest that is connected, whether its rings are attached now or set aside. */
  #connection: Connection | undefined
  /** While paused: ends the pause. */
  #pause: { readonly ended: Promise<void>; end(): void } | undefined
  /** The engine has said that these rings cannot be taken up again where they are; its last word is disconnect. */
  #stuck = false
  #turn: Promise<unknown> = Promise.resolve()
  #closed: Promise<void> | undefined

  constructor(options: BackingOptions) {
    this.#o = options
    this.#disk = options.disk
    this.#readOnlyDisk = options.disk.asReadOnly()
    this.#tunables = options.tunables
  }

  /**
   * What is taken of connected rings is noted: see journal.ts. Not with a shared image: there is no lock that would
   * keep the next process away while the kernel still writes for the dead one.
   */
  get journaled(): boolean {
    const { shared } = this.#lease?.disk ?? this.#disk
    return this.#o.journal !== undefined && this.#o.engine.kind === 'native' && !shared
  }

  #withJournal(connection: Connection): Connection {
    return withJournal(connection, this.journaled ? this.#o.journal : undefined)
  }

  /** It has let go of its disk, or does so now. */
  get closed(): boolean {
    return this.#closed !== undefined
  }

  get paused(): boolean {
    return this.#pause !== undefined
  }

  /** Of the open disk. */
  get info(): DiskInfo | undefined {
    return this.#lease?.info
  }

  /** Of the disk, as it is open or would be. */
  get spec(): DiskSpec {
    return (this.#lease?.disk ?? this.#disk).spec
  }

  /** The open disk itself. */
  get disk(): EngineDisk | undefined {
    return this.#lease?.engineDisk
  }

  get vbd(): EngineVbd | undefined {
    return this.#vbd
  }

  /** Opens the disk, or opens it anew where it is open with the other right. */
  open(readOnly: boolean): Promise<DiskInfo> {
    return this.#inTurn(() => this.#open(readOnly))
  }

  /** Makes ready what these keys of the toolstack ask for. No ring may be attached. */
  prepare(readOnly: boolean, keys: ToolstackKeys): Promise<Offer> {
    return this.#inTurn(() => this.#prepare(readOnly, keys))
  }

  async #open(readOnly: boolean): Promise<DiskInfo> {
    this.#readOnly = readOnly
    const disk = readOnly ? this.#readOnlyDisk : this.#disk
    const lent = this.#lease
    // A disk that nobody can write is as good as one that is opened without the right to.
    if (lent?.disk === disk || (readOnly && lent?.info.readOnly)) return lent.info
    const lease = await this.#takeLease(disk)
    await this.#dropVbd()
    this.#lease = lease
    await lent?.release()
    return lease.info
  }

  async #prepare(readOnly: boolean, keys: ToolstackKeys): Promise<Offer> {
    const info = await this.#open(readOnly)
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
        onEvent: (event) => {
          this.#stuck = true
          this.#o.onEvent(event)
        },
      })
      this.#vbdKey = key
    }
    this.#offer = offer
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

  /** As `EngineVbd.connect`; waits while paused. */
  async connect(connection: Connection): Promise<{ transfer: Transfer }> {
    for (;;) {
      while (this.#pause !== undefined) await this.#pause.ended
      const connected = await this.#inTurn(async () => {
        if (this.#closed !== undefined) {
          throw new VbdError('ERR_VBD_STATE', `${this.#o.name} has been closed`)
        }
        // Paused again while this waited for its turn.
        if (this.#pause !== undefined) return undefined
        this.#stuck = false
        const result = await this.#vbd!.connect(this.#withJournal(connection))
        const { takeOver: _once, ...ours } = connection
        this.#connection = ours
        return result
      })
      if (connected !== undefined) return connected
    }
  }

  /** As `EngineVbd.disconnect`. */
  disconnect(): Promise<void> {
    return this.#inTurn(async () => {
      this.#connection = undefined
      await this.#vbd?.disconnect()
    })
  }

  /** Lets go of a connected guest for another process to go on with. False: its rings cannot be gone on with. */
  leave(): Promise<boolean> {
    return this.#inTurn(async () => {
      const vbd = this.#attached()
      this.#connection = undefined
      return (await vbd?.disconnect()) === true
    })
  }

  /**
   * Answers what was taken and takes no more, until `resume`; a cache is written back. Idempotent.
   *
   * @throws ERR_VBD_STATE where the rings cannot be taken up again; ERR_VBD_BACKING where a cache cannot be written
   *   back, then it is as if nothing had been asked
   */
  async pause(): Promise<void> {
    if (this.#closed !== undefined || this.#stuck) throw this.#ended()
    const wasPaused = this.#pause !== undefined
    if (!wasPaused) {
      let end = () => {}
      const ended = new Promise<void>((resolve) => {
        end = resolve
      })
      this.#pause = { ended, end }
    }
    try {
      await this.#inTurn(async () => {
        if ((await this.#attached()?.disconnect()) === false) {
          this.#break('it holds requests that are never answered')
          throw this.#ended()
        }
        if (holdsBack(this.spec)) await this.disk?.flush?.()
      })
    } catch (thrown) {
      if (!wasPaused) await this.resume()
      throw thrown
    }
  }

  /** Takes the rings up again where they are. Idempotent. A guest that cannot be served on is told by `onEvent`. */
  async resume(): Promise<void> {
    const pause = this.#pause
    if (pause === undefined) return
    await this.#inTurn(async () => {
      if (this.#pause !== pause) return
      this.#endPause()
      const connection = this.#connection
      if (connection === undefined || this.#closed !== undefined) return
      try {
        await this.#vbd!.connect(this.#withJournal(connection))
      } catch (thrown) {
        this.#break(`the rings could not be taken up again: ${toVbdError(thrown).message}`)
      }
    })
  }

  /**
   * Serves another disk from now on, to a connected guest too.
   *
   * @throws ERR_VBD_ARGUMENT when it cannot do what the guest was promised; ERR_VBD_BACKING, ERR_VBD_BUSY as when it is
   *   served; then the disk is the one before
   */
  async swap(disk: Disk, options: SwapOptions): Promise<DiskInfo> {
    const { name, onResize } = this.#o
    const readOnlyDisk = disk.asReadOnly()
    const wanted = this.#readOnly ? readOnlyDisk : disk
    const lease = await this.#takeLease(wanted)
    let old: DiskLease | undefined
    try {
      checkSwap(name, this.#lease!.info, lease.info, this.#offer?.features, options)
      old = await this.#replace(lease, disk, readOnlyDisk)
    } catch (thrown) {
      await lease.release()
      throw thrown
    }
    if (old.info.sizeBytes !== lease.info.sizeBytes) onResize(lease.info)
    await old.release()
    return lease.info
  }

  /**
   * Has the engine change the overlay of the disk while nobody has it open; a connected guest waits meanwhile. What the
   * engine resolves to.
   *
   * @throws ERR_VBD_UNSUPPORTED, ERR_VBD_BACKING, ERR_VBD_BUSY; then the disk is served on as it is. Where it cannot be
   *   opened any more it stays paused.
   */
  async changeOverlay(act: OverlayAct): Promise<string> {
    const { engine, name } = this.#o
    const spec = overlayOf(this.#disk)
    if (engine.changeOverlay === undefined || this.#readOnly) {
      throw new VbdError('ERR_VBD_UNSUPPORTED', `the overlay of ${name} cannot be changed`)
    }
    const wasPaused = this.paused
    await this.pause()
    let open = true
    try {
      return await this.#inTurn(async () => {
        const lease = this.#lease!
        if (!lease.alone) {
          throw new VbdError('ERR_VBD_BUSY', `the disk of ${name} is served to others, too`)
        }
        // The engine's vbd lets go of the disk, too.
        const nothing = await engine.openDisk({ driver: 'memory', sizeBytes: 4096 })
        open = false
        try {
          this.#vbd?.useDisk(nothing)
          await lease.release()
          return await engine.changeOverlay!(act, spec)
        } finally {
          this.#lease = await this.#takeLease(lease.disk)
          this.#vbd?.useDisk(this.#lease.engineDisk)
          open = true
          await nothing.close()
        }
      })
    } finally {
      if (!wasPaused && open) await this.resume()
    }
  }

  /** Lets go of guest and disk. Idempotent; the disk is given back even where the engine fails. */
  close(): Promise<void> {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #takeLease(disk: Disk): Promise<DiskLease> {
    const { disks, name, onResize, onDiskError } = this.#o
    const lease = await disks.lease(disk, name, () => onResize(lease.info), onDiskError)
    // Closed while it was being opened: nobody else would give it back.
    if (this.#closed !== undefined) {
      await lease.release()
      throw new VbdError('ERR_VBD_STATE', `${name} has been closed`, { vbd: name })
    }
    return lease
  }

  /** What the guest has is over: it has to begin again. */
  #break(message: string): void {
    this.#stuck = true
    this.#endPause()
    this.#o.onEvent({ type: 'ring-corrupt', queue: 0, message })
  }

  #ended(): VbdError {
    const { name } = this.#o
    return new VbdError('ERR_VBD_STATE', `${name} cannot be paused: its rings have ended`, {
      vbd: name,
      remedy: 'have the guest detach and attach the disk, or close it',
    })
  }

  #endPause(): void {
    this.#pause?.end()
    this.#pause = undefined
  }

  /** Puts the engine's vbd on another open disk while nothing is under way; gives back the lease before. */
  async #replace(lease: DiskLease, disk: Disk, readOnlyDisk: Disk): Promise<DiskLease> {
    const wasPaused = this.paused
    await this.pause()
    try {
      return await this.#inTurn(async () => {
        this.#vbd?.useDisk(lease.engineDisk)
        const old = this.#lease!
        this.#lease = lease
        this.#disk = disk
        this.#readOnlyDisk = readOnlyDisk
        return old
      })
    } finally {
      if (!wasPaused) await this.resume()
    }
  }

  #attached(): EngineVbd | undefined {
    return this.#connection === undefined ? undefined : this.#vbd
  }

  #inTurn<T>(act: () => T | Promise<T>): Promise<T> {
    const done = this.#turn.then(act)
    this.#turn = done.catch(() => {})
    return done
  }

  async #close(): Promise<void> {
    this.#endPause()
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
