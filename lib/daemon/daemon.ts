/**
 * Daemon: serves whatever a toolstack attaches. Each device that is ours by its kind and its hotplug script gets the
 * disk that its `params` name; where that cannot be, the toolstack is told why; everything else is left alone.
 *
 *     toolstack's directory ──► Backend 'vbd' ──► isOurs? ──► parseParams ──► makeDisk ──► accept | refuse
 *
 * Uses the backend that it is given, and does not close it. Runs on the JavaScript thread.
 */
import { setTimeout } from 'node:timers/promises'
import type { Backend } from '../backend.js'
import { within } from '../deadline.js'
import type { Disk } from '../disk/disk.js'
import { toVbdError, VbdError } from '../errors.js'
import type { DeviceOffer } from '../vbd/offer.js'
import type { VbdOptions } from '../vbd/options.js'
import type { Vbd } from '../vbd/vbd.js'
import { isOurs, type KindClaim } from './claims.js'
import { type DriverWords, parseParams } from './params.js'

export interface DaemonOptions {
  readonly backend: Backend
  readonly claims: readonly KindClaim[]
  /** What disks get whose `params` say nothing else. */
  readonly words: DriverWords
  readonly vbd: VbdOptions
  /** The disk that a driver makes of its argument, as the command line has it. */
  readonly makeDisk: (driver: string, argument: string, words: DriverWords) => Disk | Promise<Disk>
  /** Why nothing of this kind can be served now; undefined when it can. */
  readonly obstacle?: (kind: string) => { message: string; remedy: string } | undefined
  /** Whether another process of ours serves the device. */
  readonly isServedElsewhere?: (offer: DeviceOffer) => Promise<boolean>
  readonly events: DaemonEvents
}

export interface DaemonEvents {
  serving(vbd: Vbd, offer: DeviceOffer): void
  refused(offer: DeviceOffer, error: VbdError): void
  /** A guest that uses its disk waits until it can be served again. */
  waiting(offer: DeviceOffer, error: VbdError): void
  /** Left to whoever it belongs to. */
  ignored(offer: DeviceOffer): void
}

/** Milliseconds after which a disk is tried again that a connected guest waits for, doubled each time. */
const RETRY_FIRST_MS = 500
const RETRY_MOST_MS = 15_000

/** Milliseconds that stopping waits for answers. */
const ANSWERS_MS = 2000

/** Answers every device of a backend. */
export class Daemon {
  readonly #o: DaemonOptions
  readonly #answering = new Set<Promise<void>>()
  readonly #stopping = new AbortController()
  #unsubscribe: (() => void) | undefined

  constructor(options: DaemonOptions) {
    this.#o = options
  }

  /** Begins; what is attached already is answered first. */
  start(): void {
    this.#unsubscribe = this.#o.backend.on('vbd', (offer) => {
      const answer = this.#answer(offer).finally(() => this.#answering.delete(answer))
      this.#answering.add(answer)
      return answer
    })
  }

  /**
   * Takes nothing new; resolves when the answers under way are given, but waits for no disk that does not open. What is
   * served is served on.
   */
  async stop(): Promise<void> {
    this.#unsubscribe?.()
    this.#stopping.abort()
    await within(Promise.allSettled(this.#answering), ANSWERS_MS)
  }

  async #answer(offer: DeviceOffer): Promise<void> {
    const { claims, events } = this.#o
    if (!isOurs(claims, offer) || (await this.#o.isServedElsewhere?.(offer)) === true) {
      offer.ignore()
      events.ignored(offer)
      return
    }
    try {
      events.serving(await this.#keepTrying(offer), offer)
    } catch (thrown) {
      if (this.#stopping.signal.aborted) return
      const error = toVbdError(thrown)
      await offer.refuse(sentence(error))
      events.refused(offer, error)
    }
  }

  /** A guest that uses its disk would lose it with a refusal: it waits instead, for a mount perhaps. */
  async #keepTrying(offer: DeviceOffer): Promise<Vbd> {
    let said = ''
    for (let delayMs = RETRY_FIRST_MS; ; delayMs = Math.min(2 * delayMs, RETRY_MOST_MS)) {
      try {
        return await this.#serve(offer)
      } catch (thrown) {
        const error = toVbdError(thrown)
        if (!offer.connected || error.code === 'ERR_VBD_NOT_FOUND') throw error
        if (error.message !== said) this.#o.events.waiting(offer, error)
        said = error.message
      }
      await setTimeout(delayMs, undefined, { signal: this.#stopping.signal, ref: false })
    }
  }

  async #serve(offer: DeviceOffer): Promise<Vbd> {
    const obstacle = this.#o.obstacle?.(offer.kind)
    if (obstacle !== undefined) {
      const { message, remedy } = obstacle
      throw new VbdError('ERR_VBD_BUSY', message, { vbd: offer.id, remedy })
    }
    const { driver, argument, words, vbd } = parseParams(offer.params)
    const readOnly = words.readOnly === true || !offer.writable
    const disk = await this.#o.makeDisk(driver, argument, {
      ...this.#o.words,
      ...words,
      // Opened as the guest may use it.
      ...(readOnly ? { readOnly } : {}),
    })
    return offer.accept(disk, { ...this.#o.vbd, ...vbd, readOnly })
  }
}

/** The error with its remedy, for a toolstack that shows one line. */
function sentence({ message, remedy }: VbdError): string {
  return remedy === undefined ? message : `${message}; ${remedy}`
}
