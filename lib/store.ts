/**
 * Store: which Xen is meant, and its xenstore alone: all that a command needs which does what a toolstack does, and the
 * first part of a Platform.
 */
import { isControlDomain, openXenbusDevice } from './engine/host.js'
import { VbdError } from './errors.js'
import { mockPaths } from './mock/mock_paths.js'
import { connectXenstore } from './xenstore/client.js'
import type { Xenstore } from './xenstore/xenstore.js'

/**
 * Where Xen is. `auto`: this host's Xen, if it has one. `host`: this host's Xen. `mock`: a mock Xen inside this
 * process. `mock:DIR`: the mock that `vbdkit mock DIR` runs.
 */
export type XenChoice = 'auto' | 'host' | 'mock' | `mock:${string}`

/**
 * What is meant.
 *
 * @throws ERR_VBD_ARGUMENT for every choice that there is not
 */
export function resolveXen(xen: XenChoice): 'mock' | 'host' | { dir: string } {
  if (xen === 'mock') return 'mock'
  if (xen.startsWith('mock:') && xen.length > 5) return { dir: xen.slice(5) }
  if (xen === 'auto' || xen === 'host') return 'host'
  throw new VbdError('ERR_VBD_ARGUMENT', `'${xen}' is no place where Xen could be`, {
    remedy: 'use auto, host, mock or mock:DIR',
  })
}

/**
 * xenstore alone, for what a toolstack does.
 *
 * @returns the store, to be closed, and our own domain
 * @throws ERR_VBD_NO_XEN, ERR_VBD_ARGUMENT for `mock`, which is in another process
 */
export async function openStore(choice: XenChoice): Promise<{ store: Xenstore; domid: number }> {
  const xen = resolveXen(choice)
  if (xen === 'mock') {
    throw new VbdError('ERR_VBD_ARGUMENT', 'the mock Xen of this process has no guests', {
      remedy: 'use mock:DIR, as given to `vbdkit mock DIR`',
    })
  }
  if (xen !== 'host') {
    return { store: await connectXenstore({ path: mockPaths(xen.dir).xenstore }), domid: 0 }
  }
  return openHostStore()
}

/** The same on this machine's Xen. */
export async function openHostStore(): Promise<{ store: Xenstore; domid: number }> {
  const store = await connectXenstore({ openDevice: openXenbusDevice })
  try {
    return { store, domid: await ownDomid(store) }
  } catch (thrown) {
    await store.close()
    throw thrown
  }
}

/** A relative path begins at our own domain's directory, where the toolstack has written who we are. */
async function ownDomid(store: Xenstore): Promise<number> {
  if (isControlDomain()) return 0
  const text = await store.read('domid')
  if (/^(0|[1-9]\d{0,4})$/.test(text) && Number(text) <= 32751) return Number(text)
  throw new VbdError('ERR_VBD_NO_XEN', 'xenstore does not say which domain this is', {
    path: 'domid',
    remedy: 'have the toolstack write the domain id at `domid` in the domain’s directory',
  })
}
