/**
 * Manners: how each frontend in the field behaves where the protocol leaves a choice, as data.
 *
 * The Frontend reads these tables and has no other knowledge of operating systems. Sources: the drivers themselves,
 * as of Linux 7.2, FreeBSD and NetBSD 2024, mini-os, GRUB 2.14, win-xenvbd 9.
 */
import { MAX_DIRECT_SEGMENTS, MAX_INDIRECT_SEGMENTS } from './wire.js'

export interface Manners {
  readonly name: string
  /** Begins with a whole close handshake, whatever the state is. */
  readonly startsWithClose: boolean
  /** Negotiates only when the backend is in InitWait; others write their keys at once. */
  readonly waitsForInitWait: boolean
  /** The state that says "my rings are there": Initialised (3), or Connected (4) at once. */
  readonly readyState: 3 | 4
  /** `handshake`: Closing, then Closed once the backend follows. `at-once`: Closed directly. */
  readonly closing: 'handshake' | 'at-once'
  /** Sends a last barrier and flush without data before it closes. */
  readonly flushesAtClose: boolean
  /**
   * After Closed it writes Initialising, so that the next driver can connect, and waits for the
   * backend's InitWait.
   */
  readonly reinitialises: boolean
  /** Removes its ring keys when it has closed. */
  readonly removesKeys: boolean
  /** Knows `feature-persistent`; one that does not never writes the key. */
  readonly persistent: boolean
  readonly maxQueues: number
  /** Writes `multi-queue-num-queues` for one queue too. */
  readonly writesQueueCount: boolean
  readonly maxRingOrder: number
  /** Writes the deprecated `num-ring-pages` beside `ring-page-order`. */
  readonly writesRingPages: boolean
  readonly maxIndirectSegments: number
  /** Uses indirect requests only when the backend offers at least this many segments. */
  readonly minIndirectOffered: number
  /** Segments of a request that is not indirect. */
  readonly maxSegments: number
  /** Requests in flight per queue. */
  readonly maxDepth: number
  /** What stands in a request's id: a small index, or all 64 bits of a pointer. */
  readonly ids: 'index' | 'wild'
  readonly flush: boolean
  readonly discard: boolean
  readonly resize: boolean
  /** A flush answered EOPNOTSUPP or ERROR is told upwards as done, and flushes stop. */
  readonly failedFlushIsSuccess: boolean
  readonly extraKeys: Readonly<Record<string, string>>
}

const LINUX: Manners = {
  name: 'linux',
  startsWithClose: false,
  waitsForInitWait: true,
  readyState: 3,
  closing: 'handshake',
  flushesAtClose: false,
  reinitialises: false,
  removesKeys: false,
  persistent: true,
  maxQueues: 64,
  writesQueueCount: false,
  maxRingOrder: 4,
  writesRingPages: false,
  maxIndirectSegments: MAX_INDIRECT_SEGMENTS,
  minIndirectOffered: MAX_DIRECT_SEGMENTS + 1,
  maxSegments: MAX_DIRECT_SEGMENTS,
  maxDepth: Number.POSITIVE_INFINITY,
  ids: 'index',
  flush: true,
  discard: true,
  resize: true,
  failedFlushIsSuccess: true,
  extraKeys: {},
}

/** What mini-os, U-Boot, OVMF and GRUB have in common: one page, one queue, no later feature. */
const SIMPLE: Manners = {
  ...LINUX,
  persistent: false,
  maxQueues: 1,
  maxRingOrder: 0,
  maxIndirectSegments: 0,
  discard: false,
  resize: false,
  failedFlushIsSuccess: false,
}

export const MANNERS = {
  linux: LINUX,
  grub: {
    ...SIMPLE,
    name: 'grub',
    closing: 'at-once',
    reinitialises: true,
    maxSegments: 1,
    maxDepth: 1,
    flush: false,
  },
  'mini-os': {
    ...SIMPLE,
    name: 'mini-os',
    waitsForInitWait: false,
    readyState: 4,
    flushesAtClose: true,
    reinitialises: true,
    removesKeys: true,
    ids: 'wild',
  },
  windows: {
    ...LINUX,
    name: 'windows',
    startsWithClose: true,
    persistent: false,
    writesQueueCount: true,
    ids: 'wild',
    extraKeys: {
      'target-id': '0',
      'feature-surprise-remove': '1',
      'feature-online-resize': '1',
      'feature-large-sector-size': '1',
    },
  },
  freebsd: {
    ...LINUX,
    name: 'freebsd',
    persistent: false,
    maxQueues: 1,
    writesRingPages: true,
    discard: false,
    resize: false,
    failedFlushIsSuccess: false,
  },
  netbsd: {
    ...SIMPLE,
    name: 'netbsd',
    waitsForInitWait: false,
    maxIndirectSegments: 17,
    minIndirectOffered: 17,
  },
} as const satisfies Record<string, Manners>

export type MannersName = keyof typeof MANNERS

/** undefined for a name that nobody has. */
export function mannersOf(choice: MannersName | Manners): Manners | undefined {
  if (typeof choice !== 'string') return choice
  return Object.hasOwn(MANNERS, choice) ? MANNERS[choice] : undefined
}
