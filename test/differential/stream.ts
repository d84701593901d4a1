/**
 * Streams: what the two engines are asked, as plain data that fast-check makes and shrinks. A setting, and steps; a
 * request is one number, which `requests.ts` expands, so that leaving one out leaves the others as they are.
 */
import fc from 'fast-check'
import type { Protocol, TransferChoice } from '../../lib/engine/engine.js'

/** What two vbds are made like. */
export interface Setting {
  readonly protocol: Protocol
  readonly transfer: TransferChoice
  readonly persistent: boolean
  readonly rings: 1 | 2
  readonly ringPages: 1 | 2 | 4 | 16
  readonly disk: 'memory' | 'null' | 'file-sync' | 'file-uring' | 'tmpfs'
  readonly sectorSize: 512 | 4096
  readonly maxIndirectSegments: number
  readonly flush: boolean
  readonly barrier: boolean
  readonly discard: boolean
  readonly readOnly: boolean
  readonly maxPersistentGrants: number
  readonly maxInFlightBytes: number
}

/**
 * How requests are in flight together, so that the outcome is defined.
 *
 *   alone      one at a time, anywhere: what one leaves, the next one finds
 *   barriers   published at once, anywhere, a write barrier after each
 *   apart8 …   published at once, so many at a time, each with its own part of the disk and its own pages
 *   sources    published at once, writes of the same pages to different parts of the disk
 *   range      published at once, reads of the same sectors into different pages
 */
export type Way = 'alone' | 'barriers' | 'apart8' | 'apart32' | 'apart64' | 'sources' | 'range'

export type Step =
  /** Requests, on one ring or the other. */
  | {
      readonly kind: 'requests'
      readonly ring: number
      readonly way: Way
      readonly seeds: readonly number[]
    }
  /** The frontend ends a grant, and grants another page under its reference if it could. */
  | { readonly kind: 'regrant'; readonly seed: number }
  | { readonly kind: 'resize'; readonly sectors: number }
  | { readonly kind: 'reconnect' }
  /** The request producer moves by more than there is; the last step that the rings of this connection see. */
  | { readonly kind: 'jump'; readonly by: number }

export interface Stream {
  readonly setting: Setting
  readonly steps: readonly Step[]
}

const seed = () => fc.noBias(fc.integer({ min: 0, max: 0xffff_ffff }))

export const settings: fc.Arbitrary<Setting> = fc.record({
  protocol: fc.constantFrom<Protocol>('x86_64-abi', 'x86_32-abi', 'arm-abi'),
  transfer: fc.constantFrom<TransferChoice>('persistent', 'copy', 'map', 'auto'),
  persistent: fc.boolean(),
  rings: fc.constantFrom(1, 1, 2),
  ringPages: fc.constantFrom(1, 1, 2, 4, 16),
  disk: fc.constantFrom('memory', 'memory', 'memory', 'null', 'file-sync', 'file-uring', 'tmpfs'),
  sectorSize: fc.constantFrom(512, 512, 512, 4096),
  maxIndirectSegments: fc.constantFrom(0, 32, 256, 256, 4096),
  flush: fc.constantFrom(true, true, true, false),
  barrier: fc.constantFrom(true, true, false),
  discard: fc.constantFrom(true, true, true, false),
  readOnly: fc.constantFrom(false, false, false, false, false, false, true),
  maxPersistentGrants: fc.constantFrom(1056, 1056, 1056, 24, 1, 0),
  maxInFlightBytes: fc.constantFrom(64 << 20, 64 << 20, 65_536),
}) as fc.Arbitrary<Setting>

/** @param requests how many one stream has, about */
export function streams(requests: number): fc.Arbitrary<Stream> {
  const batch = fc.record({
    kind: fc.constant('requests' as const),
    ring: fc.nat(1),
    way: fc.constantFrom<Way>(
      ...(['alone', 'barriers', 'sources', 'range'] as const),
      ...(['apart8', 'apart32', 'apart64', 'apart64'] as const),
    ),
    seeds: fc.oneof(
      { weight: 3, arbitrary: fc.array(seed(), { minLength: 1, maxLength: 64, size: 'max' }) },
      { weight: 1, arbitrary: fc.array(seed(), { minLength: 64, maxLength: 300, size: 'max' }) },
    ),
  })
  const step = fc.oneof(
    { weight: 40, arbitrary: batch },
    { weight: 3, arbitrary: fc.record({ kind: fc.constant('regrant' as const), seed: seed() }) },
    {
      weight: 1,
      arbitrary: fc.record({
        kind: fc.constant('resize' as const),
        sectors: fc.integer({ min: 64, max: 192 }).map((pages) => pages * 8),
      }),
    },
    { weight: 1, arbitrary: fc.constant({ kind: 'reconnect' as const }) },
    {
      weight: 1,
      arbitrary: fc.record({
        kind: fc.constant('jump' as const),
        by: fc.constantFrom(1000, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe),
      }),
    },
  )
  const steps = Math.max(2, Math.round(requests / 60))
  return fc.record({
    setting: settings,
    steps: fc.array(step, { minLength: steps, maxLength: steps, size: 'max' }),
  }) as fc.Arbitrary<Stream>
}
