/** Permissions as text (`n0`, `r7`) and what they let a caller do. Pure. */
import { type Permission, XenstoreError } from './xenstore.js'

/** Who asks. Domain 0 may do everything; others what the permissions say. */
export interface Caller {
  readonly domid: number
  /** The domain that this one acts for (a device model and its guest), with the rights of both. */
  readonly target?: number | undefined
}

export const PRIVILEGED: Caller = { domid: 0 }

/** Whether nothing is forbidden and no quota binds: domain 0. */
export function isPrivileged(caller: Caller): boolean {
  return caller.domid === 0
}

export interface Access {
  readonly read: boolean
  readonly write: boolean
  /** May change the permissions. */
  readonly owner: boolean
}

const FULL: Access = { read: true, write: true, owner: true }
const BY_LETTER = {
  n: { read: false, write: false, owner: false },
  r: { read: true, write: false, owner: false },
  w: { read: false, write: true, owner: false },
  b: { read: true, write: true, owner: false },
} satisfies Record<Permission['access'], Access>

/**
 * What `caller` may do with a node: its owner everything, a domain named in the list what the list says, everyone else
 * what the first entry says. Entries of `dead` domains do not count: their number may belong to another guest by now.
 */
export function accessOf(
  caller: Caller,
  permissions: readonly Permission[],
  dead?: { has(entry: Permission): boolean },
): Access {
  const [first, ...others] = permissions
  if (first === undefined || isPrivileged(caller) || isCaller(caller, first)) return FULL
  const named = others.find((entry) => isCaller(caller, entry) && !dead?.has(entry))
  return BY_LETTER[(named ?? first).access]
}

function isCaller(caller: Caller, entry: Permission): boolean {
  return entry.domid === caller.domid || entry.domid === caller.target
}

/** `n0`, `r7`: as on the wire. */
export function formatPermission(permission: Permission): string {
  return `${permission.access}${permission.domid}`
}

const PERMISSION = /^([nrwb])(0|[1-9][0-9]{0,4})$/

/** @throws XenstoreError EINVAL when the text is no permission */
export function parsePermission(text: string): Permission {
  const match = PERMISSION.exec(text)
  if (match === null) throw new XenstoreError('EINVAL', 'not a xenstore permission')
  return { access: match[1] as Permission['access'], domid: Number(match[2]) }
}
