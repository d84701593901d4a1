/**
 * Platform: what a backend stands on, a hypervisor and its xenstore and an engine on both. Says which of them this
 * host has, and opens them in order; whoever opens it closes it, in the opposite order.
 */
import { availableParallelism } from 'node:os'
import type { Engine, Placement, Tunables } from './engine/engine.js'
import { openHostXen } from './engine/host.js'
import type { JsIo } from './engine/js/engine.js'
import { loadAddon } from './engine/load_addon.js'
import { createNativeEngine, type NativeXenConnection, openMockXen } from './engine/native.js'
import { VbdError } from './errors.js'
import type { MockHost } from './mock/mock_host.js'
import { mockPaths } from './mock/mock_paths.js'
import { openHostStore, resolveXen, type XenChoice } from './store.js'
import { connectXenstore } from './xenstore/client.js'
import type { Xenstore } from './xenstore/xenstore.js'

/** Which implementation moves the data. */
export type EngineChoice = 'native' | 'js'

export type { JsIo }

export interface Platform {
  readonly kind: 'mock' | 'host'
  /** Our own domain. */
  readonly domid: number
  readonly store: Xenstore
  readonly engine: Engine
  /** With `xen: 'mock'`: the mock in this process, to make guests on. */
  readonly mock?: MockHost
  /** Has `listener` told of grant calls that slept in the kernel; absent where none can. */
  onSlowGuest?(listener: SlowGuestListener): void
  close(): Promise<void>
}

/** A grant call for the guest `domid` took `elapsedMs`: pages of it are paged out. */
export type SlowGuestListener = (domid: number, elapsedMs: number) => void

export interface PlatformOptions {
  readonly xen: XenChoice
  readonly engine: EngineChoice
  /** How the JavaScript engine does file I/O: node:fs (default), or one io_uring call a pass. */
  readonly jsIo?: JsIo
  /** Threads of the native engine, 1..64; with the placement `guest`, at most so many for each guest. */
  readonly reactors: number
  /** Whose they are; by default each guest's own on a Xen host, and shared on the mock. */
  readonly placement?: Placement
  readonly tunables: Tunables
}

/**
 * Opens what the options name.
 *
 * @throws ERR_VBD_NO_XEN, ERR_VBD_UNSUPPORTED, ERR_VBD_ARGUMENT, each with what to do
 */
export async function openPlatform(options: PlatformOptions): Promise<Platform> {
  checkChoice('engine', options.engine, ['native', 'js'])
  if (options.jsIo !== undefined) checkChoice('way of I/O', options.jsIo, ['fs', 'uring'])
  const xen = resolveXen(options.xen)
  if (xen === 'mock') return openInProcessMock(options)
  if (xen === 'host') return openHost(options)
  return openMock(xen.dir, options)
}

/** Half of the processors, 1 to 4. */
export function defaultReactors(): number {
  return Math.max(1, Math.min(4, Math.floor(availableParallelism() / 2)))
}

function checkChoice(what: string, given: string, choices: readonly string[]): void {
  if (choices.includes(given)) return
  throw new VbdError('ERR_VBD_ARGUMENT', `there is no ${what} '${given}'`, {
    remedy: `use ${choices.join(' or ')}`,
  })
}

/** This machine's Xen. Whether there is one is settled first: xenstore may answer where no guest can be served. */
async function openHost(options: PlatformOptions): Promise<Platform> {
  openHostXen({ domid: 0 }).close()
  const { store, domid } = await openHostStore()
  try {
    const listeners: SlowGuestListener[] = []
    const onSlow: SlowGuestListener = (guest, elapsedMs) => {
      for (const listener of listeners) listener(guest, elapsedMs)
    }
    const platform = await assemble(openHostXen({ domid, onSlow }), store, options)
    return { ...platform, onSlowGuest: (listener) => void listeners.push(listener) }
  } catch (thrown) {
    await store.close()
    throw thrown
  }
}

async function openInProcessMock(options: PlatformOptions): Promise<Platform> {
  const { MockHost } = await import('./mock/mock_host.js')
  const addon = loadAddon()
  const mock = await MockHost.start({ broker: addon.startMockBroker.bind(addon) })
  try {
    const platform = await openMock(mock.dir, options)
    return {
      ...platform,
      mock,
      async close() {
        await platform.close()
        await mock.close()
      },
    }
  } catch (thrown) {
    await mock.close()
    throw thrown
  }
}

async function openMock(dir: string, options: PlatformOptions): Promise<Platform> {
  const paths = mockPaths(dir)
  const xen = openMockXen(paths.xen)
  let store: Xenstore | undefined
  try {
    store = await connectXenstore({ path: paths.xenstore })
    return await assemble(xen, store, options)
  } catch (thrown) {
    await store?.close()
    xen.close()
    throw thrown
  }
}

/** An engine on both. Closes `xen`, not `store`, where it fails. */
async function assemble(
  xen: NativeXenConnection,
  store: Xenstore,
  options: PlatformOptions,
): Promise<Platform> {
  try {
    const engine = await createEngine(xen, options)
    return { kind: xen.kind, domid: xen.domid, store, engine, close: closer(engine, store, xen) }
  } catch (thrown) {
    xen.close()
    throw thrown
  }
}

async function createEngine(xen: NativeXenConnection, options: PlatformOptions): Promise<Engine> {
  const { reactors, placement, tunables, jsIo = 'fs' } = options
  if (options.engine === 'js') {
    const { createJsEngine } = await import('./engine/js/engine.js')
    return createJsEngine({ xen, tunables, io: jsIo })
  }
  return createNativeEngine({
    xen,
    reactors,
    ...(placement === undefined ? {} : { placement }),
    tunables,
    name: 'vbdkit',
  })
}

/** The engine first: it still has to unmap. Idempotent. */
function closer(engine: Engine, store: Xenstore, xen: { close(): void }): () => Promise<void> {
  let closed: Promise<void> | undefined
  const close = async () => {
    try {
      await engine.close()
    } finally {
      await store.close()
      xen.close()
    }
  }
  return () => {
    closed ??= close()
    return closed
  }
}
