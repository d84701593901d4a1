/**
 * What we tell a frontend: from the disk, the operator's options and the toolstack's keys to the features that the
 * engine is held to, and to the keys of the backend directory. Pure. Written whole before InitWait (NetBSD and
 * Windows read early) and whole again in the transaction that announces Connected (Linux writes there, and frontends
 * read there).
 *
 * Keys and units: xen/include/public/io/blkif.h.
 */
import type { DiskInfo, VbdFeatures } from '../engine/engine.js'
import type { ResolvedVbdOptions } from './options.js'

/**
 * The toolstack's keys in the backend directory that say how the disk is to be offered. `mode`: writable when it holds
 * a `w`. `discard-enable`: `0` for no discard, whatever the disk can do. `device-type`: `cdrom` or `disk`. `removable`:
 * `1` when the medium can be removed.
 */
export const TOOLSTACK_KEYS = ['mode', 'discard-enable', 'device-type', 'removable'] as const

export type ToolstackKeys = Readonly<
  Partial<Record<(typeof TOOLSTACK_KEYS)[number], string | undefined>>
>

/** What is offered; it does not change while a frontend is connected. */
export interface Offer {
  readonly features: VbdFeatures
  readonly maxRingPageOrder: number
  readonly maxQueues: number
  readonly removable: boolean
  readonly cdrom: boolean
}

/** Whether the guest may write: the operator, the toolstack and the disk all have to agree. */
export function isReadOnly(options: ResolvedVbdOptions, keys: ToolstackKeys): boolean {
  return options.readOnly || (keys.mode !== undefined && !keys.mode.includes('w'))
}

/** Decides what to offer. */
export function makeOffer(disk: DiskInfo, options: ResolvedVbdOptions, keys: ToolstackKeys): Offer {
  const readOnly = disk.readOnly || isReadOnly(options, keys)
  const flush = disk.canFlush && options.flush !== false
  const discard =
    disk.canDiscard && !readOnly && options.discard !== false && keys['discard-enable'] !== '0'
  const features: VbdFeatures = {
    transfer: options.transfer,
    maxIndirectSegments: options.indirectSegments,
    flush,
    barrier: flush && options.barrier !== false,
    discard,
    secureDiscard: discard && disk.canSecureDiscard && options.secureDiscard !== false,
    readOnly,
    onFlushFailure: options.onFlushFailure,
  }
  return {
    features,
    maxRingPageOrder: options.ringOrder,
    maxQueues: options.queues,
    removable: options.removable || keys.removable === '1',
    cdrom: options.cdrom || keys['device-type'] === 'cdrom',
  }
}

/** Whether frontends are told that grants stay mapped. */
export function offersPersistent({ transfer }: VbdFeatures): boolean {
  return transfer === 'auto' || transfer === 'persistent'
}

/** The keys to write in the backend directory, and those that must not be there. */
export interface Advertisement {
  readonly write: ReadonlyMap<string, string>
  readonly remove: readonly string[]
}

const VDISK_CDROM = 1
const VDISK_REMOVABLE = 2
const VDISK_READONLY = 4

/** `sectors` and every address on the ring are in these units, whatever `sector-size` says (blkif.h since Xen 4.20). */
export const SECTOR_BYTES = 512

/** Spells an offer out in keys. */
export function advertise(disk: DiskInfo, offer: Offer): Advertisement {
  const { features } = offer
  const write = new Map<string, string>()
  const remove: string[] = []
  const flag = (key: string, on: boolean) => write.set(key, on ? '1' : '0')
  const when = (on: boolean, key: string, value: number) => {
    if (on) write.set(key, String(value))
    else remove.push(key)
  }

  flag('feature-barrier', features.barrier)
  flag('feature-flush-cache', features.flush)
  flag('feature-discard', features.discard)
  when(features.discard, 'discard-granularity', disk.discardGranularity || disk.sectorSize)
  when(features.discard, 'discard-alignment', disk.discardAlignment)
  when(features.discard, 'discard-secure', features.secureDiscard ? 1 : 0)
  // A frontend that is told 1 copies every byte in the guest, which is waste unless grants really stay mapped.
  flag('feature-persistent', offersPersistent(features))
  // blkif.h: without the operation the key must not exist.
  when(
    features.maxIndirectSegments > 0,
    'feature-max-indirect-segments',
    features.maxIndirectSegments,
  )
  write.set('max-ring-page-order', String(offer.maxRingPageOrder))
  write.set('max-ring-pages', String(1 << offer.maxRingPageOrder))
  write.set('multi-queue-max-queues', String(offer.maxQueues))
  write.set('sectors', sectorsValue(disk))
  write.set('sector-size', String(disk.sectorSize))
  write.set('physical-sector-size', String(disk.physicalSectorSize))
  write.set('info', String(infoBits(offer)))
  // For the toolstack: what its hotplug script waits for.
  write.set('hotplug-status', 'connected')
  remove.push('hotplug-error')
  return { write, remove }
}

/** The value of `sectors`: 512-byte units. */
export function sectorsValue(disk: DiskInfo): string {
  return String(Math.floor(disk.sizeBytes / SECTOR_BYTES))
}

function infoBits({ cdrom, removable, features }: Offer): number {
  return (
    (cdrom ? VDISK_CDROM : 0) |
    (removable ? VDISK_REMOVABLE : 0) |
    (features.readOnly ? VDISK_READONLY : 0)
  )
}
