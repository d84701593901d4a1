/**
 * The frontend's xenstore keys as pure functions: what it concludes from the backend's keys, and what it writes.
 *
 * Two moments, as in the protocol: the transport (rings, queues) is decided before the rings are made; the disk's
 * properties are read once the backend is Connected. Keys and defaults: Xen's public/io/blkif.h.
 */
import type { Protocol } from '../engine/engine.js'
import { VbdError } from '../errors.js'
import type { Manners } from './manners.js'
import { MAX_INDIRECT_SEGMENTS, SECTOR_BYTES, VDISK } from './wire.js'

/** The backend's keys, by name; undefined: not there. */
export type Keys = ReadonlyMap<string, string | undefined>

/** Read before the rings are made. */
export const TRANSPORT_KEYS = [
  'max-ring-page-order',
  'max-ring-pages',
  'multi-queue-max-queues',
  'feature-max-indirect-segments',
] as const

/** Read when the backend is Connected. */
export const PROPERTY_KEYS = [
  'sectors',
  'info',
  'sector-size',
  'physical-sector-size',
  'feature-barrier',
  'feature-flush-cache',
  'feature-discard',
  'discard-granularity',
  'discard-alignment',
  'discard-secure',
  'feature-persistent',
  'feature-max-indirect-segments',
] as const

/** What the user of a frontend may ask for; the backend may grant less. */
export interface Wishes {
  readonly manners: Manners
  readonly protocol: Protocol
  readonly queues: number
  readonly ringOrder: number
  /** 0: no indirect requests. */
  readonly indirectSegments: number
  readonly persistent: boolean
}

export interface Transport {
  readonly protocol: Protocol
  readonly queues: number
  readonly ringPages: number
  /** Whether we write `feature-persistent` = 1. */
  readonly offersPersistent: boolean
}

/** The disk as the backend describes it, and what both sides agreed on. */
export interface DiskProperties {
  /** In units of 512 bytes. */
  readonly sectors: number
  readonly sizeBytes: number
  readonly sectorSize: number
  readonly physicalSectorSize: number
  readonly readOnly: boolean
  readonly removable: boolean
  readonly cdrom: boolean
  readonly flush: boolean
  readonly barrier: boolean
  readonly discard: boolean
  readonly secureDiscard: boolean
  /** Bytes. */
  readonly discardGranularity: number
  readonly discardAlignment: number
  readonly persistent: boolean
  /** Segments of one indirect request; 0: none are sent. */
  readonly indirectSegments: number
}

/** A decimal number of 0 to `max`; undefined for anything else, as if the key were not there. */
export function parseNumber(
  value: string | undefined,
  max = Number.MAX_SAFE_INTEGER,
): number | undefined {
  if (value === undefined || !/^(0|[1-9][0-9]{0,15})$/.test(value)) return undefined
  const number = Number(value)
  return number <= max ? number : undefined
}

/** What the rings will be. */
export function negotiateTransport(keys: Keys, wishes: Wishes): Transport {
  const { manners } = wishes
  const pages = parseNumber(keys.get('max-ring-pages'), 1 << 16) ?? 1
  const order =
    parseNumber(keys.get('max-ring-page-order'), 16) ?? Math.floor(Math.log2(pages || 1))
  const queues = parseNumber(keys.get('multi-queue-max-queues'), 1 << 16) ?? 1
  return {
    protocol: wishes.protocol,
    queues: Math.max(1, Math.min(wishes.queues, manners.maxQueues, queues)),
    ringPages: 2 ** Math.min(wishes.ringOrder, manners.maxRingOrder, order),
    offersPersistent: manners.persistent && wishes.persistent,
  }
}

/** How many segments an indirect request may have; 0: indirect requests are not used. */
export function negotiateIndirect(keys: Keys, wishes: Wishes): number {
  const offered = parseNumber(keys.get('feature-max-indirect-segments')) ?? 0
  const { maxIndirectSegments, minIndirectOffered, maxSegments } = wishes.manners
  if (offered < minIndirectOffered) return 0
  const agreed = Math.min(
    offered,
    wishes.indirectSegments,
    maxIndirectSegments,
    MAX_INDIRECT_SEGMENTS,
  )
  return agreed > maxSegments ? agreed : 0
}

/**
 * The disk's properties. Throws ERR_VBD_PROTOCOL where a key without which no frontend can work is missing or is not
 * a number: `sectors`, `info`, `sector-size`.
 */
export function readProperties(
  keys: Keys,
  wishes: Wishes,
  transport: Transport,
  where: { path: string; vbd: string },
): DiskProperties {
  const mandatory = (name: string, max?: number): number => {
    const value = parseNumber(keys.get(name), max)
    if (value !== undefined) return value
    const found = keys.get(name) === undefined ? 'missing' : 'not a number'
    throw new VbdError('ERR_VBD_PROTOCOL', `the backend's key ${name} is ${found}`, where)
  }
  const flag = (name: string): boolean => parseNumber(keys.get(name)) === 1

  const sectors = mandatory('sectors', Math.floor(Number.MAX_SAFE_INTEGER / SECTOR_BYTES))
  const info = mandatory('info', 0xffff)
  const sectorSize = mandatory('sector-size', 65536)
  if (sectorSize < SECTOR_BYTES || (sectorSize & (sectorSize - 1)) !== 0) {
    const message = `the backend's sector-size ${sectorSize} is not a power of two from 512`
    throw new VbdError('ERR_VBD_PROTOCOL', message, where)
  }
  const { manners } = wishes
  const discard = manners.discard && flag('feature-discard')
  return {
    sectors,
    sizeBytes: sectors * SECTOR_BYTES,
    sectorSize,
    physicalSectorSize: parseNumber(keys.get('physical-sector-size')) || sectorSize,
    readOnly: (info & VDISK.readOnly) !== 0,
    removable: (info & VDISK.removable) !== 0,
    cdrom: (info & VDISK.cdrom) !== 0,
    flush: manners.flush && flag('feature-flush-cache'),
    barrier: manners.flush && flag('feature-barrier'),
    discard,
    secureDiscard: discard && flag('discard-secure'),
    discardGranularity: parseNumber(keys.get('discard-granularity')) || sectorSize,
    discardAlignment: parseNumber(keys.get('discard-alignment')) ?? 0,
    persistent: transport.offersPersistent && flag('feature-persistent'),
    indirectSegments: negotiateIndirect(keys, wishes),
  }
}

/** One ring as the backend will find it. */
export interface PublishedRing {
  readonly refs: readonly number[]
  readonly port: number
}

/** Every key that the frontend writes in its directory before it says that its rings are there, in order. */
export function frontKeys(
  manners: Manners,
  transport: Transport,
  rings: readonly PublishedRing[],
): Map<string, string> {
  const keys = new Map<string, string>()
  if (transport.ringPages > 1) {
    if (manners.writesRingPages) keys.set('num-ring-pages', String(transport.ringPages))
    keys.set('ring-page-order', String(Math.log2(transport.ringPages)))
  }
  if (rings.length > 1 || manners.writesQueueCount) {
    keys.set('multi-queue-num-queues', String(rings.length))
  }
  rings.forEach((ring, i) => {
    const prefix = rings.length > 1 ? `queue-${i}/` : ''
    const single = ring.refs.length === 1
    for (const [k, ref] of ring.refs.entries()) {
      keys.set(`${prefix}ring-ref${single ? '' : k}`, String(ref))
    }
    keys.set(`${prefix}event-channel`, String(ring.port))
  })
  keys.set('protocol', transport.protocol)
  if (manners.persistent) keys.set('feature-persistent', transport.offersPersistent ? '1' : '0')
  for (const [name, value] of Object.entries(manners.extraKeys)) keys.set(name, value)
  return keys
}

/**
 * The ring keys that an earlier connection with another shape may have left and that would mislead the backend: to be
 * removed before `written` is written.
 */
export function staleKeys(
  written: ReadonlyMap<string, string>,
  present: readonly string[],
): string[] {
  const ours =
    /^(ring-ref[0-9]*|event-channel|ring-page-order|num-ring-pages|multi-queue-num-queues|queue-[0-9]+)$/
  return present.filter((key) => ours.test(key) && !written.has(key))
}
