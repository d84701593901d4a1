/**
 * A mock Xen host in this process: the native broker (domains, grants, event channels, on a thread of its own) and the
 * xenstore server, kept in step as hypervisor, toolstack and xenstored are on a real host.
 *
 *   guest or backend ──DIR/xen.sock──────────► broker ──created, dying, destroyed──┐
 *   backend          ──DIR/xenstored.sock────► XenstoreServer ◄── nodes, sockets ── MockHost
 *   guest N          ──DIR/xenstored-N.sock──►
 *
 * Runs on Node's event loop. Owns the broker, the server and, where it made it, the directory.
 *
 * Not modelled: what a toolstack does for devices (console, xenstore's own ring, device model), shutdown requests,
 * save and restore. A domain's disks are made and removed by who serves them.
 */
import { randomUUID } from 'node:crypto'
import type {
  Addon,
  MockDomain,
  MockFault,
  NativeError,
  NativeMockBroker,
} from '../engine/addon.js'
import { VbdError } from '../errors.js'
import type { StoreFault } from '../xenstore/faults.js'
import { XenstoreServer } from '../xenstore/server.js'
import { claimSocketPath } from '../xenstore/socket_file.js'
import { removeDomainNodes, writeDomainNodes } from './domain_nodes.js'
import { DOMID_LIMIT, type MockDir, openMockDir } from './mock_dir.js'
import { type MockPaths, mockPaths } from './mock_paths.js'

export { type MockPaths, mockPaths } from './mock_paths.js'

export interface MockHostOptions {
  /** Made with mode 0700 when it does not exist; a temporary directory when absent. */
  dir?: string
  /** `startMockBroker` of the addon. */
  broker: Addon['startMockBroker']
  /** Told when a domain that another process made cannot be served. A process warning by default. */
  onError?: (error: VbdError) => void
}

export type DomainEvent = Parameters<Parameters<Addon['startMockBroker']>[1]>[0]

interface Waiter {
  readonly event: DomainEvent
  readonly domid: number
  resolve(): void
  reject(error: VbdError): void
}

const PAGE_KIB = 4

/** A running mock host; see the header. Made by `start`, ended by `close`. */
export class MockHost {
  readonly paths: MockPaths
  readonly server: XenstoreServer
  readonly #dir: MockDir
  readonly #onError: (error: VbdError) => void
  readonly #uuids = new Map<number, string>()
  readonly #waiters = new Set<Waiter>()
  #broker: NativeMockBroker | undefined
  #events: Promise<void> = Promise.resolve()
  #closed: Promise<void> | undefined

  /**
   * Starts the host; both sockets are there when it resolves.
   * @throws VbdError ERR_VBD_BUSY when another mock runs in `dir`, ERR_VBD_ARGUMENT when `dir` cannot be used,
   * ERR_VBD_NO_XEN when the broker does not start
   */
  static async start(options: MockHostOptions): Promise<MockHost> {
    const dir = await openMockDir(options.dir)
    let server: XenstoreServer | undefined
    try {
      server = await XenstoreServer.listen(dir.path)
      await claimSocketPath(mockPaths(dir.path).xen)
      return new MockHost(dir, server, options)
    } catch (error) {
      await server?.close()
      await dir.remove()
      throw error
    }
  }

  private constructor(dir: MockDir, server: XenstoreServer, options: MockHostOptions) {
    this.#dir = dir
    this.#onError = options.onError ?? ((error) => process.emitWarning(error))
    this.server = server
    this.paths = mockPaths(dir.path)
    const path = this.paths.xen
    try {
      this.#broker = options.broker(path, (event, domid) => this.#onDomain(event, domid))
    } catch (error) {
      const { code, remedy } =
        errnoOf(error) === EADDRINUSE
          ? {
              code: 'ERR_VBD_BUSY' as const,
              remedy: 'stop the other mock, or use another directory',
            }
          : { code: 'ERR_VBD_NO_XEN' as const, remedy: 'use a directory where sockets can be made' }
      const message = `the mock Xen cannot start: ${messageOf(error)}`
      throw new VbdError(code, message, { path, cause: error, remedy })
    }
  }

  get dir(): string {
    return this.paths.dir
  }

  /**
   * Makes a domain; resolves when its nodes and its socket are there.
   * @param domid 1..32751
   * @param pages of memory, of 4096 bytes each, 1 up
   * @throws VbdError ERR_VBD_BUSY when there is one with this number, ERR_VBD_ARGUMENT
   */
  async createDomain(domid: number, pages: number): Promise<void> {
    checkDomid(domid)
    if (!Number.isInteger(pages) || pages < 1) {
      throw new VbdError('ERR_VBD_ARGUMENT', `a domain cannot have ${pages} pages`)
    }
    const broker = this.#running()
    if (this.#find(domid) !== undefined) {
      const remedy = 'destroy it first, or use another number'
      throw new VbdError('ERR_VBD_BUSY', `domain ${domid} exists already`, { remedy })
    }
    await this.#whenTold('created', domid, () => broker.createDomain(domid, pages))
  }

  /**
   * Destroys a domain as `xl destroy` does; resolves when xenstore knows it no more. It stays `dying` in `domains()`
   * until its peers have unmapped its pages.
   * @throws VbdError ERR_VBD_NOT_FOUND when there is none that lives
   */
  async destroyDomain(domid: number): Promise<void> {
    const broker = this.#running()
    if (this.#find(domid)?.dying !== false) {
      throw new VbdError('ERR_VBD_NOT_FOUND', `there is no domain ${domid}`)
    }
    await this.#whenTold('dying', domid, () => broker.destroyDomain(domid))
  }

  /** The domains as the broker accounts for them. */
  domains(): MockDomain[] {
    return this.#running().domains()
  }

  /** Replaces the rules by which grant and event channel calls fail, in all processes of this mock. */
  setFaults(faults: readonly MockFault[]): void {
    this.#running().setFaults(faults)
  }

  /** Replaces the rules by which xenstore requests fail. */
  setStoreFaults(faults: readonly StoreFault[]): void {
    this.server.setFaults(faults)
  }

  /** Stops everything: guests and backends lose their connections. Removes what `start` made. May be called again. */
  close(): Promise<void> {
    this.#closed ??= this.#shutDown()
    return this.#closed
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #shutDown(): Promise<void> {
    const broker = this.#broker
    this.#broker = undefined
    for (const waiter of this.#waiters) waiter.reject(stopped())
    this.#waiters.clear()
    broker?.close()
    await this.#events
    await this.server.close()
    await this.#dir.remove()
  }

  #running(): NativeMockBroker {
    if (this.#broker === undefined) throw stopped()
    return this.#broker
  }

  #find(domid: number): MockDomain | undefined {
    return this.#running()
      .domains()
      .find((domain) => domain.domid === domid)
  }

  /** Does something to a domain, and waits until its event has been worked off. */
  #whenTold(event: DomainEvent, domid: number, act: () => void): Promise<void> {
    return new Promise((resolve, reject) => {
      const waiter: Waiter = { event, domid, resolve, reject }
      this.#waiters.add(waiter)
      try {
        act()
      } catch (error) {
        this.#waiters.delete(waiter)
        reject(fromNative(error, domid))
      }
    })
  }

  /** Events are worked off one after the other: the next may be about the same domain. */
  #onDomain(event: DomainEvent, domid: number): void {
    this.#events = this.#events.then(async () => {
      try {
        if (event === 'created') await this.#appear(domid)
        else await this.#vanish(domid)
        this.#settle(event, domid, undefined)
      } catch (error) {
        this.#settle(event, domid, asVbdError(error, domid))
      }
    })
  }

  #settle(event: DomainEvent, domid: number, error: VbdError | undefined): void {
    const told = [...this.#waiters].filter((one) => one.event === event && one.domid === domid)
    for (const waiter of told) {
      this.#waiters.delete(waiter)
      if (error === undefined) waiter.resolve()
      else waiter.reject(error)
    }
    if (error !== undefined && told.length === 0) this.#onError(error)
  }

  async #appear(domid: number): Promise<void> {
    if (this.#broker === undefined) return
    const pages = this.#find(domid)?.pages ?? 0
    const uuid = randomUUID()
    this.#uuids.set(domid, uuid)
    await this.server.addDomain(domid)
    const { store } = this.server
    writeDomainNodes(store, { domid, name: `guest-${domid}`, uuid, memoryKib: pages * PAGE_KIB })
    store.introduce(domid)
  }

  /** Of a domain that dies, and again when it is gone: whatever came first has done it. */
  async #vanish(domid: number): Promise<void> {
    const uuid = this.#uuids.get(domid)
    if (uuid === undefined) return
    this.#uuids.delete(domid)
    removeDomainNodes(this.server.store, domid, uuid)
    await this.server.removeDomain(domid)
  }
}

const EEXIST = 17
const EADDRINUSE = 98

function checkDomid(domid: number): void {
  if (Number.isInteger(domid) && domid >= 1 && domid < DOMID_LIMIT) return
  throw new VbdError('ERR_VBD_ARGUMENT', `${domid} cannot be a guest's domain number`, {
    remedy: `use a number from 1 to ${DOMID_LIMIT - 1}`,
  })
}

function fromNative(error: unknown, domid: number): VbdError {
  if (error instanceof VbdError) return error
  const code = errnoOf(error) === EEXIST ? 'ERR_VBD_BUSY' : 'ERR_VBD_ARGUMENT'
  return new VbdError(code, `domain ${domid}: ${messageOf(error)}`, { cause: error })
}

function asVbdError(error: unknown, domid: number): VbdError {
  if (error instanceof VbdError) return error
  return new VbdError('ERR_VBD_INTERNAL', `domain ${domid}: ${messageOf(error)}`, { cause: error })
}

function errnoOf(error: unknown): number | undefined {
  return (error as Partial<NativeError>).errno
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

function stopped(): VbdError {
  return new VbdError('ERR_VBD_STATE', 'the mock Xen has stopped')
}
