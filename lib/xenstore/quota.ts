/** What an unprivileged domain may use of the store: C xenstored's defaults. Domain 0 has no limits. Pure. */
import { type Caller, isPrivileged } from './permission.js'
import type { NodeContent } from './tree.js'
import { XenstoreError } from './xenstore.js'

export interface Quotas {
  /** Nodes that a domain owns. */
  readonly nodes: number
  /** Watches of a domain; one more is let through, as the C daemon has it. */
  readonly watches: number
  /** Open transactions of a domain; one more is let through. */
  readonly transactions: number
  /** Requests of a domain whose answers it has not taken. */
  readonly outstanding: number
  /** Nodes that one transaction reads or writes. */
  readonly transactionNodes: number
  /** Bytes of one node with its administration; must stay below. */
  readonly nodeSize: number
  /** Entries in a node's permissions. */
  readonly permissions: number
  /** Watch events that wait for a domain that does not read; more are dropped. */
  readonly events: number
}

export const DEFAULT_QUOTAS: Quotas = {
  nodes: 1000,
  watches: 128,
  transactions: 10,
  outstanding: 20,
  transactionNodes: 1024,
  nodeSize: 2048,
  permissions: 5,
  events: 1024,
}

/** The C daemon's node: a header, 8 bytes per permission, the value, the children's names with their NULs. */
const NODE_HEADER_BYTES = 24
const PERMISSION_BYTES = 8

/** What the quota `nodeSize` measures, in bytes. */
export function nodeSizeBytes(node: NodeContent): number {
  const names = node.children.reduce((sum, name) => sum + name.length + 1, 0)
  return NODE_HEADER_BYTES + PERMISSION_BYTES * node.permissions.length + node.value.length + names
}

/** @throws XenstoreError with `errno` when an unprivileged caller exceeds a quota */
export function enforce(caller: Caller, within: boolean, errno: string): void {
  if (!within && !isPrivileged(caller)) throw new XenstoreError(errno, 'quota exceeded')
}
