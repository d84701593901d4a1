/**
 * NbdConnection: one client of the NBD server, from its greeting to the end of its socket.
 *
 *   greeting ─► flags ─► options ─► transmission ─► ended
 *
 * The event loop's thread only; owns its socket. Requests are carried out concurrently and answered as they finish.
 * What a client can make it hold is bounded: it stops reading from the socket while too many requests, or too many
 * bytes of them, are under way or wait to be sent.
 */
import type { Socket } from 'node:net'
import { VbdError } from '../../errors.js'
import { type BufferPool, ByteQueue } from './buffers.js'
import type { NbdDisk } from './disk.js'
import { Negotiation } from './negotiation.js'
import {
  CLIENT_FLAGS_BYTES,
  COMMAND,
  COMMAND_FLAG,
  ERROR,
  errorChunk,
  greeting,
  HANDSHAKE,
  MAX_OPTION,
  MAX_PAYLOAD,
  OPTION_HEADER_BYTES,
  type OptionHeader,
  optionReply,
  parseOptionHeader,
  parseRequest,
  REPLY,
  REQUEST_BYTES,
  type Request,
  readChunk,
  simpleReply,
} from './protocol.js'

export interface ConnectionOptions {
  readonly disk: NbdDisk
  readonly exportName: string
  readonly buffers: BufferPool
  /** How long the handshake may take, in ms. */
  readonly handshakeMs: number
  /** A request failed in a way that the operator may want to know. */
  onError(error: unknown, request: Request): void
  onEnd(): void
}

/** Requests under way per connection. */
const MAX_REQUESTS = 128
/** Bytes of their data; one request of the largest size is always taken. */
const MAX_BYTES = 64 * 1024 * 1024
/** Bytes that wait to be sent before a client that does not read is not listened to any more. */
const MAX_UNSENT = 16 * 1024 * 1024
/** Written at a time for a range that should be zero. */
const ZEROES = Buffer.alloc(1024 * 1024)

/** A write whose data is coming in. */
interface Incoming {
  readonly request: Request
  readonly buffer: Buffer
  filled: number
}

type Phase = 'flags' | 'options' | 'transmission' | 'ended'

/** A failure with its NBD error number. */
class Refusal extends Error {
  readonly error: number

  constructor(error: number, message: string) {
    super(message)
    this.error = error
  }
}

/** One client. */
export class NbdConnection {
  readonly #socket: Socket
  readonly #options: ConnectionOptions
  readonly #bytes = new ByteQueue()
  readonly #handshake: NodeJS.Timeout
  #phase: Phase = 'flags'
  #negotiation: Negotiation | undefined
  #option: OptionHeader | undefined
  #incoming: Incoming | undefined
  /** Bytes of a refused write's data that are still to be thrown away. */
  #skipping = 0
  #requests = 0
  #pendingBytes = 0
  #corked = false
  #ended = false

  constructor(socket: Socket, options: ConnectionOptions) {
    this.#socket = socket
    this.#options = options
    this.#handshake = setTimeout(() => socket.destroy(), options.handshakeMs).unref()
    socket.setNoDelay(true)
    socket.on('data', (chunk: Buffer) => this.#receive(chunk))
    socket.on('drain', () => this.#proceed())
    socket.on('end', () => this.#finish())
    // What went wrong with a socket is its client's affair; 'close' follows.
    socket.on('error', () => {})
    socket.on('close', () => this.#close())
    socket.write(greeting())
  }

  /** Takes no more requests, and ends when those under way are answered. */
  end(): void {
    this.#phase = 'ended'
    this.#finish()
  }

  destroy(): void {
    this.#socket.destroy()
  }

  #receive(chunk: Buffer): void {
    if (this.#phase === 'ended') return
    this.#bytes.push(chunk)
    this.#proceed()
  }

  /** Reads on as far as bytes and bounds allow, and opens or shuts the socket accordingly. */
  #proceed(): void {
    while (this.#mayRead() && this.#step()) {
      // Each step takes something off the queue or ends the phase.
    }
    if (this.#phase === 'ended') this.#bytes.clear()
    if (this.#mayRead()) this.#socket.resume()
    else this.#socket.pause()
  }

  #mayRead(): boolean {
    // Paused sockets do not see their end: one that has ended is read to the last byte.
    if (this.#phase === 'ended') return true
    if (this.#requests >= MAX_REQUESTS || this.#socket.writableLength >= MAX_UNSENT) return false
    return this.#pendingBytes < MAX_BYTES
  }

  /** False: more bytes are needed. */
  #step(): boolean {
    if (this.#skipping > 0) {
      this.#skipping -= this.#bytes.skip(this.#skipping)
      return this.#skipping === 0
    }
    switch (this.#phase) {
      case 'flags':
        return this.#readFlags()
      case 'options':
        return this.#readOption()
      case 'transmission':
        return this.#incoming === undefined ? this.#readRequest() : this.#readPayload()
      case 'ended':
        return false
    }
  }

  #readFlags(): boolean {
    if (this.#bytes.length < CLIENT_FLAGS_BYTES) return false
    const flags = this.#bytes.take(CLIENT_FLAGS_BYTES).readUInt32BE(0)
    const known = HANDSHAKE.fixedNewstyle | HANDSHAKE.noZeroes
    if ((flags & ~known) !== 0) return this.#drop()
    const zeroes = (flags & HANDSHAKE.noZeroes) === 0
    this.#negotiation = new Negotiation(this.#options.disk, this.#options.exportName, zeroes)
    this.#phase = 'options'
    return true
  }

  #readOption(): boolean {
    if (this.#option === undefined) {
      if (this.#bytes.length < OPTION_HEADER_BYTES) return false
      this.#option = parseOptionHeader(this.#bytes.take(OPTION_HEADER_BYTES))
      if (this.#option === undefined) return this.#drop()
    }
    const { option, length } = this.#option
    if (length > MAX_OPTION) return this.#refuseOption(option, length)
    if (this.#bytes.length < length) return false
    this.#option = undefined
    const { replies, next } = this.#negotiation!.answer(option, this.#bytes.take(length))
    for (const reply of replies) this.#send(reply)
    if (next === 'refused') return this.#drop()
    if (next === 'closed') this.end()
    if (next === 'transmission') {
      clearTimeout(this.#handshake)
      this.#phase = 'transmission'
    }
    return true
  }

  #refuseOption(option: number, length: number): boolean {
    this.#option = undefined
    if (length > MAX_PAYLOAD) return this.#drop()
    this.#skipping = length
    this.#send(optionReply(option, REPLY.tooBig))
    return true
  }

  #readRequest(): boolean {
    if (this.#bytes.length < REQUEST_BYTES) return false
    const request = parseRequest(this.#bytes.take(REQUEST_BYTES))
    if (request === undefined) return this.#drop()
    if (request.command === COMMAND.disconnect) {
      this.end()
      return true
    }
    const refusal = this.#check(request)
    if (refusal !== undefined) {
      if (request.command === COMMAND.write) this.#skipping = request.length
      this.#answerError(request, refusal)
    } else if (request.command === COMMAND.write && request.length > 0) {
      this.#expectPayload(request)
    } else this.#start(request, undefined)
    return true
  }

  /** Why a request cannot be carried out; undefined when it can. */
  #check(request: Request): Refusal | undefined {
    const { command, flags, length } = request
    const { disk } = this.#options
    const writes =
      command === COMMAND.write || command === COMMAND.trim || command === COMMAND.writeZeroes
    const allowed = ALLOWED_FLAGS.get(command)
    if (allowed === undefined) return new Refusal(ERROR.EINVAL, 'no such command')
    if ((flags & ~allowed) !== 0) return new Refusal(ERROR.EINVAL, 'no such flag')
    if (command === COMMAND.flush) return undefined
    if (writes && disk.readOnly) return new Refusal(ERROR.EPERM, 'the disk is read-only')
    if (command === COMMAND.trim && !disk.canTrim) return new Refusal(ERROR.EINVAL, 'no trim')
    const moves = command === COMMAND.read || command === COMMAND.write
    if (moves && length > MAX_PAYLOAD) return new Refusal(ERROR.EINVAL, 'the request is too long')
    const block = BigInt(disk.blockSize)
    if (request.offset % block !== 0n || BigInt(length) % block !== 0n) {
      return new Refusal(ERROR.EINVAL, 'the request is not aligned to blocks')
    }
    if (request.offset + BigInt(length) > BigInt(disk.size())) {
      const error =
        command === COMMAND.read || command === COMMAND.trim ? ERROR.EINVAL : ERROR.ENOSPC
      return new Refusal(error, 'the request goes beyond the end')
    }
    return undefined
  }

  #expectPayload(request: Request): void {
    if (this.#bytes.length >= request.length) {
      this.#start(request, this.#bytes.take(request.length))
      return
    }
    const buffer = this.#options.buffers.take(request.length)
    this.#incoming = { request, buffer, filled: 0 }
  }

  #readPayload(): boolean {
    const incoming = this.#incoming!
    const { request, buffer } = incoming
    incoming.filled += this.#bytes.copyTo(buffer.subarray(incoming.filled, request.length))
    if (incoming.filled < request.length) return false
    this.#incoming = undefined
    this.#start(request, buffer.subarray(0, request.length), buffer)
    return true
  }

  /** @param pooled the buffer to give back, where `data` lies in one of the pool */
  #start(request: Request, data: Buffer | undefined, pooled?: Buffer): void {
    const held = request.command === COMMAND.read ? request.length : (data?.length ?? 0)
    this.#requests++
    this.#pendingBytes += held
    const finished = () => {
      if (pooled !== undefined) this.#options.buffers.give(pooled)
      this.#requests--
      this.#pendingBytes -= held
      this.#finish()
      this.#proceed()
    }
    if (request.command === COMMAND.read) this.#read(request, finished)
    else {
      const done = this.#carryOut(request, data)
      done
        .then(
          () => this.#send(simpleReply(request.cookie, 0)),
          (error) => this.#answerError(request, error),
        )
        .finally(finished)
    }
  }

  #read(request: Request, finished: () => void): void {
    const { buffers, disk } = this.#options
    const { cookie, offset, length } = request
    const buffer = buffers.take(length)
    const data = buffer.subarray(0, length)
    const release = () => {
      buffers.give(buffer)
      finished()
    }
    disk.read(Number(offset), data).then(
      () => {
        const structured = this.#negotiation!.structured
        this.#send(structured ? readChunk(cookie, offset, length) : simpleReply(cookie, 0))
        // The bytes count as under way until the client has taken them.
        this.#send(data, release)
      },
      (error) => {
        this.#answerError(request, error)
        release()
      },
    )
  }

  async #carryOut(request: Request, data: Buffer | undefined): Promise<void> {
    const { disk } = this.#options
    const { command, flags, length } = request
    const offset = Number(request.offset)
    const fua = (flags & COMMAND_FLAG.fua) !== 0
    if (command === COMMAND.flush) await disk.flush()
    else if (command === COMMAND.write) {
      if (data !== undefined) await disk.write(offset, data, fua)
    } else {
      if (command === COMMAND.trim && length > 0) await disk.trim(offset, length)
      if (command === COMMAND.writeZeroes) await this.#writeZeroes(offset, length)
      if (fua) await disk.flush()
    }
  }

  async #writeZeroes(offset: number, length: number): Promise<void> {
    for (let done = 0; done < length; done += ZEROES.length) {
      const part = ZEROES.subarray(0, Math.min(ZEROES.length, length - done))
      await this.#options.disk.write(offset + done, part, false)
    }
  }

  #answerError(request: Request, thrown: unknown): void {
    const error = errorNumber(thrown)
    if (!(thrown instanceof Refusal)) this.#options.onError(thrown, request)
    const chunked = this.#negotiation!.structured && request.command === COMMAND.read
    const message = thrown instanceof Error ? thrown.message : String(thrown)
    const { cookie } = request
    this.#send(chunked ? errorChunk(cookie, error, message) : simpleReply(cookie, error))
  }

  /** Sends; what one turn of the event loop sends goes out together. */
  #send(bytes: Buffer, sent: () => void = () => {}): void {
    if (this.#socket.destroyed) {
      sent()
      return
    }
    if (!this.#corked) {
      this.#corked = true
      this.#socket.cork()
      setImmediate(() => {
        this.#corked = false
        this.#socket.uncork()
      })
    }
    this.#socket.write(bytes, sent)
  }

  /** The client broke the protocol. */
  #drop(): boolean {
    this.#phase = 'ended'
    this.#socket.destroy()
    return false
  }

  /** Ends the socket once nothing is under way and nobody will ask again. */
  #finish(): void {
    const over = this.#phase === 'ended' || this.#socket.readableEnded
    if (!over || this.#requests > 0 || this.#socket.writableEnded) return
    this.#phase = 'ended'
    this.#socket.end(() => this.#socket.destroy())
  }

  #close(): void {
    if (this.#ended) return
    this.#ended = true
    this.#phase = 'ended'
    clearTimeout(this.#handshake)
    this.#bytes.clear()
    if (this.#incoming !== undefined) this.#options.buffers.give(this.#incoming.buffer)
    this.#incoming = undefined
    this.#options.onEnd()
  }
}

const ALLOWED_FLAGS: ReadonlyMap<number, number> = new Map([
  [COMMAND.read, COMMAND_FLAG.df],
  [COMMAND.write, COMMAND_FLAG.fua],
  [COMMAND.flush, 0],
  [COMMAND.trim, COMMAND_FLAG.fua],
  [COMMAND.writeZeroes, COMMAND_FLAG.fua | COMMAND_FLAG.noHole],
])

function errorNumber(thrown: unknown): number {
  if (thrown instanceof Refusal) return thrown.error
  if (!(thrown instanceof VbdError)) return ERROR.EIO
  switch (thrown.code) {
    case 'ERR_VBD_ARGUMENT':
      return ERROR.EINVAL
    case 'ERR_VBD_UNSUPPORTED':
      return ERROR.ENOTSUP
    case 'ERR_VBD_BUSY':
      return ERROR.ENOMEM
    case 'ERR_VBD_STATE':
    case 'ERR_VBD_NOT_FOUND':
      return ERROR.ESHUTDOWN
    default:
      return ERROR.EIO
  }
}
