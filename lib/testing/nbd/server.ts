/**
 * NbdServer: re-exports a disk over NBD (fixed newstyle), on a unix socket or on a TCP port of this machine.
 *
 * The event loop's thread only. Owns its listening socket, whose file it removes when it closes, and its
 * connections; the disk stays its owner's. NBD has no way to tell a client that a disk was resized: connections made
 * afterwards see the new size, and so must clients connect again.
 */
import { createServer, type Server, type Socket } from 'node:net'
import { VbdError } from '../../errors.js'
import { listenUnix } from '../../xenstore/socket_file.js'
import { BufferPool } from './buffers.js'
import { NbdConnection } from './connection.js'
import type { NbdDisk } from './disk.js'
import type { Request } from './protocol.js'

/** `{ path }`: a unix socket. `{ port }`: TCP on 127.0.0.1 (or `host`); 0 chooses one. */
export type NbdAddress =
  | { readonly path: string }
  | { readonly port: number; readonly host?: string | undefined }

export interface NbdServerOptions {
  readonly disk: NbdDisk
  /** Clients may ask for this name or for none. The empty name by default. */
  readonly exportName?: string | undefined
  /** Connections at a time; more are closed at once. 64 by default. */
  readonly maxConnections?: number | undefined
  /** How long a client's handshake may take, in ms. 10000 by default. */
  readonly handshakeMs?: number | undefined
  /** Told when the disk failed a request. */
  readonly onError?: ((error: unknown, request: Request) => void) | undefined
}

/** How long close() waits for requests under way, in ms. */
const CLOSE_MS = 5000
const KEPT_BUFFER_BYTES = 16 * 1024 * 1024

/** An NBD server for one disk. */
export class NbdServer implements AsyncDisposable {
  readonly #server: Server
  readonly #address: NbdAddress
  readonly #connections: Set<NbdConnection>
  readonly #gone: Set<() => void>
  #closing: Promise<void> | undefined

  /**
   * Listens.
   *
   * @throws ERR_VBD_BUSY when something listens there already, ERR_VBD_ARGUMENT when the path cannot be a socket or
   * its
   *   directory is missing. A socket that a dead process left is replaced.
   */
  static async listen(address: NbdAddress, options: NbdServerOptions): Promise<NbdServer> {
    const connections = new Set<NbdConnection>()
    const gone = new Set<() => void>()
    const buffers = new BufferPool(KEPT_BUFFER_BYTES)
    const { disk, exportName = '', maxConnections = 64, handshakeMs = 10_000 } = options
    const onSocket = (socket: Socket) => {
      if (connections.size >= maxConnections) {
        socket.destroy()
        return
      }
      const connection: NbdConnection = new NbdConnection(socket, {
        disk,
        exportName,
        buffers,
        handshakeMs,
        onError: options.onError ?? (() => {}),
        onEnd: () => {
          connections.delete(connection)
          if (connections.size === 0) for (const tell of gone) tell()
        },
      })
      connections.add(connection)
    }
    const server =
      'path' in address
        ? await listenUnix(address.path, onSocket)
        : await listenTcp(address, onSocket)
    return new NbdServer(server, address, connections, gone)
  }

  private constructor(
    server: Server,
    address: NbdAddress,
    connections: Set<NbdConnection>,
    gone: Set<() => void>,
  ) {
    this.#server = server
    this.#address = address
    this.#connections = connections
    this.#gone = gone
  }

  /** As nbdinfo, qemu-img and fio take it. */
  get uri(): string {
    const address = this.#address
    if ('path' in address) return `nbd+unix:///?socket=${encodePath(address.path)}`
    return `nbd://${address.host ?? '127.0.0.1'}:${this.port}`
  }

  /** The TCP port; 0 on a unix socket. */
  get port(): number {
    const bound = this.#server.address()
    return bound === null || typeof bound === 'string' ? 0 : bound.port
  }

  get connections(): number {
    return this.#connections.size
  }

  /**
   * Stops listening, answers what is under way (5 s at most), closes every connection, removes the
   * socket file. Idempotent.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    const closed = new Promise<void>((resolve) => {
      this.#server.close(() => resolve())
    })
    for (const connection of this.#connections) connection.end()
    await this.#allGone()
    for (const connection of this.#connections) connection.destroy()
    await closed
  }

  /** Resolves when no connection is left, or when the time is over. */
  #allGone(): Promise<void> {
    if (this.#connections.size === 0) return Promise.resolve()
    return new Promise((resolve) => {
      const tell = () => {
        clearTimeout(timer)
        this.#gone.delete(tell)
        resolve()
      }
      const timer = setTimeout(tell, CLOSE_MS)
      this.#gone.add(tell)
    })
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

function encodePath(path: string): string {
  return encodeURIComponent(path).replaceAll('%2F', '/')
}

async function listenTcp(
  address: { port: number; host?: string | undefined },
  onSocket: (socket: Socket) => void,
): Promise<Server> {
  const server = createServer(onSocket)
  const { port, host = '127.0.0.1' } = address
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => {
      const busy = cause.code === 'EADDRINUSE'
      const message = busy
        ? `port ${port} of ${host} is in use`
        : `cannot listen on port ${port} of ${host} (${cause.code})`
      const remedy = busy ? 'stop what uses it, or choose another port' : 'choose another port'
      reject(new VbdError(busy ? 'ERR_VBD_BUSY' : 'ERR_VBD_ARGUMENT', message, { cause, remedy }))
    })
    server.listen(port, host, resolve)
  })
  return server
}
