/**
 * One live connection to a xenstore daemon: matches answers to requests. Lives as long as its transport and is never
 * mended: client.ts makes another. Runs on Node's event loop; owned by the client.
 *
 * Requests are pipelined up to a bound (a daemon stops serving who exceeds its own); more wait in order. Answers are
 * matched by request number, watch events told apart by their type alone: daemons differ in which comes first.
 */
import type { Dial, Transport } from './transport.js'
import {
  encodePacket,
  errnoOf,
  MESSAGE,
  messageName,
  type Packet,
  PacketParser,
  splitStrings,
} from './wire.js'
import { XenstoreError } from './xenstore.js'

export interface LinkOptions {
  /** Requests sent and not yet answered. */
  maxOutstanding: number
  /** A request unanswered for so long means that the daemon is stuck: the connection is given up. ms */
  answerMs: number
  onEvent(path: string, token: string): void
  /** Once, when the connection is gone for any reason but `close()`. */
  onLost(error: XenstoreError): void
}

interface Pending {
  readonly type: number
  readonly path: string
  readonly sentAt: number
  resolve(payload: string): void
  reject(error: XenstoreError): void
}

interface Queued extends Omit<Pending, 'sentAt'> {
  readonly payload: string
  readonly txId: number
}

/** One connection. Requests after its loss reject at once. */
export class Link {
  readonly #options: LinkOptions
  readonly #parser = new PacketParser()
  readonly #pending = new Map<number, Pending>()
  #queue: Queued[] = []
  #queueHead = 0
  #transport: Transport | undefined
  #nextReqId = 1
  #failure: XenstoreError | undefined
  #watchdog: NodeJS.Timeout | undefined

  /** @throws what the dial throws */
  static async open(dial: Dial, options: LinkOptions, signal: AbortSignal): Promise<Link> {
    const link = new Link(options)
    const events = {
      data: (chunk: Buffer) => link.#receive(chunk),
      lost: (cause: Error | undefined) => link.#lose(lostError(cause)),
    }
    link.#transport = await dial(events, signal)
    return link
  }

  private constructor(options: LinkOptions) {
    this.#options = options
  }

  /** Set once the connection is gone: no request reaches the daemon any more. */
  get failure(): XenstoreError | undefined {
    return this.#failure
  }

  /**
   * Sends one request and gives the payload of its answer.
   * @param path what the request is about, for messages
   * @throws XenstoreError with the daemon's errno, or ECONNRESET when the connection goes before the answer comes
   */
  request(type: number, payload: string, path: string, txId = 0): Promise<string> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure)
    return new Promise((resolve, reject) => {
      this.#queue.push({ type, payload, path, txId, resolve, reject })
      this.#sendQueued()
    })
  }

  /** Rejects what is pending with `reason` and closes the transport. */
  async close(reason: XenstoreError): Promise<void> {
    this.#fail(reason)
    await this.#transport?.close()
  }

  #sendQueued(): void {
    while (
      this.#queueHead < this.#queue.length &&
      this.#pending.size < this.#options.maxOutstanding
    ) {
      this.#send(this.#queue[this.#queueHead++]!)
    }
    // Shifting an array costs its length each time; dropping the sent part now and then does not.
    if (this.#queueHead > 256 || this.#queueHead === this.#queue.length) {
      this.#queue = this.#queue.slice(this.#queueHead)
      this.#queueHead = 0
    }
  }

  #send(queued: Queued): void {
    const { type, payload, txId, path, resolve, reject } = queued
    const reqId = this.#takeReqId()
    let packet: Buffer
    try {
      packet = encodePacket({ type, reqId, txId, payload }, this.#transport!.maxPayload)
    } catch (error) {
      reject(error as XenstoreError)
      return
    }
    this.#pending.set(reqId, { type, path, sentAt: Date.now(), resolve, reject })
    this.#transport!.send(packet)
    this.#watchdog ??= setTimeout(() => this.#watch(), this.#options.answerMs)
  }

  #takeReqId(): number {
    while (this.#nextReqId === 0 || this.#pending.has(this.#nextReqId)) {
      this.#nextReqId = (this.#nextReqId + 1) >>> 0
    }
    const reqId = this.#nextReqId
    this.#nextReqId = (reqId + 1) >>> 0
    return reqId
  }

  /** Map keeps the order of sending, so the first pending request is the oldest. */
  #watch(): void {
    this.#watchdog = undefined
    const oldest = this.#pending.values().next().value
    if (oldest === undefined) return
    const left = oldest.sentAt + this.#options.answerMs - Date.now()
    if (left <= 0) {
      this.#abandon(
        `no answer to ${messageName(oldest.type)} ${oldest.path} for ${this.#options.answerMs} ms`,
      )
    } else {
      this.#watchdog = setTimeout(() => this.#watch(), left)
    }
  }

  #receive(chunk: Buffer): void {
    try {
      this.#parser.push(chunk, (packet) => this.#accept(packet))
    } catch (error) {
      this.#abandon(error instanceof Error ? error.message : String(error))
    }
    this.#sendQueued()
    if (this.#pending.size === 0) this.#stopWatchdog()
  }

  #accept(packet: Packet): void {
    if (this.#failure !== undefined) return
    if (packet.type === MESSAGE.WATCH_EVENT) {
      const [path, token] = splitStrings(packet.payload)
      if (path !== undefined && token !== undefined) this.#options.onEvent(path, token)
      return
    }
    const pending = this.#pending.get(packet.reqId)
    if (pending === undefined) return
    this.#pending.delete(packet.reqId)
    if (packet.type === MESSAGE.ERROR) {
      pending.reject(refusal(pending, errnoOf(packet.payload)))
    } else if (packet.type === pending.type) {
      pending.resolve(packet.payload)
    } else {
      const what = `${messageName(packet.type)} for an answer to ${messageName(pending.type)}`
      pending.reject(new XenstoreError('EIO', `xenstore sent ${what}`, { path: pending.path }))
      this.#abandon(what)
    }
  }

  /** Gives up a connection that still stands but is of no more use. */
  #abandon(why: string): void {
    if (this.#failure !== undefined) return
    void this.#transport?.close()
    this.#lose(new XenstoreError('ECONNRESET', `the xenstore connection was given up: ${why}`))
  }

  #lose(error: XenstoreError): void {
    if (this.#failure !== undefined) return
    this.#fail(error)
    this.#options.onLost(error)
  }

  #fail(error: XenstoreError): void {
    this.#failure ??= error
    this.#stopWatchdog()
    const rejected = [...this.#pending.values(), ...this.#queue.slice(this.#queueHead)]
    this.#pending.clear()
    this.#queue = []
    this.#queueHead = 0
    for (const one of rejected) one.reject(this.#failure)
  }

  #stopWatchdog(): void {
    clearTimeout(this.#watchdog)
    this.#watchdog = undefined
  }
}

function refusal(pending: Pending, errno: string): XenstoreError {
  const message = `xenstore refused ${messageName(pending.type)} ${pending.path}: ${errno}`
  return new XenstoreError(errno, message, { path: pending.path })
}

function lostError(cause: Error | undefined): XenstoreError {
  const why =
    cause === undefined ? '' : ` (${(cause as NodeJS.ErrnoException).code ?? cause.message})`
  const options = cause === undefined ? {} : { cause }
  return new XenstoreError('ECONNRESET', `the xenstore connection was lost${why}`, options)
}
