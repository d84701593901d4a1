/**
 * Agreeing with a frontend: what is offered to it, what it published, read once, against that, and what came of it.
 */
import type { Connection, Protocol, Transfer, VbdFeatures } from '../engine/engine.js'
import { toVbdError, type VbdError } from '../errors.js'
import type { Device, DeviceError } from '../xenbus/device.js'
import { isReadOnly, type Offer, offersPersistent, TOOLSTACK_KEYS } from './advertise.js'
import type { Backing } from './backing.js'
import { type Negotiation, negotiate, ringKeys, SHAPE_KEYS, type Terms } from './negotiate.js'
import type { ResolvedVbdOptions } from './options.js'
import type { ConnectionInfo } from './reporter.js'

const EIO = 5
const EINVAL = 22

/** What can be offered; or why nothing can, for the toolstack, and for the operator where it is his business. */
export type Prepared =
  | { readonly offer: Offer }
  | { readonly failure: DeviceError; readonly error?: VbdError }

/** Makes the disk and the engine ready for what this device's keys ask for. No ring may be attached. */
export async function prepareOffer(
  device: Device,
  backing: Backing,
  options: ResolvedVbdOptions,
): Promise<Prepared> {
  const wrong = await device.checkIdentity()
  if (wrong !== undefined) return { failure: { errno: EINVAL, text: wrong, hotplug: true } }
  const keys = await device.readBackend(TOOLSTACK_KEYS)
  try {
    return { offer: await backing.prepare(isReadOnly(options, keys), keys) }
  } catch (thrown) {
    const error = toVbdError(thrown)
    return { failure: { errno: EIO, text: error.message, hotplug: true }, error }
  }
}

/**
 * The connection that the frontend asks for, or why it cannot have it.
 *
 * @param persistent whether it was told that grants stay mapped
 */
export async function readTerms(
  device: Device,
  offer: Offer,
  defaultProtocol: Protocol,
  persistent = offersPersistent(offer.features),
): Promise<Negotiation> {
  const { maxRingPageOrder, maxQueues } = offer
  const { domid } = device.address
  const terms: Terms = { domid, maxRingPageOrder, maxQueues, persistent, defaultProtocol }
  const shape = await device.readFrontend(SHAPE_KEYS)
  const rings = await device.readFrontend(ringKeys(shape, terms))
  return negotiate(new Map([...shape, ...rings]), terms)
}

/** What both sides agreed on. */
export function connectionInfo(
  connection: Connection,
  transfer: Transfer,
  features: VbdFeatures,
): ConnectionInfo {
  const { protocol, persistent, rings } = connection
  return {
    protocol,
    transfer,
    persistent,
    queues: rings.length,
    ringPages: rings[0]!.ringRefs.length,
    features,
  }
}
