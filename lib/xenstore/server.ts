/**
 * Serves an in-memory store on unix sockets: `DIR/xenstored.sock` as domain 0, `DIR/xenstored-N.sock` as domain N,
 * which has that domain's rights and whose relative paths begin at /local/domain/N. Runs on Node's event loop; owns
 * its sockets.
 *
 * Whoever can open a socket is that domain: the directory's mode is the guard.
 */
import type { Server, Socket } from 'node:net'
import { FaultPlan, type StoreFault } from './faults.js'
import { Session } from './session.js'
import { listenUnix, storeSocketPath } from './socket_file.js'
import { Store } from './store.js'
import { PAYLOAD_MAX, PacketParser } from './wire.js'

interface Door {
  readonly server: Server
  readonly sockets: Set<Socket>
}

/** A store on its sockets; see the header. Made by `listen`, ended by `close`. */
export class XenstoreServer {
  readonly dir: string
  readonly store: Store
  readonly #doors = new Map<number, Door>()
  #faults = new FaultPlan()

  /**
   * Serves domain 0; domains follow with `addDomain`.
   * @throws VbdError ERR_VBD_BUSY when another server listens there, ERR_VBD_ARGUMENT when no socket can be made in
   * `dir`
   */
  static async listen(dir: string, store = new Store()): Promise<XenstoreServer> {
    const server = new XenstoreServer(dir, store)
    await server.#listen(0)
    return server
  }

  private constructor(dir: string, store: Store) {
    this.dir = dir
    this.store = store
  }

  /** Makes the domain known to the store and serves it on a socket of its own. Nothing when it is there already. */
  async addDomain(domid: number): Promise<void> {
    this.store.addDomain(domid)
    if (!this.#doors.has(domid)) await this.#listen(domid)
  }

  /** Drops the domain's connections and its socket; the store releases it, which fires @releaseDomain. */
  async removeDomain(domid: number): Promise<void> {
    if (domid === 0) return
    await this.#shut(domid)
    this.store.removeDomain(domid)
  }

  /** Replaces all faults; their counts begin anew. */
  setFaults(faults: readonly StoreFault[]): void {
    this.#faults = new FaultPlan(faults)
  }

  /** Drops the connections of a domain, or all: as when the daemon is restarted with its contents kept. */
  dropConnections(domid?: number): void {
    for (const [owner, door] of this.#doors) {
      if (domid !== undefined && domid !== owner) continue
      for (const socket of door.sockets) socket.destroy()
    }
  }

  /** Connections that are open, of one domain or of all. */
  connections(domid?: number): number {
    let count = 0
    for (const [owner, door] of this.#doors) {
      if (domid === undefined || domid === owner) count += door.sockets.size
    }
    return count
  }

  /** Drops all connections and removes the sockets. May be called again. */
  async close(): Promise<void> {
    await Promise.all([...this.#doors.keys()].map((domid) => this.#shut(domid)))
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #listen(domid: number): Promise<void> {
    const sockets = new Set<Socket>()
    const server = await listenUnix(storeSocketPath(this.dir, domid), (socket) => {
      sockets.add(socket)
      socket.once('close', () => sockets.delete(socket))
      this.#serve(socket, domid)
    })
    this.#doors.set(domid, { server, sockets })
  }

  async #shut(domid: number): Promise<void> {
    const door = this.#doors.get(domid)
    if (door === undefined) return
    this.#doors.delete(domid)
    const closed = new Promise<void>((resolve) => door.server.close(() => resolve()))
    for (const socket of door.sockets) socket.destroy()
    await closed
  }

  #serve(socket: Socket, domid: number): void {
    const parser = new PacketParser(PAYLOAD_MAX)
    const output = {
      write: (packet: Buffer) => socket.write(packet),
      drop: () => void socket.destroy(),
    }
    const session = new Session(this.store, domid, output, () => this.#faults)
    socket.on('data', (chunk: Buffer) => {
      // One system call for all the answers to what came in one.
      socket.cork()
      try {
        parser.push(chunk, (packet) => {
          if (!session.receive(packet)) socket.pause()
        })
      } catch {
        // Too long a message: the C daemon drops the connection, too.
        socket.destroy()
      }
      socket.uncork()
    })
    socket.on('drain', () => {
      if (session.flush()) socket.resume()
    })
    socket.on('error', () => socket.destroy())
    socket.once('close', () => session.close())
  }
}
