/** What a Frontend tells its user: the names and the contents of its events. */
import type { VbdError } from '../errors.js'
import type { DiskProperties } from './front_keys.js'

/** The backend broke the protocol. All but `bad-status` end the disk for good, as in Linux. */
export interface Violation {
  readonly kind:
    | 'unknown-id'
    | 'duplicate-response'
    | 'wrong-operation'
    | 'bad-status'
    | 'response-overflow'
    | 'grant-still-mapped'
    | 'grant-leaked'
  /** Which ring; -1 where it concerns none. */
  readonly queue: number
  /** One line for people. */
  readonly message: string
}

/** A connection as it was agreed on. */
export interface ConnectionSummary extends DiskProperties {
  readonly protocol: string
  readonly queues: number
  readonly ringPages: number
  /** Slots of one ring. */
  readonly ringEntries: number
  /** Whether the handshake was done before, with this backend or an earlier one. */
  readonly reconnected: boolean
}

/** The arguments of each event. */
export interface FrontendEvents {
  /** A xenbus state was seen (backend) or written (frontend). */
  state: [change: { readonly side: 'frontend' | 'backend'; readonly state: number }]
  /** A key was written in the frontend's directory. */
  key: [key: { readonly path: string; readonly value: string }]
  connected: [connection: ConnectionSummary]
  /** The backend changed the disk's size while it was connected. */
  resize: [size: { readonly sizeBytes: number; readonly previousBytes: number }]
  /** The rings are gone; operations wait for the next `connected`. */
  disconnected: [reason: string]
  /** The backend answered that it cannot do this; it is not asked again. */
  'feature-lost': [feature: 'flush' | 'barrier' | 'discard' | 'secure-discard']
  violation: [violation: Violation]
  /** The end: closed by its user (undefined), or for the reason given. */
  closed: [error: VbdError | undefined]
}
