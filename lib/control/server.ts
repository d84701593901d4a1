/**
 * ControlServer: the unix socket over which a running `serve` is asked and told things. It owns the socket file and its
 * clients, and nothing else: what a request does is the target's business. A client that is slow misses statistics, one
 * that breaks the protocol is told so and cut off; neither disturbs the disks.
 */
import { setMaxListeners } from 'node:events'
import { mkdirSync } from 'node:fs'
import type { Server, Socket } from 'node:net'
import { dirname } from 'node:path'
import { within } from '../deadline.js'
import { toVbdError, VbdError } from '../errors.js'
import { listenUnix } from '../xenstore/socket_file.js'
import {
  type ControlRequest,
  type ControlResponse,
  errorToWire,
  LineSplitter,
  MAX_CLIENTS,
  MAX_PENDING_PER_CLIENT,
  MAX_REQUEST_BYTES,
  parseLine,
  requestSchema,
  type Tuning,
} from './protocol.js'

/** Unsent bytes of one client above which no more statistics are made for it, and no more requests taken. */
const MAX_UNSENT_BYTES = 1024 * 1024
/** How long a client is given to read its last answers: guests wait for our end. */
const LAST_ANSWERS_MS = 500

/** What a control socket controls. Results travel as JSON; rejections as VbdErrors. */
export interface ControlTarget {
  list(): unknown
  info(vbd: string): unknown
  /** How it is served, with the same as `text`. */
  explain(vbd: string): unknown
  stats(vbd: string): unknown
  /** Statistics every `everyMs`, until the signal fires or the vbd is gone. */
  stream(vbd: string, everyMs: number, signal: AbortSignal): AsyncIterable<object>
  resize(vbd: string, sizeBytes: number, shrink: boolean): Promise<unknown>
  pause(vbd: string): Promise<unknown>
  resume(vbd: string): Promise<unknown>
  swap(vbd: string, params: string, shrink: boolean): Promise<unknown>
  snapshot(vbd: string): Promise<unknown>
  commit(vbd: string): Promise<unknown>
  reset(vbd: string, force: boolean): Promise<unknown>
  /** Traced requests, until the signal fires or the vbd is gone. */
  trace(vbd: string, signal: AbortSignal): AsyncIterable<object>
  /** Without `vbd`: all of them, and those to come. */
  tune(vbd: string | undefined, tuning: Tuning): unknown
  /** After `tune`, where it is given. */
  stages(vbd: string, tune?: { stage: string; settings: Record<string, number> }): unknown
  /** Begins an orderly shut-down; the answer is sent before it. */
  stop(): void
}

/** The listening control socket. Close it to remove the socket file. */
export class ControlServer {
  readonly path: string
  readonly #target: ControlTarget
  #server: Server | undefined
  readonly #clients = new Set<Client>()

  private constructor(path: string, target: ControlTarget) {
    this.path = path
    this.#target = target
  }

  /**
   * Listens on `path` with mode 0600, making its folder (0700) when there is none and replacing a socket that nobody
   * answers on. Rejects with ERR_VBD_BUSY when somebody does, or something else is in its place, and ERR_VBD_ARGUMENT
   * when the path does not fit a socket address.
   */
  static async listen(path: string, target: ControlTarget): Promise<ControlServer> {
    makeFolder(path)
    const control = new ControlServer(path, target)
    control.#server = await listenUnix(path, (socket) => control.#accept(socket))
    return control
  }

  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server?.close(() => resolve()))
    for (const client of this.#clients) client.close()
    if (await within(closed, LAST_ANSWERS_MS)) return
    for (const client of this.#clients) client.drop()
    await closed
  }

  #accept(socket: Socket): void {
    const full = this.#clients.size >= MAX_CLIENTS
    const client = new Client(socket, this.#target, () => this.#clients.delete(client))
    this.#clients.add(client)
    if (full) {
      client.refuse(new VbdError('ERR_VBD_BUSY', `${MAX_CLIENTS} clients are connected already`))
    }
  }
}

/** One connection. */
class Client {
  readonly #socket: Socket
  readonly #target: ControlTarget
  readonly #gone = new AbortController()
  #pending = 0

  constructor(socket: Socket, target: ControlTarget, onGone: () => void) {
    this.#socket = socket
    this.#target = target
    // Each stream of the client listens.
    setMaxListeners(0, this.#gone.signal)
    const lines = new LineSplitter(MAX_REQUEST_BYTES)
    socket.on('data', (chunk: Buffer) => {
      try {
        for (const line of lines.push(chunk)) this.#line(line)
      } catch (thrown) {
        this.refuse(toVbdError(thrown))
      }
    })
    socket.on('drain', () => socket.resume())
    socket.on('error', () => socket.destroy())
    socket.on('close', () => {
      this.#gone.abort()
      onGone()
    })
  }

  close(): void {
    this.#socket.end()
    this.#socket.destroySoon()
  }

  /** Whatever it has not read. */
  drop(): void {
    this.#socket.destroy()
  }

  refuse(error: VbdError): void {
    this.#socket.removeAllListeners('data')
    this.#send({ id: 0, ok: false, error: errorToWire(error) })
    this.close()
  }

  #line(line: string): void {
    // Refused for a line before this one.
    if (line === '' || this.#socket.writableEnded) return
    let request: ControlRequest
    try {
      request = parseLine(requestSchema, line)
    } catch (thrown) {
      this.#send({ id: 0, ok: false, error: errorToWire(toVbdError(thrown)) })
      return
    }
    if (this.#pending >= MAX_PENDING_PER_CLIENT) {
      this.refuse(
        new VbdError('ERR_VBD_BUSY', `more than ${MAX_PENDING_PER_CLIENT} requests at once`),
      )
      return
    }
    this.#pending++
    this.#answer(request).finally(() => this.#pending--)
  }

  async #answer(request: ControlRequest): Promise<void> {
    const { id } = request
    try {
      const stream = this.#streamOf(request)
      if (stream !== undefined) {
        await this.#stream(id, stream)
        return
      }
      this.#send({ id, ok: true, result: await this.#perform(request) })
      if (request.verb === 'stop') this.#target.stop()
    } catch (thrown) {
      this.#send({ id, ok: false, error: errorToWire(toVbdError(thrown)) })
    }
  }

  #streamOf(request: ControlRequest): AsyncIterable<object> | undefined {
    if (request.verb === 'trace') return this.#target.trace(request.vbd, this.#gone.signal)
    if (request.verb !== 'stats' || request.everyMs === undefined) return undefined
    return this.#target.stream(request.vbd, request.everyMs, this.#gone.signal)
  }

  async #perform(request: ControlRequest): Promise<unknown> {
    switch (request.verb) {
      case 'list':
        return this.#target.list()
      case 'info':
        return this.#target.info(request.vbd)
      case 'explain':
        return this.#target.explain(request.vbd)
      case 'stats':
        return this.#target.stats(request.vbd)
      case 'resize':
        return this.#target.resize(request.vbd, request.sizeBytes, request.shrink === true)
      case 'tune':
        return this.#target.tune(request.vbd, request.tuning)
      case 'stages':
        return this.#target.stages(request.vbd, request.tune)
      case 'pause':
        return this.#target.pause(request.vbd)
      case 'resume':
        return this.#target.resume(request.vbd)
      case 'swap':
        return this.#target.swap(request.vbd, request.params, request.shrink === true)
      case 'snapshot':
        return this.#target.snapshot(request.vbd)
      case 'commit':
        return this.#target.commit(request.vbd)
      case 'reset':
        return this.#target.reset(request.vbd, request.force === true)
      case 'trace':
      case 'stop':
        return {}
    }
  }

  /** Ends with an answer when the vbd is gone. */
  async #stream(id: number, events: AsyncIterable<object>): Promise<void> {
    for await (const event of events) {
      this.#send({ id, event: event as Record<string, unknown> })
      if (this.#socket.writableLength > MAX_UNSENT_BYTES) await this.#drained()
    }
    this.#send({ id, ok: true, result: {} })
  }

  #drained(): Promise<void> {
    return new Promise((resolve) => {
      const done = () => {
        this.#socket.off('drain', done)
        this.#socket.off('close', done)
        resolve()
      }
      this.#socket.once('drain', done)
      this.#socket.once('close', done)
    })
  }

  #send(response: ControlResponse): void {
    if (!this.#socket.writable) return
    this.#socket.write(`${JSON.stringify(response)}\n`)
    if (this.#socket.writableLength > MAX_UNSENT_BYTES) this.#socket.pause()
  }
}

function makeFolder(path: string): void {
  try {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
  } catch (cause) {
    throw new VbdError('ERR_VBD_ARGUMENT', `cannot make a folder for the control socket ${path}`, {
      path,
      cause,
      remedy: 'choose another place with --control SOCKET',
    })
  }
}
