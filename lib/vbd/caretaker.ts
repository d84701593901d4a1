/**
 * Caretaker: takes the directories that `vbdkit attach` made away once nobody needs them any more: the device has
 * closed for good, or its guest is gone, which xl does not tell to a device that it does not know. For the directories
 * of a vbd that the backend serves, in place of an Attachment.
 */
import { Coalescer } from '../xenbus/coalesce.js'
import { quietly } from '../xenbus/device.js'
import type { Directories } from '../xenbus/toolstack.js'
import type { Keeper } from './attachment.js'
import type { Lifecycle } from './lifecycle.js'

/** One device's directories. */
export class Caretaker implements Keeper {
  readonly #directories: Directories
  readonly #lifecycle: Lifecycle
  readonly #runner = new Coalescer(() => quietly(this.#look()))

  constructor(directories: Directories, lifecycle: Lifecycle) {
    this.#directories = directories
    this.#lifecycle = lifecycle
  }

  /** Look again. */
  poke(): void {
    this.#runner.poke()
  }

  settled(): void {
    this.poke()
  }

  async leave(): Promise<void> {
    await this.#runner.stop()
  }

  async beginClose(): Promise<void> {
    await this.#runner.stop()
  }

  async finishClose(): Promise<void> {}

  async #look(): Promise<void> {
    if (!this.#lifecycle.holdsNothing) return
    const presence = await this.#directories.look()
    if (presence === 'orphan') await this.#directories.remove()
    else if (presence !== 'foreign') await this.#directories.removeClosed()
  }
}
