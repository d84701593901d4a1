/**
 * One client of the in-memory store: its requests, its transactions, what waits to be sent to it. Owned by
 * server.ts, which moves the bytes. Runs on Node's event loop.
 *
 * A client that does not read costs bounded memory: an event equal to one that still waits is dropped (as C xenstored
 * does), and no further request is served while too many answers wait.
 */
import type { FaultPlan } from './faults.js'
import { isPrivileged } from './permission.js'
import { HANDLERS, type Handler } from './requests.js'
import type { Store } from './store.js'
import type { Transaction } from './tree.js'
import type { WatchOwner } from './watch_table.js'
import {
  encodePacket,
  joinStrings,
  MESSAGE,
  messageName,
  PAYLOAD_MAX,
  type Packet,
} from './wire.js'
import { XenstoreError } from './xenstore.js'

/** Answers that may wait for domain 0, which has no quota. */
const PRIVILEGED_OUTSTANDING = 1024

export interface SessionOutput {
  /** Takes one packet. False: no more until `Session.flush` is called. */
  write(packet: Buffer): boolean
  /** Ends the connection. */
  drop(): void
}

interface Waiting {
  readonly packet: Buffer
  /** The payload of a watch event; undefined: an answer. */
  readonly event: string | undefined
}

/** One connected client of the store. */
export class Session implements WatchOwner {
  readonly domid: number
  readonly store: Store
  readonly #output: SessionOutput
  readonly #faults: () => FaultPlan
  readonly #transactions = new Map<number, Transaction>()
  readonly #inbox: Packet[] = []
  readonly #outbox: Waiting[] = []
  readonly #waitingEvents = new Set<string>()
  #nextTransaction = 1
  #writable = true
  #serving = false
  #open = true

  constructor(store: Store, domid: number, output: SessionOutput, faults: () => FaultPlan) {
    this.store = store
    this.domid = domid
    this.#output = output
    this.#faults = faults
    store.join(this)
  }

  get target(): number | undefined {
    return this.store.targetOf(this.domid)
  }

  /** Takes a request. False: the client should not be read until `flush` gives true. */
  receive(packet: Packet): boolean {
    this.#inbox.push(packet)
    this.#serve()
    return this.#inbox.length === 0
  }

  /** The output takes packets again. True when everything read has been served. */
  flush(): boolean {
    this.#writable = true
    this.#drain()
    this.#serve()
    return this.#inbox.length === 0
  }

  close(): void {
    this.#open = false
    this.#inbox.length = 0
    this.#outbox.length = 0
    this.#waitingEvents.clear()
    this.#transactions.clear()
    this.store.leave(this)
  }

  onWatch(path: string, token: string): void {
    const event = joinStrings([path, token])
    if (event.length > PAYLOAD_MAX || this.#waitingEvents.has(event)) return
    if (!isPrivileged(this) && this.#waitingEvents.size >= this.store.quotas.events) return
    this.#send({ type: MESSAGE.WATCH_EVENT, reqId: 0, txId: 0, payload: event }, event)
  }

  startTransaction(): number {
    const { transactions } = this.store.quotas
    if (!isPrivileged(this) && this.#transactions.size > transactions) {
      throw new XenstoreError('ENOSPC', 'quota exceeded')
    }
    while (this.#nextTransaction === 0 || this.#transactions.has(this.#nextTransaction)) {
      this.#nextTransaction = (this.#nextTransaction + 1) >>> 0
    }
    const id = this.#nextTransaction
    this.#nextTransaction = (id + 1) >>> 0
    this.#transactions.set(id, this.store.begin())
    return id
  }

  /**
   * @throws XenstoreError ENOENT unknown, ENOMEM spoilt by an earlier refusal, EAGAIN conflict; it is
   * gone in any case
   */
  endTransaction(id: number, commit: boolean): void {
    const transaction = this.#transactions.get(id)
    if (transaction === undefined) throw new XenstoreError('ENOENT', 'no such transaction')
    this.#transactions.delete(id)
    if (!commit) return
    if (transaction.failed) throw new XenstoreError('ENOMEM', 'the transaction has failed')
    if (!transaction.commit()) throw new XenstoreError('EAGAIN', 'conflict')
  }

  resetWatches(): void {
    this.store.unwatchAll(this)
    this.#transactions.clear()
  }

  #serve(): void {
    // A request that fires this client's own watches comes back here.
    if (this.#serving) return
    this.#serving = true
    const most = isPrivileged(this) ? PRIVILEGED_OUTSTANDING : this.store.quotas.outstanding
    while (this.#open && this.#inbox.length > 0 && this.#outbox.length < most) {
      this.#answer(this.#inbox.shift()!)
    }
    this.#serving = false
  }

  #answer(packet: Packet): void {
    const verdict = this.#faults().judge(messageName(packet.type), this.domid)
    if (verdict?.drop === 'before') {
      this.#drop()
      return
    }
    try {
      if (verdict !== undefined && verdict.drop === undefined)
        this.#failOnPurpose(packet, verdict.errno)
      const answer = this.#execute(packet)
      if (verdict?.drop === 'after') {
        this.#drop()
        return
      }
      this.#send({ ...packet, payload: answer.payload }, undefined)
      answer.afterwards?.()
    } catch (error) {
      if (!(error instanceof XenstoreError)) throw error
      this.#send({ ...packet, type: MESSAGE.ERROR, payload: `${error.errno}\0` }, undefined)
    }
  }

  /** At once: what was read with this request is not served any more. */
  #drop(): void {
    this.close()
    this.#output.drop()
  }

  #failOnPurpose(packet: Packet, errno: string): never {
    if (packet.type === MESSAGE.TRANSACTION_END) this.#transactions.delete(packet.txId)
    throw new XenstoreError(errno, 'failed on purpose')
  }

  #execute(packet: Packet): ReturnType<Handler['serve']> {
    const handler = HANDLERS.get(packet.type)
    if (handler === undefined) throw new XenstoreError('ENOSYS', 'unknown request')
    if (handler.privileged && !isPrivileged(this)) throw new XenstoreError('EACCES', 'not allowed')
    const transaction = handler.inTransaction ? this.#transactionOf(packet) : undefined
    try {
      return handler.serve(this, packet, transaction)
    } catch (error) {
      const spoils = error instanceof XenstoreError && error.errno === 'ENOSPC'
      if (transaction !== undefined && spoils) transaction.failed = true
      throw error
    }
  }

  #transactionOf(packet: Packet): Transaction | undefined {
    if (packet.txId === 0) return undefined
    const transaction = this.#transactions.get(packet.txId)
    if (transaction === undefined) throw new XenstoreError('ENOENT', 'no such transaction')
    return transaction
  }

  #send(packet: Packet, event: string | undefined): void {
    if (!this.#open) return
    this.#outbox.push({ packet: encodePacket(packet), event })
    if (event !== undefined) this.#waitingEvents.add(event)
    this.#drain()
  }

  #drain(): void {
    while (this.#writable && this.#outbox.length > 0) {
      const waiting = this.#outbox.shift()!
      if (waiting.event !== undefined) this.#waitingEvents.delete(waiting.event)
      this.#writable = this.#output.write(waiting.packet)
    }
  }
}
