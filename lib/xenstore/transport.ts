/**
 * What carries packets to the daemon: a unix socket. Runs on Node's event loop; owns the socket, knows no xenstore.
 *
 * The client sees the `Transport` interface only, so that /dev/xen/xenbus can stand beside the socket: hence one
 * `send` per packet (the device executes one packet per write), `maxPayload` (4080 there), and events that are
 * bytes, not packets.
 */
import { createConnection, type Socket } from 'node:net'
import { VbdError } from '../errors.js'
import { backoffMs, pause } from './backoff.js'
import { PAYLOAD_MAX } from './wire.js'

export interface TransportEvents {
  data(chunk: Buffer): void
  /** Once, when the connection is gone for any reason but `close()`. */
  lost(cause: Error | undefined): void
}

export interface Transport {
  /** Bytes of payload that one packet may carry outward. */
  readonly maxPayload: number
  /** Sends one whole packet. Quietly nothing after the loss. */
  send(packet: Buffer): void
  /** Resolves when nothing of it is left open. No event follows. */
  close(): Promise<void>
}

/** Makes one connection, or rejects. */
export type Dial = (events: TransportEvents, signal: AbortSignal) => Promise<Transport>

/** `$XENSTORED_PATH`, else `${XENSTORED_RUNDIR:-/run/xenstored}/socket`, as libxenstore finds it. */
export function defaultXenstorePath(env: NodeJS.ProcessEnv = process.env): string {
  return env.XENSTORED_PATH || `${env.XENSTORED_RUNDIR || '/run/xenstored'}/socket`
}

export interface DialOptions {
  /** How long a busy or just restarting daemon is tried again, in ms. */
  patienceMs: number
  /** Wait also for a socket that does not exist yet, as a guest whose domain is still being made. */
  awaitSocket?: boolean
}

/**
 * Connects to a daemon's unix socket.
 *
 * The daemons listen with a backlog of 1: a connect may find it full (EAGAIN) and is tried again, as is one that finds
 * the socket of a daemon about to listen again (ECONNREFUSED, for at most a second).
 *
 * @throws VbdError ERR_VBD_NO_XEN when there is no daemon at `path`
 */
export function dialUnix(path: string, options: DialOptions): Dial {
  return async (events, signal) => {
    const started = Date.now()
    for (let attempt = 0; ; attempt++) {
      try {
        return await connectOnce(path, events, signal)
      } catch (error) {
        const errno = (error as NodeJS.ErrnoException).code
        const patience = patienceMs(errno, options)
        if (signal.aborted || Date.now() - started >= patience) throw noDaemon(path, error)
        await pause(backoffMs(attempt, 5, 250), signal)
      }
    }
  }
}

function patienceMs(errno: string | undefined, options: DialOptions): number {
  if (errno === 'EAGAIN') return options.patienceMs
  if (errno === 'ECONNREFUSED') {
    return options.awaitSocket ? options.patienceMs : Math.min(options.patienceMs, 1000)
  }
  return errno === 'ENOENT' && options.awaitSocket ? options.patienceMs : 0
}

function noDaemon(path: string, cause: unknown): VbdError {
  const errno = (cause as NodeJS.ErrnoException).code ?? String(cause)
  const remedy =
    errno === 'EACCES'
      ? 'run as root: the socket belongs to the toolstack'
      : 'start xenstored, or set XENSTORED_PATH to its socket; without Xen, start the mock'
  return new VbdError('ERR_VBD_NO_XEN', `no xenstore at ${path} (${errno})`, {
    path,
    cause,
    remedy,
  })
}

function connectOnce(
  path: string,
  events: TransportEvents,
  signal: AbortSignal,
): Promise<Transport> {
  return new Promise((resolve, reject) => {
    const socket = createConnection({ path })
    const fail = (error: Error) => {
      socket.destroy()
      reject(error)
    }
    const abort = () => fail(new Error('aborted'))
    signal.addEventListener('abort', abort, { once: true })
    socket.once('error', fail)
    socket.once('connect', () => {
      signal.removeEventListener('abort', abort)
      socket.off('error', fail)
      resolve(new UnixTransport(socket, events))
    })
    socket.once('close', () => signal.removeEventListener('abort', abort))
  })
}

class UnixTransport implements Transport {
  readonly maxPayload = PAYLOAD_MAX
  readonly #socket: Socket
  readonly #closed: Promise<void>
  #closing = false

  constructor(socket: Socket, events: TransportEvents) {
    this.#socket = socket
    let cause: Error | undefined
    socket.on('data', (chunk: Buffer) => {
      if (!this.#closing) events.data(chunk)
    })
    socket.on('error', (error) => {
      cause = error
    })
    this.#closed = new Promise((resolve) => {
      socket.once('close', () => {
        resolve()
        if (!this.#closing) events.lost(cause)
      })
    })
  }

  send(packet: Buffer): void {
    if (this.#socket.writable) this.#socket.write(packet)
  }

  close(): Promise<void> {
    this.#closing = true
    this.#socket.destroy()
    return this.#closed
  }
}
