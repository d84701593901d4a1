/**
 * What a frontend asks for: from the keys of its directory to a Connection, or to a refusal with its reason. Pure and
 * total: the keys are the guest's, any bytes at all, and nothing in here throws on them. Read once per connect and
 * never again.
 *
 * Sources: xen/include/public/io/blkif.h; Linux `xenbus.c connect_ring, read_per_ring_refs` and its fix of 2021 for
 * rings of one page; requirements.
 */
import type { Connection, Protocol, RingLayout } from '../engine/engine.js'
import { printable } from '../xenbus/limiter.js'

/** What we advertised, and who asks. */
export interface Terms {
  readonly domid: number
  readonly maxRingPageOrder: number
  readonly maxQueues: number
  /** `feature-persistent` as we advertised it. */
  readonly persistent: boolean
  readonly defaultProtocol: Protocol
}

/** Keys relative to the frontend directory; absent ones are missing from the map. */
export type FrontendKeys = ReadonlyMap<string, string>

export type Negotiation =
  | { readonly ok: true; readonly connection: Connection }
  | { readonly ok: false; readonly reason: string }

/** No sane value is longer; what is longer is not looked at. */
const MAX_VALUE_LENGTH = 64
const MAX_GRANT_REF = 0xffff_ffff
/** FIFO event channels: 2^17 of them, and 0 is none (xen/include/public/event_channel.h). */
const MAX_PORT = (1 << 17) - 1

const PROTOCOLS: ReadonlySet<string> = new Set<Protocol>(['x86_64-abi', 'x86_32-abi', 'arm-abi'])

/** The keys that say how many rings there are and of what size: to be read first. */
export const SHAPE_KEYS: readonly string[] = [
  'protocol',
  'feature-persistent',
  'multi-queue-num-queues',
  'ring-page-order',
]

/** Thrown and caught in here alone: the first thing that is wrong ends a negotiation. */
class Refusal extends Error {}

interface Shape {
  readonly queues: number
  /** undefined: `ring-page-order` does not exist. */
  readonly order: number | undefined
}

/** The further keys to read, once `SHAPE_KEYS` are there; none when they are refused anyway. At most 17 per queue. */
export function ringKeys(shapeKeys: FrontendKeys, terms: Terms): readonly string[] {
  try {
    const shape = readShape(shapeKeys, terms)
    return queuePrefixes(shape).flatMap((prefix) =>
      ['event-channel', ...refNames(shape).flat()].map((name) => prefix + name),
    )
  } catch (thrown) {
    if (thrown instanceof Refusal) return []
    throw thrown
  }
}

/** Turns the keys into a connection. */
export function negotiate(keys: FrontendKeys, terms: Terms): Negotiation {
  try {
    const protocol = readProtocol(keys, terms)
    const shape = readShape(keys, terms)
    const rings = queuePrefixes(shape).map((prefix) => readRing(keys, prefix, shape))
    refuseDuplicates(
      'event-channel',
      rings.map((ring) => ring.eventChannel),
    )
    refuseDuplicates(
      'ring-ref',
      rings.flatMap((ring) => ring.ringRefs),
    )
    // A hint, not a contract: whatever is not exactly 1 is a no.
    const persistent = terms.persistent && keys.get('feature-persistent') === '1'
    return { ok: true, connection: { domid: terms.domid, protocol, rings, persistent } }
  } catch (thrown) {
    if (thrown instanceof Refusal) return { ok: false, reason: thrown.message }
    throw thrown
  }
}

function readProtocol(keys: FrontendKeys, terms: Terms): Protocol {
  const protocol = keys.get('protocol')
  if (protocol === undefined) return terms.defaultProtocol
  if (!PROTOCOLS.has(protocol)) throw new Refusal(`unknown protocol ${printable(protocol)}`)
  return protocol as Protocol
}

function readShape(keys: FrontendKeys, terms: Terms): Shape {
  const queues = optionalNumber(keys, 'multi-queue-num-queues', 1, terms.maxQueues) ?? 1
  const order = optionalNumber(keys, 'ring-page-order', 0, terms.maxRingPageOrder)
  return { queues, order }
}

/** One queue lives in the frontend's own directory, more have one each (blkif.h, "Multi-queue"). */
function queuePrefixes({ queues }: Shape): string[] {
  if (queues === 1) return ['']
  return Array.from({ length: queues }, (_, queue) => `queue-${queue}/`)
}

/**
 * Names of each ring page's reference, the preferred one first. A ring of one page has two spellings: with
 * `ring-page-order` Linux reads `ring-ref0`, others read `ring-ref` all the same; without it the name is `ring-ref`.
 */
function refNames({ order }: Shape): readonly (readonly string[])[] {
  if (order === undefined) return [['ring-ref', 'ring-ref0']]
  if (order === 0) return [['ring-ref0', 'ring-ref']]
  return Array.from({ length: 1 << order }, (_, page) => [`ring-ref${page}`])
}

function readRing(keys: FrontendKeys, prefix: string, shape: Shape): RingLayout {
  const ringRefs = refNames(shape).map((names) => {
    const name = names.find((candidate) => keys.has(prefix + candidate)) ?? names[0]!
    return requiredNumber(keys, prefix + name, 0, MAX_GRANT_REF)
  })
  return { ringRefs, eventChannel: requiredNumber(keys, `${prefix}event-channel`, 1, MAX_PORT) }
}

function refuseDuplicates(what: string, values: readonly number[]): void {
  const seen = new Set<number>()
  for (const value of values) {
    if (seen.has(value)) throw new Refusal(`${what} ${value} is given twice`)
    seen.add(value)
  }
}

function requiredNumber(keys: FrontendKeys, key: string, least: number, most: number): number {
  const value = optionalNumber(keys, key, least, most)
  if (value === undefined) throw new Refusal(`${key} is missing`)
  return value
}

function optionalNumber(
  keys: FrontendKeys,
  key: string,
  least: number,
  most: number,
): number | undefined {
  const text = keys.get(key)
  if (text === undefined) return undefined
  const value = parseDecimal(text)
  if (value === undefined) throw new Refusal(`${key} is not a number: ${printable(text)}`)
  if (value < least || value > most) {
    throw new Refusal(`${key} is ${value}, not within ${least} to ${most}`)
  }
  return value
}

/** Decimal digits with nothing about them and no leading zero, at most ten; undefined for all else. */
export function parseDecimal(text: string): number | undefined {
  if (text.length > MAX_VALUE_LENGTH || !/^(0|[1-9][0-9]{0,9})$/.test(text)) return undefined
  return Number(text)
}
