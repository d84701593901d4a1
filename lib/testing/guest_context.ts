/** GuestContext: what a frontend uses of the guest that it lives in. MockGuest provides it. */
import type { NativeMockGuest } from '../engine/addon.js'
import type { Xenstore } from '../xenstore/xenstore.js'
import type { GuestMemory } from './guest_memory.js'

export interface GuestContext {
  readonly domid: number
  readonly native: NativeMockGuest
  readonly memory: GuestMemory
  /** The store as the guest sees it, without privileges. */
  readonly xenstore: Xenstore
  /** Fires when the guest is gone; its reason is a VbdError. */
  readonly signal: AbortSignal
  /**
   * Allocates a port that `domid` may bind. `handler` runs for each event; the port is unmasked after it, unless it
   * was closed meanwhile.
   */
  openPort(domid: number, handler: () => void): number
  closePort(port: number): void
}
