/**
 * Succession: one process goes on with the rings of another, so that a backend is restarted under its guests: Linux
 * gives a disk up for good when its backend closes. Nothing of it is seen by the guest but a wait.
 *
 *     old: stop intake ─► answer all that was taken ─► unbind, unmap ─► record `drained`          state stays Connected
 *     new: record, keys, offer ─► as before? ─► record `open` ─► map, bind, go on at rsp_prod, notify once
 *
 * Xen puts the frontend's port back to unbound, for our domain, when the old process lets go of it or dies; grants are
 * not used up by unmapping; requests that the guest makes meanwhile wait on the ring. A process that was killed leaves
 * `open`: then what it had taken and not answered is in the rings' journals, and done again. Where there is no journal
 * only rings on which every request has its response can be gone on with, because the rest cannot be told.
 *
 * The record stands in the backend's directory, where no guest can write. It names the rings by a digest, so that a
 * frontend that began again meanwhile, on other rings, is not mistaken for the old one.
 */
import type { Connection } from '../engine/engine.js'
import { toVbdError } from '../errors.js'
import type { Device, WriteOutcome } from '../xenbus/device.js'
import { XenbusState } from '../xenbus/state.js'
import type { Offer } from './advertise.js'
import { connectionInfo, prepareOffer, readTerms } from './agree.js'
import type { Backing } from './backing.js'
import { ringDigest } from './journal.js'
import type { ResolvedVbdOptions } from './options.js'
import type { ConnectionInfo } from './reporter.js'

/** In the backend's directory: `1 open DIGEST`, and `journaled` or `drained` in place of `open`. */
export const RECORD_KEY = 'vbdkit-rings'

/** Of what the record means; another version's is not understood. */
const VERSION = '1'

/** Times that an engine's refusal is borne: a killed process holds its ports until the kernel is done with it. */
const ATTEMPTS = 6

/** `journaled`: open, and whoever serves the rings keeps their journals. Without it an old journal may lie there. */
type RecordState = 'open' | 'journaled' | 'drained'

/** What was advertised, and may not get weaker under a guest: keys that say 1, and sizes. */
const PROMISES = ['feature-barrier', 'feature-flush-cache', 'feature-discard', 'discard-secure']
const SAME = ['sector-size']
const ADVERTISED = [
  ...PROMISES,
  ...SAME,
  'feature-persistent',
  'feature-max-indirect-segments',
  'info',
  'sectors',
  RECORD_KEY,
] as const

type Advertised = Readonly<Record<string, string | undefined>>

/** The record of these rings. */
export function ringRecord(connection: Connection, state: RecordState = 'open'): string {
  return `${VERSION} ${state} ${ringDigest(connection)}`
}

/** The record of the same rings, once everything is answered. */
export function drainedRecord(record: string): string {
  return record.replace(/ (open|journaled) /, ' drained ')
}

/** How these rings can be gone on with; undefined: the record is not of them. */
export function takeOverOf(
  record: string | undefined,
  connection: Connection,
): Connection['takeOver'] {
  if (record === ringRecord(connection, 'drained')) return 'drained'
  if (record === ringRecord(connection, 'journaled')) return 'journaled'
  return record === ringRecord(connection, 'open') ? 'idle' : undefined
}

/** What of the old promises is not kept; undefined when all are. */
export function brokenPromise(
  old: Advertised,
  now: ReadonlyMap<string, string>,
): string | undefined {
  for (const key of PROMISES) {
    if (old[key] === '1' && now.get(key) !== '1') return `${key} is not offered any more`
  }
  for (const key of SAME) {
    if (old[key] !== now.get(key)) return `${key} was ${old[key]}, and is ${now.get(key)}`
  }
  const indirect = 'feature-max-indirect-segments'
  if (Number(old[indirect] ?? 0) > Number(now.get(indirect) ?? 0)) {
    return `${indirect} was ${old[indirect]}, and is ${now.get(indirect) ?? 0}`
  }
  const readOnly = 4
  if ((Number(old.info) & readOnly) === 0 && (Number(now.get('info')) & readOnly) !== 0) {
    return 'the disk was writable, and is read-only'
  }
  return undefined
}

/** What is taken over. */
export interface Inheritance {
  readonly offer: Offer
  readonly info: ConnectionInfo
  /** The rings' record. */
  readonly record: string
  /** The disk has another size than the frontend was told. */
  readonly sizeChanged: boolean
}

/** What the frontend and the old process agreed on, and we can keep. */
interface Settlement {
  readonly offer: Offer
  readonly connection: Connection
  readonly takeOver: NonNullable<Connection['takeOver']>
  readonly sizeChanged: boolean
}

/** One directory's rings, as an earlier process may have left them. */
export class Succession {
  readonly #device: Device
  readonly #backing: Backing
  readonly #options: ResolvedVbdOptions
  /** As the record said at first: by the next attempt it says `open`. */
  #takeOver: Connection['takeOver']
  #attempts = 0
  #failure: string | undefined

  constructor(device: Device, backing: Backing, options: ResolvedVbdOptions) {
    this.#device = device
    this.#backing = backing
    this.#options = options
  }

  /** Nothing speaks against it yet. */
  get isPossible(): boolean {
    return this.#failure === undefined
  }

  /** Why the guest has to begin again, as far as we know. */
  explain(reason: string): string {
    return this.#failure === undefined ? reason : `${reason} (${this.#failure})`
  }

  /**
   * Goes on with the rings. undefined: it cannot be; nothing is held then.
   *
   * @throws what may pass: xenstore's failures, and the engine's at first; nothing is held then either
   */
  async takeOver(): Promise<Inheritance | undefined> {
    const settlement = await this.#settle()
    return settlement === undefined ? undefined : await this.#connect(settlement)
  }

  async #settle(): Promise<Settlement | undefined> {
    const device = this.#device
    const prepared = await prepareOffer(device, this.#backing, this.#options)
    if ('failure' in prepared) return this.#fail(prepared.failure.text)
    const { offer } = prepared
    const old = await device.readBackend(ADVERTISED)
    const { write } = this.#backing.advertise(offer)
    const broken = brokenPromise(old, write)
    if (broken !== undefined) return this.#fail(broken)
    const persistent = old['feature-persistent'] === '1'
    const { defaultProtocol } = this.#options
    const result = await readTerms(device, offer, defaultProtocol, persistent)
    if (!result.ok) return this.#fail(result.reason)
    this.#takeOver ??= takeOverOf(old[RECORD_KEY], result.connection)
    if (this.#takeOver === undefined) return this.#fail('its rings are not on record')
    const sizeChanged = old.sectors !== write.get('sectors')
    return { offer, connection: result.connection, takeOver: this.#takeOver, sizeChanged }
  }

  async #connect(settlement: Settlement): Promise<Inheritance | undefined> {
    const { offer, connection, takeOver, sizeChanged } = settlement
    let record = ringRecord(connection, takeOver === 'journaled' ? takeOver : 'open')
    // First: if we are killed from here on, the rings are not drained any more.
    if ((await this.#record(record)) !== 'written') return this.#fail('its directory has changed')
    try {
      const { transfer } = await this.#backing.connect({ ...connection, takeOver })
      const info = connectionInfo(connection, transfer, offer.features)
      const kept = ringRecord(connection, this.#backing.journaled ? 'journaled' : 'open')
      if (record !== kept && (await this.#record(kept).catch(() => undefined)) === 'written') {
        record = kept
      }
      return { offer, info, record, sizeChanged }
    } catch (thrown) {
      const error = toVbdError(thrown)
      const final = error.code === 'ERR_VBD_PROTOCOL' || ++this.#attempts >= ATTEMPTS
      if (!final) throw error
      return this.#fail(error.message)
    }
  }

  #record(record: string): Promise<WriteOutcome> {
    return this.#device.update(XenbusState.Connected, (tx, path) =>
      tx.write(`${path}/${RECORD_KEY}`, record),
    )
  }

  #fail(why: string): undefined {
    this.#failure = why
    return undefined
  }
}
