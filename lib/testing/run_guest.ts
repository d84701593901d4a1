/**
 * runGuest: a guest with one disk, and that disk as NBD: everything of `vbdkit guest` but its arguments and its
 * output.
 *
 * The event loop's thread only. Owns the MockGuest, its Frontend and the NbdServer; close(), the signal, or the end
 * of the disk or of the mock ends all three.
 */
import { throwIfAborted, type VbdError } from '../errors.js'
import { claimSocketPath } from '../xenstore/socket_file.js'
import type { Frontend } from './frontend.js'
import type { ConnectionSummary, FrontendEvents, Violation } from './frontend_events.js'
import type { FrontendOptions } from './frontend_options.js'
import { MockGuest, type MockGuestOptions } from './guest.js'
import { type NbdAddress, NbdServer } from './nbd/server.js'
import { nbdDiskOf } from './nbd_disk.js'

export interface RunGuestOptions
  extends Omit<MockGuestOptions, 'memoryBytes'>,
    Pick<FrontendOptions, 'protocol' | 'queues' | 'ringOrder' | 'persistent' | 'manners'>,
    Pick<FrontendOptions, 'reconnect' | 'connectTimeoutMs' | 'closeTimeoutMs'> {
  readonly vdev: string | number
  /** Re-export the disk on this unix socket. */
  readonly nbdSocket?: string | undefined
  /** Re-export the disk on this TCP port of 127.0.0.1; 0 chooses one. */
  readonly nbdPort?: number | undefined
  /** Segments of an indirect request; 0: none are sent. 32 by default. */
  readonly indirect?: number | undefined
  /** The guest's memory. 64 MiB by default. */
  readonly memoryBytes?: number | undefined
  /** Milliseconds without an answer after which `stalled` is told, 100 up. 10000 by default. */
  readonly stallMs?: number | undefined
  /** Told of everything that happens, in order. */
  readonly onEvent?: ((event: GuestEvent) => void) | undefined
  /** Ends the guest, also while it starts. */
  readonly signal?: AbortSignal | undefined
}

export type GuestEvent =
  | { readonly type: 'joined'; readonly domid: number }
  | { readonly type: 'state'; readonly side: 'frontend' | 'backend'; readonly state: number }
  | { readonly type: 'key'; readonly path: string; readonly value: string }
  | { readonly type: 'connected'; readonly connection: ConnectionSummary }
  | { readonly type: 'nbd'; readonly uri: string }
  | { readonly type: 'resize'; readonly sizeBytes: number; readonly previousBytes: number }
  | { readonly type: 'disconnected'; readonly reason: string }
  | { readonly type: 'feature-lost'; readonly feature: FrontendEvents['feature-lost'][0] }
  | { readonly type: 'violation'; readonly violation: Violation }
  /** Requests are on the rings, and none was answered for so long. */
  | { readonly type: 'stalled'; readonly requests: number; readonly milliseconds: number }
  | { readonly type: 'resumed' }
  /** The disk failed a request of an NBD client; at most ten a minute are told. */
  | { readonly type: 'request-failed'; readonly message: string }
  /** The end: wanted (no failure), or for the reason given. */
  | { readonly type: 'closed'; readonly failure: VbdError | undefined }

export interface RunningGuest extends AsyncDisposable {
  readonly guest: MockGuest
  readonly frontend: Frontend
  readonly connection: ConnectionSummary
  readonly nbd: NbdServer | undefined
  /** Resolves when the guest was closed; rejects with the VbdError that ended it otherwise. */
  readonly done: Promise<void>
  /** Closes NBD, disk and guest. Idempotent, never rejects. */
  close(): Promise<void>
}

const STALL_MS = 10_000
const FAILURES_PER_MINUTE = 10

/**
 * Starts a guest; resolves when its disk can be used (and is exported).
 *
 * @throws what MockGuest.join, Frontend.connect and NbdServer.listen throw; nothing is left then
 */
export async function runGuest(options: RunGuestOptions): Promise<RunningGuest> {
  const { signal, nbdSocket } = options
  throwIfAborted(signal)
  // What is wrong with the socket is told before the guest bothers anyone.
  if (nbdSocket !== undefined) await claimSocketPath(nbdSocket)
  const guest = await MockGuest.join(options)
  try {
    options.onEvent?.({ type: 'joined', domid: guest.domid })
    const frontend = guest.frontend(options.vdev, {
      ...options,
      indirectSegments: options.indirect,
    })
    const run = new Run(guest, frontend, options)
    const connection = await frontend.connect({ signal })
    const nbd = await run.exportNbd()
    throwIfAborted(signal)
    run.watch()
    const close = () => run.close()
    return {
      guest,
      frontend,
      connection,
      nbd,
      done: run.done,
      close,
      [Symbol.asyncDispose]: close,
    }
  } catch (error) {
    await guest.close()
    throw error
  }
}

/** The parts of a running guest, and their end. */
class Run {
  readonly done: Promise<void>
  readonly #guest: MockGuest
  readonly #frontend: Frontend
  readonly #options: RunGuestOptions
  readonly #tell: (event: GuestEvent) => void
  readonly #onAbort = () => void this.close()
  #finish!: (failure: VbdError | undefined) => void
  #nbd: NbdServer | undefined
  #watchdog: NodeJS.Timeout | undefined
  #stalled = false
  #closing: Promise<void> | undefined

  constructor(guest: MockGuest, frontend: Frontend, options: RunGuestOptions) {
    this.#guest = guest
    this.#frontend = frontend
    this.#options = options
    this.#tell = options.onEvent ?? (() => {})
    this.done = new Promise((resolve, reject) => {
      this.#finish = (failure) => (failure === undefined ? resolve() : reject(failure))
    })
    // Who does not look at `done` has heard of it as an event.
    this.done.catch(() => {})
    this.#forward()
  }

  #forward(): void {
    const tell = this.#tell
    const frontend = this.#frontend
    frontend.on('state', (change) => tell({ type: 'state', ...change }))
    frontend.on('key', (key) => tell({ type: 'key', ...key }))
    frontend.on('connected', (connection) => tell({ type: 'connected', connection }))
    frontend.on('resize', (size) => tell({ type: 'resize', ...size }))
    frontend.on('disconnected', (reason) => tell({ type: 'disconnected', reason }))
    frontend.on('feature-lost', (feature) => tell({ type: 'feature-lost', feature }))
    frontend.on('violation', (violation) => tell({ type: 'violation', violation }))
  }

  async exportNbd(): Promise<NbdServer | undefined> {
    const { nbdSocket, nbdPort } = this.#options
    if (nbdSocket === undefined && nbdPort === undefined) return undefined
    const address: NbdAddress =
      nbdSocket !== undefined ? { path: nbdSocket } : { port: nbdPort ?? 0 }
    this.#nbd = await NbdServer.listen(address, {
      disk: nbdDiskOf(this.#frontend),
      onError: this.#limited((error) => {
        const message = error instanceof Error ? error.message : String(error)
        this.#tell({ type: 'request-failed', message })
      }),
    })
    this.#tell({ type: 'nbd', uri: this.#nbd.uri })
    return this.#nbd
  }

  #limited(report: (error: unknown) => void): (error: unknown) => void {
    let minute = 0
    let told = 0
    return (error) => {
      const now = Math.floor(Date.now() / 60_000)
      if (now !== minute) told = 0
      minute = now
      if (told++ < FAILURES_PER_MINUTE) report(error)
    }
  }

  /** From here on the guest ends by itself, or by its user. */
  watch(): void {
    this.#frontend.once('closed', () => void this.close())
    this.#options.signal?.addEventListener('abort', this.#onAbort, { once: true })
    this.#watchForStalls()
    if (this.#frontend.state === 'closed') void this.close()
  }

  /** A backend that was killed leaves no trace in the store: that nothing is answered is all that can be seen. */
  #watchForStalls(): void {
    const stallMs = Math.max(100, this.#options.stallMs ?? STALL_MS)
    let answered = this.#frontend.answered
    let since = Date.now()
    this.#watchdog = setInterval(() => {
      const { requests } = this.#frontend.load
      const milliseconds = Date.now() - since
      if (requests === 0 || this.#frontend.answered !== answered) {
        answered = this.#frontend.answered
        since = Date.now()
        if (this.#stalled) this.#tell({ type: 'resumed' })
        this.#stalled = false
      } else if (!this.#stalled && milliseconds >= stallMs) {
        this.#stalled = true
        this.#tell({ type: 'stalled', requests, milliseconds })
      }
    }, stallMs / 10).unref()
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    clearInterval(this.#watchdog)
    this.#options.signal?.removeEventListener('abort', this.#onAbort)
    if (this.#stalled) await this.#frontend.close({ drain: false })
    await this.#nbd?.close()
    await this.#frontend.close()
    await this.#guest.close()
    const failure = this.#guest.failure ?? this.#frontend.failure
    this.#tell({ type: 'closed', failure })
    this.#finish(failure)
  }
}
