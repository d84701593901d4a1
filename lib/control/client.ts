/**
 * ControlClient: asks a running `serve` over its control socket. One connection, many requests; owned by a command.
 */
import net from 'node:net'
import { VbdError } from '../errors.js'
import {
  type ControlCall,
  type ControlResponse,
  errorFromWire,
  LineSplitter,
  MAX_RESPONSE_BYTES,
  parseLine,
  responseSchema,
} from './protocol.js'

/** A `serve` that answers at all answers at once; a resize may wait for the disk. */
const DEFAULT_TIMEOUT_MS = 30_000

type Listener = (response: ControlResponse | VbdError) => void

/** A connection to one `serve`. Close it; it keeps the process alive. */
export class ControlClient {
  readonly path: string
  readonly #socket: net.Socket
  readonly #waiting = new Map<number, Listener>()
  #lastId = 0
  #lost: VbdError | undefined

  private constructor(path: string, socket: net.Socket) {
    this.path = path
    this.#socket = socket
    const lines = new LineSplitter(MAX_RESPONSE_BYTES)
    socket.on('data', (chunk: Buffer) => {
      try {
        for (const line of lines.push(chunk)) this.#receive(parseLine(responseSchema, line))
      } catch (cause) {
        const message = `${path} does not speak vbdkit's control protocol`
        this.#fail(new VbdError('ERR_VBD_PROTOCOL', message, { path, cause }))
      }
    })
    socket.on('error', (cause) => this.#fail(this.#gone(cause)))
    socket.on('close', () => this.#fail(this.#gone()))
  }

  /** Rejects with ERR_VBD_NOT_FOUND when nobody listens there. */
  static connect(path: string): Promise<ControlClient> {
    return new Promise((resolve, reject) => {
      const socket = net.connect(path)
      socket.once('error', (cause: NodeJS.ErrnoException) => {
        reject(
          new VbdError(
            'ERR_VBD_NOT_FOUND',
            `nothing answers on ${path}: ${cause.code ?? cause.message}`,
            {
              path,
              cause,
              remedy: 'start `vbdkit serve`, or name its socket with --control SOCKET',
            },
          ),
        )
      })
      socket.once('connect', () => {
        socket.removeAllListeners('error')
        resolve(new ControlClient(path, socket))
      })
    })
  }

  /**
   * One request, one result. Rejects with the server's error, with ERR_VBD_NOT_FOUND when it goes away, and with
   * ERR_VBD_TIMEOUT after `timeoutMs`.
   */
  async call(call: ControlCall, timeoutMs = DEFAULT_TIMEOUT_MS): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        settle()
        const message = `no answer to ${call.verb} from ${this.path} within ${timeoutMs / 1000} s`
        reject(new VbdError('ERR_VBD_TIMEOUT', message, { path: this.path }))
      }, timeoutMs)
      const id = this.#ask(call, (response) => {
        settle()
        if (response instanceof VbdError) reject(response)
        else if ('event' in response)
          reject(new VbdError('ERR_VBD_PROTOCOL', 'an event instead of a result'))
        else if (response.ok) resolve(response.result)
        else reject(errorFromWire(response.error))
      })
      const settle = () => {
        clearTimeout(timer)
        this.#waiting.delete(id)
      }
    })
  }

  /** Statistics every `everyMs` (50..3600000), until the server goes away (rejects) or the loop is left. */
  stats(vbd: string, everyMs: number): AsyncGenerator<Record<string, unknown>> {
    return this.events({ verb: 'stats', vbd, everyMs })
  }

  /** What a call tells, event by event, until the server ends it or goes away (rejects), or the loop is left. */
  async *events(call: ControlCall): AsyncGenerator<Record<string, unknown>> {
    const arrived: (ControlResponse | VbdError)[] = []
    let wake = () => {}
    const id = this.#ask(call, (response) => {
      arrived.push(response)
      wake()
    })
    try {
      for (;;) {
        const response = arrived.shift()
        if (response === undefined) {
          await new Promise<void>((resolve) => {
            wake = resolve
          })
        } else if (response instanceof VbdError) throw response
        else if ('event' in response) yield response.event
        else if (!response.ok) throw errorFromWire(response.error)
        else return
      }
    } finally {
      this.#waiting.delete(id)
    }
  }

  close(): void {
    this.#lost ??= new VbdError('ERR_VBD_ABORTED', 'closed')
    this.#socket.destroy()
  }

  #ask(call: ControlCall, listener: Listener): number {
    const id = ++this.#lastId
    this.#waiting.set(id, listener)
    const lost = this.#lost
    if (lost === undefined) this.#socket.write(`${JSON.stringify({ id, ...call })}\n`)
    else queueMicrotask(() => listener(lost))
    return id
  }

  #receive(response: ControlResponse): void {
    if (response.id !== 0) {
      this.#waiting.get(response.id)?.(response)
    } else if ('ok' in response && !response.ok) {
      // It could not tell which request it was: everyone who waits must know.
      this.#fail(errorFromWire(response.error))
    }
  }

  #gone(cause?: unknown): VbdError {
    return new VbdError('ERR_VBD_NOT_FOUND', `the server behind ${this.path} went away`, {
      path: this.path,
      cause,
    })
  }

  #fail(error: VbdError): void {
    this.#lost ??= error
    for (const listener of [...this.#waiting.values()]) listener(this.#lost)
    this.#socket.destroy()
  }
}
