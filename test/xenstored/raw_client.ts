/**
 * Wire-level clients for tests: they send exactly what they are told and keep everything that comes back. One speaks through
 * a socket, one through the ring page of a domain of a real daemon.
 */
import { closeSync, openSync, readSync, writeSync } from 'node:fs'
import { createConnection, type Socket } from 'node:net'
import { join } from 'node:path'
import {
  encodePacket,
  MESSAGE,
  type MessageName,
  type Packet,
  PacketParser,
} from '../../lib/xenstore/wire.js'
import type { RealDaemon } from './daemon.js'

const DEADLINE_MS = 10_000
const BARRIER = 0x7fff_0000

export abstract class RawClient {
  readonly #parser = new PacketParser()
  readonly #arrived: Packet[] = []
  readonly #wanted = new Map<number, (packet: Packet | undefined) => void>()
  #nextReqId = 1
  #nextBarrier = BARRIER

  protected abstract transmit(bytes: Buffer): void
  abstract close(): Promise<void>

  protected receive(chunk: Buffer): void {
    this.#parser.push(chunk, (packet) => {
      const wanted =
        packet.type === MESSAGE.WATCH_EVENT ? undefined : this.#wanted.get(packet.reqId)
      this.#wanted.delete(packet.reqId)
      if (packet.reqId < BARRIER) this.#arrived.push(packet)
      wanted?.(packet)
    })
  }

  protected lost(): void {
    for (const wanted of this.#wanted.values()) wanted(undefined)
    this.#wanted.clear()
  }

  /** Sends one request and gives its number. */
  send(type: MessageName | number, payload: string, txId = 0): number {
    const reqId = this.#nextReqId++
    this.transmit(encodePacket({ type: typeOf(type), reqId, txId, payload }, 1 << 20))
    return reqId
  }

  /** The answer to one request; undefined when the connection went instead. Events stay in `take`. */
  async ask(type: MessageName | number, payload: string, txId = 0): Promise<Packet | undefined> {
    const answer = this.#answerTo(this.#nextReqId)
    this.send(type, payload, txId)
    return await answer
  }

  /** Everything that has come since the last time, in order, after all that the daemon had to say by now. */
  async take(): Promise<Packet[]> {
    const reqId = this.#nextBarrier++
    const answer = this.#answerTo(reqId)
    this.transmit(encodePacket({ type: MESSAGE.GET_DOMAIN_PATH, reqId, txId: 0, payload: '0\0' }))
    await answer
    return this.#arrived.splice(0)
  }

  #answerTo(reqId: number): Promise<Packet | undefined> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => reject(new Error(`no answer to request ${reqId}`)),
        DEADLINE_MS,
      )
      this.#wanted.set(reqId, (packet) => {
        clearTimeout(timer)
        resolve(packet)
      })
    })
  }
}

function typeOf(type: MessageName | number): number {
  return typeof type === 'number' ? type : MESSAGE[type]
}

export class SocketClient extends RawClient {
  readonly socket: Socket

  static async connect(path: string): Promise<SocketClient> {
    for (const started = Date.now(); ; ) {
      try {
        return new SocketClient(await connected(path))
      } catch (error) {
        // The daemons' backlog is 1.
        if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error
        if (Date.now() - started > DEADLINE_MS) throw error
        await tick()
      }
    }
  }

  private constructor(socket: Socket) {
    super()
    this.socket = socket
    socket.on('data', (chunk: Buffer) => this.receive(chunk))
    socket.on('error', () => {})
    socket.on('close', () => this.lost())
  }

  protected override transmit(bytes: Buffer): void {
    this.socket.write(bytes)
  }

  override async close(): Promise<void> {
    this.socket.destroy()
  }
}

function connected(path: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = createConnection({ path })
    socket.once('error', reject)
    socket.once('connect', () => {
      socket.off('error', reject)
      resolve(socket)
    })
  })
}

function tick(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 1))
}

/** Offsets in struct xenstore_domain_interface: two rings of bytes, each with its two free-running indices. */
const RING_BYTES = 1024
const REQUESTS = { at: 0, consumed: 2048, produced: 2052 }
const ANSWERS = { at: 1024, consumed: 2056, produced: 2060 }

/**
 * A domain that a real daemon takes for unprivileged. The page is a file that the daemon maps: reading and writing the
 * file is reading and writing the page.
 */
export class RingClient extends RawClient {
  readonly #daemon: RealDaemon
  readonly #fd: number
  #outgoing = Buffer.alloc(0)
  #timer: NodeJS.Timeout

  constructor(daemon: RealDaemon, domid: number) {
    super()
    this.#daemon = daemon
    this.#fd = openSync(join(daemon.dir, `ring.${domid}`), 'r+')
    this.#timer = setInterval(() => this.#move(), 1)
  }

  protected override transmit(bytes: Buffer): void {
    this.#outgoing = Buffer.concat([this.#outgoing, bytes])
    this.#move()
  }

  override async close(): Promise<void> {
    clearInterval(this.#timer)
    closeSync(this.#fd)
  }

  #move(): void {
    const moved = this.#produce() + this.#consume()
    if (moved > 0) this.#daemon.raise(3)
  }

  #produce(): number {
    const produced = this.#index(REQUESTS.produced)
    const room = RING_BYTES - ((produced - this.#index(REQUESTS.consumed)) >>> 0)
    const count = Math.min(room, this.#outgoing.length)
    for (let i = 0; i < count; i++) {
      writeSync(this.#fd, this.#outgoing, i, 1, REQUESTS.at + ((produced + i) % RING_BYTES))
    }
    if (count > 0) this.#setIndex(REQUESTS.produced, produced + count)
    this.#outgoing = this.#outgoing.subarray(count)
    return count
  }

  #consume(): number {
    const consumed = this.#index(ANSWERS.consumed)
    const count = (this.#index(ANSWERS.produced) - consumed) >>> 0
    const bytes = Buffer.alloc(count)
    for (let i = 0; i < count; i++) {
      readSync(this.#fd, bytes, i, 1, ANSWERS.at + ((consumed + i) % RING_BYTES))
    }
    if (count === 0) return 0
    this.#setIndex(ANSWERS.consumed, consumed + count)
    this.receive(bytes)
    return count
  }

  #index(at: number): number {
    const bytes = Buffer.alloc(4)
    readSync(this.#fd, bytes, 0, 4, at)
    return bytes.readUInt32LE()
  }

  #setIndex(at: number, value: number): void {
    const bytes = Buffer.alloc(4)
    bytes.writeUInt32LE(value >>> 0)
    writeSync(this.#fd, bytes, 0, 4, at)
  }
}
