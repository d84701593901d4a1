/**
 * Attachment: keeps a vbd's directories in place where no toolstack does. It waits for the guest's domain, makes the
 * directories when there are none, makes them again when the domain comes back, and takes away what it made. Only
 * hints wake it: domains that come and go, a reconcile, a vbd that has settled.
 */
import { within } from '../deadline.js'
import { toVbdError, VbdError } from '../errors.js'
import type { Bus } from '../xenbus/bus.js'
import { Coalescer } from '../xenbus/coalesce.js'
import { isConnectionLoss, quietly } from '../xenbus/device.js'
import { Limiter } from '../xenbus/limiter.js'
import type { Presence, Toolstack } from '../xenbus/toolstack.js'
import type { Lifecycle } from './lifecycle.js'

/**
 * `auto`: use the directories that a toolstack has made, else make them. `create`: make them, refuse those of a
 * toolstack. `wait`: leave all of that to a toolstack.
 */
export type ToolstackChoice = 'auto' | 'create' | 'wait'

export interface AttachmentOptions {
  readonly name: string
  readonly choice: Exclude<ToolstackChoice, 'wait'>
  readonly toolstack: Toolstack
  readonly bus: Bus
  readonly lifecycle: Lifecycle
  readonly onWarning: (message: string) => void
}

/** Times a minute that directories are made: a guest may remove its own as often as it likes. */
const CREATIONS_PER_MINUTE = 30

/** Milliseconds that a frontend is given to close. */
export const CLOSE_TIMEOUT_MS = 10_000
/** Milliseconds that leaving waits for a look in progress. */
const LEAVE_MS = 1000

/** Who takes care of a vbd's directories. */
export type Keeper = Pick<Attachment, 'poke' | 'settled' | 'leave' | 'beginClose' | 'finishClose'>

/** The directories of one vbd that no toolstack takes care of. */
export class Attachment {
  readonly #o: AttachmentOptions
  readonly #runner = new Coalescer(() => this.#guarded())
  readonly #creations = new Limiter(CREATIONS_PER_MINUTE)
  #refreshed = false
  /** Something has to wait until the vbd has let go. */
  #waiting = false
  #closed = false

  constructor(options: AttachmentOptions) {
    this.#o = options
  }

  /**
   * Looks for the first time; resolves when the directories are there, or the domain is not.
   *
   * @throws ERR_VBD_BUSY with `create` when a toolstack has made them; ERR_VBD_XENSTORE
   */
  async start(): Promise<void> {
    const presence = await this.#o.toolstack.look()
    if (presence === 'foreign' && this.#o.choice === 'create') {
      throw new VbdError('ERR_VBD_BUSY', `a toolstack has attached ${this.#o.name} already`, {
        vbd: this.#o.name,
        path: this.#o.toolstack.paths.backend,
        remedy: 'detach it there, or let this backend serve what the toolstack made',
      })
    }
    await this.#settle(presence)
  }

  /** Look again. */
  poke(): void {
    this.#runner.poke()
  }

  /** The vbd has nothing left to do. */
  settled(): void {
    if (this.#waiting) this.poke()
  }

  /** Leaves the directories as they are. */
  async leave(): Promise<void> {
    this.#closed = true
    await within(this.#runner.stop(), LEAVE_MS)
  }

  /** Asks for the device to be closed, for good. */
  async beginClose(): Promise<void> {
    this.#closed = true
    await this.#runner.stop()
    if (isOurs(await this.#o.toolstack.look())) await this.#o.toolstack.requestClose()
  }

  /** Takes away what is ours, once the vbd has closed. */
  async finishClose(): Promise<void> {
    if (isOurs(await this.#o.toolstack.look())) await this.#o.toolstack.remove()
  }

  async #guarded(): Promise<void> {
    if (this.#closed) return
    try {
      await this.#settle(await this.#o.toolstack.look())
    } catch (thrown) {
      if (this.#closed || isConnectionLoss(thrown)) return
      this.#o.onWarning(`its xenstore directories cannot be made: ${toVbdError(thrown).message}`)
    }
  }

  async #settle(presence: Presence): Promise<void> {
    this.#waiting = false
    switch (presence) {
      case 'absent':
        return this.#create()
      case 'half':
        return this.#whenReleased(() => this.#create())
      case 'orphan':
        return this.#whenReleased(() => this.#o.toolstack.remove())
      case 'ours':
        if (!this.#refreshed) await this.#o.toolstack.refresh()
        this.#refreshed = true
        return this.#o.bus.scan()
      case 'foreign':
        return this.#o.bus.scan()
      case 'no-domain':
        return
    }
  }

  async #create(): Promise<void> {
    if (this.#closed || this.#creations.allow() === undefined) return
    this.#refreshed = true
    await this.#o.toolstack.create()
    await this.#o.bus.scan()
    this.#o.lifecycle.poke()
  }

  /** Directories must not be replaced while pages of the guest that they belonged to are still mapped. */
  async #whenReleased(act: () => Promise<void>): Promise<void> {
    if (this.#o.lifecycle.holdsNothing) {
      await act()
    } else {
      this.#waiting = true
      this.#o.lifecycle.poke()
    }
  }
}

function isOurs(presence: Presence): boolean {
  return presence === 'ours' || presence === 'half' || presence === 'orphan'
}

export interface CloseOptions {
  /** Milliseconds that a guest is given to close; 10,000 by default. */
  readonly timeoutMs?: number | undefined
  /**
   * The guest keeps its disk, and waits: another process that serves the same disk at the same place goes on where this
   * one ended, without the guest's noticing. False by default: the guest is asked to close.
   */
  readonly keepGuest?: boolean | undefined
}

/**
 * Closes a vbd, and takes away what its attachment made. A store that does not answer is not waited for longer than a
 * guest.
 *
 * @param options.timeoutMs 0 where the store is known to be gone
 */
export async function closeAttached(
  attachment: Keeper | undefined,
  lifecycle: Lifecycle,
  { timeoutMs = CLOSE_TIMEOUT_MS, keepGuest = false }: CloseOptions,
): Promise<void> {
  if (keepGuest) {
    await attachment?.leave()
    return lifecycle.leave()
  }
  if (attachment !== undefined) await quietly(within(attachment.beginClose(), timeoutMs))
  try {
    await lifecycle.close(timeoutMs)
  } finally {
    if (attachment !== undefined) await quietly(within(attachment.finishClose(), timeoutMs))
  }
}
