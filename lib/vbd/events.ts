/**
 * What a backend tells: everything that happens to its vbds, and to itself.
 */
import type { VbdError } from '../errors.js'
import type { DeviceOffer } from './offer.js'
import type { Vbd, VbdEvents } from './vbd.js'

/** What happens; everything of a vbd, and of the backend itself. */
export interface BackendEvents extends Omit<VbdEvents, 'warning' | 'error'> {
  /** A toolstack attached a device that no `serve` has asked for; now, or before anybody listened. */
  vbd: DeviceOffer
  /** `vbd` is absent where it concerns all of them. At most ten a minute and vbd. */
  warning: { vbd?: Vbd; message: string }
  error: { vbd?: Vbd; error: VbdError }
  /** The connection to xenstore was lost, or is back. Connected guests are served on without it. */
  xenstore: { state: 'connected' | 'lost' }
}

/** Events of a vbd that its backend passes on. */
export const FORWARDED = [
  'state',
  'connected',
  'disconnected',
  'resized',
  'warning',
  'error',
  'log',
  'closed',
] as const
