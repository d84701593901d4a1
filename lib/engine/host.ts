/**
 * This machine's Xen, through the addon: the connection that the native engine needs, the xenbus device for the
 * xenstore client, what `doctor` looks at, and the service manager's socket. JavaScript thread.
 */
import { readFileSync } from 'node:fs'
import { VbdError } from '../errors.js'
import type { HostProbe, NativeXenbusDevice } from './addon.js'
import { loadAddon } from './load_addon.js'
import type { NativeXenConnection } from './native.js'
import { translate } from './native_errors.js'

export interface HostXenOptions {
  /** Our own domain, 0 in a dom0. */
  readonly domid: number
  /**
   * A grant call for the guest `domid` slept in the kernel, and with it whoever shared its thread: its pages are paged
   * out. The engine serves such a guest apart from then on; this is for telling someone.
   */
  readonly onSlow?: (domid: number, elapsedMs: number) => void
}

/**
 * Opens this machine's Xen.
 *
 * @throws ERR_VBD_NO_XEN with everything that is missing, ERR_VBD_UNSUPPORTED without an addon
 */
export function openHostXen(options: HostXenOptions): NativeXenConnection {
  const addon = loadAddon()
  const listeners: ((domid: number) => void)[] = []
  let native: NativeXenConnection['native']
  try {
    native = addon.openHostXen((domid, elapsedMs) => {
      for (const listener of listeners) listener(domid)
      options.onSlow?.(domid, elapsedMs)
    })
  } catch (cause) {
    const { message } = translate(cause, {})
    throw new VbdError('ERR_VBD_NO_XEN', message, {
      remedy:
        'run as root in dom0 or a driver domain with libxengnttab1 and libxenevtchn1, ' +
        'or use the mock Xen with mock or mock:DIR',
      cause,
    })
  }
  let open = true
  return {
    kind: 'host',
    domid: options.domid,
    native,
    onSlowGuest: (listener) => void listeners.push(listener),
    close() {
      if (!open) return
      open = false
      native.close()
    },
  }
}

/**
 * What this machine has of what a backend on real Xen needs; opens nothing that stays open.
 *
 * @throws ERR_VBD_UNSUPPORTED without an addon
 */
export function probeHost(): HostProbe {
  return loadAddon().probeHost()
}

/** True in dom0, as the kernel says it: the domain that controls the others. */
export function isControlDomain(path = '/proc/xen/capabilities'): boolean {
  try {
    return readFileSync(path, 'latin1').includes('control_d')
  } catch {
    return false
  }
}

/** What happens on the device, for `openXenbusDevice`. */
export interface XenbusDeviceEvents {
  data(chunk: Buffer): void
  refused(packet: Buffer, errno: number): void
  lost(errno: number): void
}

/**
 * Opens /dev/xen/xenbus for the xenstore client (its `openDevice`).
 *
 * @throws an Error with a positive `errno`
 */
export function openXenbusDevice(path: string, events: XenbusDeviceEvents): NativeXenbusDevice {
  return loadAddon().openXenbusDevice(
    path,
    (chunk) => events.data(chunk),
    (packet, errno) => events.refused(packet, errno),
    (errno) => events.lost(errno),
  )
}

/**
 * Tells the service manager (systemd's sd_notify) how the process is: `READY=1`, `WATCHDOG=1`, `STATUS=...`. False
 * where no one listens, or not any more: a service never fails for that.
 */
export function notifyServiceManager(text: string, env: NodeJS.ProcessEnv = process.env): boolean {
  const socket = env.NOTIFY_SOCKET
  if (!socket) return false
  try {
    loadAddon().sdNotify(socket, text)
    return true
  } catch {
    return false
  }
}
