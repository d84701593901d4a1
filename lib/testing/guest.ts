/**
 * MockGuest: a guest domain of a mock Xen, as its own kernel: memory, grants, event channels, and xenstore as an
 * unprivileged client. Its disks are Frontends.
 *
 *   MockGuest ──owns──► native guest (memory, ports)     DIR/xen.sock
 *      │      ──owns──► xenstore client                  DIR/xenstored-<domid>.sock
 *      └──owns──► Frontends ──use──► GuestContext (this)
 *
 * The event loop's thread only; events come in from the addon's thread as calls on this one. When the mock dies, the
 * guest ends with a VbdError in `failure`, and so does every disk of it.
 */
import { EventEmitter, setMaxListeners } from 'node:events'
import { existsSync } from 'node:fs'
import type { Server } from 'node:net'
import type { Addon, NativeError, NativeMockGuest } from '../engine/addon.js'
import { loadAddon } from '../engine/load_addon.js'
import { toVbdError, VbdError } from '../errors.js'
import { mockPaths } from '../mock/mock_paths.js'
import { MAX_DOMID, parseVdev } from '../units.js'
import { connectXenstore } from '../xenstore/client.js'
import type { Xenstore } from '../xenstore/xenstore.js'
import type { OperationOptions } from './disk_io.js'
import { waitForHome, within } from './front_bus.js'
import { Frontend } from './frontend.js'
import type { FrontendOptions } from './frontend_options.js'
import type { GuestContext } from './guest_context.js'
import { GuestMemory } from './guest_memory.js'
import { takeSeat } from './guest_seat.js'
import { PAGE_BYTES } from './wire.js'

export interface MockGuestOptions {
  /** The mock's directory, as given to `vbdkit mock`. */
  readonly dir: string
  /** 1..32751. The domain is made when there is none. */
  readonly domid: number
  /** Memory of a domain that is made, in bytes. 64 MiB by default. */
  readonly memoryBytes?: number | undefined
  /** The addon's function, where another one is to be used. */
  readonly connectGuest?: Addon['connectMockGuest'] | undefined
  /** How to reach xenstore, where another way is to be used. */
  readonly openXenstore?: ((socketPath: string) => Promise<Xenstore>) | undefined
}

export interface MockGuestEvents {
  /** The guest is gone: closed (undefined), or for the reason given. */
  closed: [failure: VbdError | undefined]
}

const DEFAULT_MEMORY_BYTES = 64 * 1024 * 1024

export class MockGuest
  extends EventEmitter<MockGuestEvents>
  implements GuestContext, AsyncDisposable
{
  readonly domid: number
  readonly native: NativeMockGuest
  readonly memory: GuestMemory
  readonly xenstore: Xenstore
  readonly #seat: Server
  readonly #handlers: Map<number, () => void>
  readonly #frontends = new Set<Frontend>()
  readonly #life = new AbortController()
  /** Resolves when the mock has ended our xenstore connection. */
  readonly #forgotten: Promise<void>
  /** The domain lives as long as we do. */
  #isOurs = false
  #closing: Promise<void> | undefined

  /**
   * Joins the mock that runs in `dir`.
   *
   * @throws ERR_VBD_NO_XEN when none does, ERR_VBD_BUSY when another process is that guest or the domain is dying,
   *   ERR_VBD_ARGUMENT for numbers out of range
   */
  static async join(options: MockGuestOptions): Promise<MockGuest> {
    const { domid } = options
    const paths = mockPaths(options.dir)
    const pages = pagesOf(domid, options.memoryBytes ?? DEFAULT_MEMORY_BYTES)
    const seat = await takeSeat(paths.dir, domid)
    const socket = paths.guestXenstore(domid)
    const isNew = !existsSync(socket)
    let native: NativeMockGuest | undefined
    let guest: MockGuest | undefined
    const handlers = new Map<number, () => void>()
    const onEvent = (ports: number[]) => {
      for (const port of ports) handlers.get(port)?.()
    }
    let gone = false
    const onClose = () => {
      gone = true
      guest?.fail(mockIsGone())
    }
    try {
      const connect = options.connectGuest ?? loadAddon().connectMockGuest
      native = joinBroker(() => connect(paths.xen, domid, pages, onEvent, onClose), paths.xen)
      const open = options.openXenstore ?? ((path) => connectXenstore({ path, awaitSocket: true }))
      const xenstore = await enterXenstore(open, socket, domid)
      guest = new MockGuest(domid, native, xenstore, seat, handlers)
      guest.#isOurs = isNew
      if (gone) guest.fail(mockIsGone())
      return guest
    } catch (error) {
      native?.close()
      seat.close()
      throw error
    }
  }

  private constructor(
    domid: number,
    native: NativeMockGuest,
    xenstore: Xenstore,
    seat: Server,
    handlers: Map<number, () => void>,
  ) {
    super()
    this.domid = domid
    this.native = native
    this.xenstore = xenstore
    this.#seat = seat
    this.#handlers = handlers
    // A page of a guest that is gone is nobody's: giving it back must work all the same.
    this.memory = new GuestMemory({
      memory: native.memory,
      grant: (...grant) => native.grant(...grant),
      endAccess: (ref) => this.signal.aborted || native.endAccess(ref),
    })
    setMaxListeners(0, this.signal)
    this.#forgotten = new Promise((resolve) => {
      xenstore.onConnection((state) => {
        if (state !== 'lost') return
        this.fail(new VbdError('ERR_VBD_XENSTORE', "the mock's xenstore is gone"))
        resolve()
      })
    })
  }

  /** Fires when the guest ends. */
  get signal(): AbortSignal {
    return this.#life.signal
  }

  /** Why the guest ended, unless its user closed it. */
  get failure(): VbdError | undefined {
    const { reason } = this.signal
    return this.signal.aborted && reason !== CLOSED ? (reason as VbdError) : undefined
  }

  /**
   * Connects a disk: waits for the toolstack's nodes and does the handshake.
   *
   * @param vdev `xvda`, 51712, ...: whatever xl takes
   * @throws what Frontend.connect throws
   */
  async disk(
    vdev: string | number,
    options: FrontendOptions & OperationOptions = {},
  ): Promise<Frontend> {
    const frontend = this.frontend(vdev, options)
    await frontend.connect({ signal: options.signal })
    return frontend
  }

  /** A disk that is not connected yet: for those who want to hear its first events. */
  frontend(vdev: string | number, options: FrontendOptions = {}): Frontend {
    if (this.signal.aborted) throw toVbdError(this.signal.reason, 'ERR_VBD_STATE')
    const frontend = new Frontend(this, parseVdev(vdev), options)
    this.#frontends.add(frontend)
    return frontend
  }

  openPort(domid: number, handler: () => void): number {
    const port = this.native.allocUnbound(domid)
    this.#handlers.set(port, () => {
      handler()
      if (this.#handlers.has(port) && !this.signal.aborted) this.native.unmask(port)
    })
    return port
  }

  closePort(port: number): void {
    this.#handlers.delete(port)
    if (!this.signal.aborted) this.native.closePort(port)
  }

  /** Ends the guest, its disks first. Nothing of it is left in the mock then. Idempotent, never rejects. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    await Promise.all([...this.#frontends].map((frontend) => frontend.close()))
    const isAlive = !this.signal.aborted
    this.#end(CLOSED)
    if (isAlive && this.#isOurs) await this.#isForgotten()
    await this.xenstore.close()
  }

  /** The mock forgets a domain shortly after its end; who comes next under this number must not meet its remains. */
  async #isForgotten(): Promise<void> {
    const late = () => new VbdError('ERR_VBD_TIMEOUT', 'the mock does not forget the guest')
    await within(this.#forgotten, { timeoutMs: FORGET_MS }, late).catch(() => {})
  }

  /** Ends the guest at once, for this reason. */
  fail(failure: VbdError): void {
    if (this.signal.aborted) return
    this.#end(failure)
    void this.xenstore.close()
  }

  #end(reason: VbdError): void {
    if (this.signal.aborted) return
    this.#life.abort(reason)
    this.#handlers.clear()
    this.native.close()
    this.#seat.close()
    this.emit('closed', this.failure)
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

/** How long close() waits for the mock to have noticed. */
const FORGET_MS = 2000

/** How long join() waits for the toolstack's part. */
const HOME_MS = 10_000

/** The reason of a guest that its user closed. */
const CLOSED = new VbdError('ERR_VBD_STATE', 'the guest is closed')

function pagesOf(domid: number, memoryBytes: number): number {
  if (!Number.isInteger(domid) || domid < 1 || domid > MAX_DOMID) {
    throw new VbdError('ERR_VBD_ARGUMENT', `domain ${domid} is not 1 to ${MAX_DOMID}`)
  }
  const least = 64 * PAGE_BYTES
  if (Number.isSafeInteger(memoryBytes) && memoryBytes >= least && memoryBytes <= 2 ** 34) {
    return Math.ceil(memoryBytes / PAGE_BYTES)
  }
  const message = `a guest cannot have ${memoryBytes} bytes of memory`
  throw new VbdError('ERR_VBD_ARGUMENT', message, { remedy: 'use 256 KiB to 16 GiB' })
}

function mockIsGone(): VbdError {
  return new VbdError('ERR_VBD_STATE', 'the mock Xen is gone, or has destroyed this guest')
}

const ENOENT = 2
const EBUSY = 16
const ECONNREFUSED = 111

function joinBroker(connect: () => NativeMockGuest, path: string): NativeMockGuest {
  try {
    return connect()
  } catch (thrown) {
    if (thrown instanceof VbdError) throw thrown
    const { errno, message } = thrown as NativeError
    const code = Math.abs(errno ?? 0)
    if (code === ENOENT || code === ECONNREFUSED) {
      throw new VbdError('ERR_VBD_NO_XEN', 'no mock Xen runs there', {
        path,
        remedy: 'start one: vbdkit mock DIR',
        cause: thrown,
      })
    }
    if (code === EBUSY) {
      throw new VbdError('ERR_VBD_BUSY', 'the domain is dying', {
        path,
        remedy: 'wait until its backend has let go of it, or use another domain number',
        cause: thrown,
      })
    }
    const failure = code === 0 ? 'ERR_VBD_INTERNAL' : 'ERR_VBD_NO_XEN'
    throw new VbdError(failure, `the mock Xen refused: ${message}`, { path, cause: thrown })
  }
}

/**
 * The guest's own socket appears shortly after its domain does, and the domain's nodes after that. A reset is the
 * socket of an earlier domain of this number, which goes just now.
 */
async function enterXenstore(
  open: (path: string) => Promise<Xenstore>,
  path: string,
  domid: number,
): Promise<Xenstore> {
  for (let resets = 0; ; resets++) {
    let xenstore: Xenstore | undefined
    try {
      xenstore = await open(path)
      await waitForHome(xenstore, domid, HOME_MS)
      return xenstore
    } catch (error) {
      await xenstore?.close()
      if (!isReset(error) || resets === 3) throw error
    }
  }
}

function isReset(error: unknown): boolean {
  const { errno, cause } = error as { errno?: unknown; cause?: { code?: unknown } }
  return errno === 'ECONNRESET' || cause?.code === 'ECONNRESET'
}
