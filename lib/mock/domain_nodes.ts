/**
 * What a toolstack writes to xenstore for a new domain (libxl, libxl_create.c): the domain reads its own directory and
 * writes only where it must. A disk's directories are not its business: they come with the disk.
 */
import { hasErrno } from '../xenstore/operations.js'
import { domainPath } from '../xenstore/path.js'
import { PRIVILEGED } from '../xenstore/permission.js'
import type { Store } from '../xenstore/store.js'
import type { Permission } from '../xenstore/xenstore.js'

export interface DomainDescription {
  readonly domid: number
  readonly name: string
  readonly uuid: string
  readonly memoryKib: number
}

const WRITABLE = [
  'control/shutdown',
  'control/sysrq',
  'data',
  'drivers',
  'feature',
  'attr',
  'error',
]

/** Writes all of it at once: nobody sees a part. */
export function writeDomainNodes(store: Store, domain: DomainDescription): void {
  const { domid, name, uuid, memoryKib } = domain
  const home = domainPath(domid)
  const vm = vmPath(uuid)
  const readable: Permission[] = [
    { access: 'n', domid: 0 },
    { access: 'r', domid },
  ]
  for (const path of [home, vm, `${home}/memory`, `${home}/control`, `${home}/device`]) {
    store.mkdir(PRIVILEGED, path)
    store.setPermissions(PRIVILEGED, path, readable)
  }
  const values = {
    [`${vm}/name`]: name,
    [`${vm}/uuid`]: uuid,
    [`${home}/vm`]: vm,
    [`${home}/name`]: name,
    [`${home}/domid`]: `${domid}`,
    [`${home}/memory/static-max`]: `${memoryKib}`,
    [`${home}/memory/target`]: `${memoryKib}`,
  }
  for (const [path, value] of Object.entries(values)) store.write(PRIVILEGED, path, value)
  for (const path of WRITABLE) {
    store.mkdir(PRIVILEGED, `${home}/${path}`)
    store.setPermissions(PRIVILEGED, `${home}/${path}`, [{ access: 'n', domid }])
  }
}

/** As `xl destroy` has it: the domain's nodes go first, @releaseDomain comes after. */
export function removeDomainNodes(store: Store, domid: number, uuid: string): void {
  for (const path of [domainPath(domid), vmPath(uuid)]) {
    try {
      store.remove(PRIVILEGED, path)
    } catch (error) {
      // Its parent is not there either: whoever is domain 0 may have removed all of it.
      if (!hasErrno(error, 'ENOENT')) throw error
    }
  }
}

function vmPath(uuid: string): string {
  return `/vm/${uuid}`
}
