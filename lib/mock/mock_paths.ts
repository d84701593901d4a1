/** Where a mock Xen keeps its sockets. Pure. */
import { join, resolve } from 'node:path'
import { storeSocketPath } from '../xenstore/socket_file.js'

export interface MockPaths {
  readonly dir: string
  /** Xenstore as domain 0. */
  readonly xenstore: string
  /** The hypervisor's broker. */
  readonly xen: string
  /** Xenstore as domain `domid`. */
  guestXenstore(domid: number): string
}

/** @param dir the directory that was given to `MockHost.start` or to `vbdkit mock` */
export function mockPaths(dir: string): MockPaths {
  const absolute = resolve(dir)
  return {
    dir: absolute,
    xenstore: storeSocketPath(absolute),
    xen: join(absolute, 'xen.sock'),
    guestXenstore: (domid) => storeSocketPath(absolute, domid),
  }
}
