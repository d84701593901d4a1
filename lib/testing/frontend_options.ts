/** What the user of a Frontend may choose, the defaults, and the checks. Pure. */
import type { Protocol } from '../engine/engine.js'
import { VbdError } from '../errors.js'
import type { Wishes } from './front_keys.js'
import { MANNERS, type Manners, type MannersName, mannersOf } from './manners.js'
import { LAYOUTS, MAX_INDIRECT_SEGMENTS, PAGE_BYTES } from './wire.js'

export interface FrontendOptions {
  /** Whose habits to follow. `linux` by default. */
  manners?: MannersName | Manners | undefined
  /** `x86_64-abi` by default. */
  protocol?: Protocol | undefined
  /** Rings wanted, 1..64; the backend may allow fewer. 1 by default. */
  queues?: number | undefined
  /** Pages of a ring wanted, as a power of two, 0..4. 0 by default. */
  ringOrder?: number | undefined
  /** Segments of an indirect request, 0 (none are sent) to 4096. 32 by default, as in Linux. */
  indirectSegments?: number | undefined
  /** Offer persistent grants. True by default, where the manners know them. */
  persistent?: boolean | undefined
  /** Guest memory for data, in bytes; by default half of what the guest has left. */
  memoryBytes?: number | undefined
  /** Operations unsettled at a time before more are refused with ERR_VBD_BUSY. 16384 by default. */
  maxOperations?: number | undefined
  /** What stands in request ids, instead of what the manners say. */
  ids?: 'index' | 'wild' | undefined
  /** Go on when the backend closes, or comes back after it died. True by default. */
  reconnect?: boolean | undefined
  /**
   * How long connect() waits for the disk's nodes, and for each step of the backend, in ms; 0: for
   * ever. 30000 by default.
   */
  connectTimeoutMs?: number | undefined
  /** How long close() waits for operations, and for each step of the backend, in ms. 10000 by default. */
  closeTimeoutMs?: number | undefined
  /** Changes the keys before they are written: for hostile guests. */
  editKeys?: ((keys: Map<string, string>) => void) | undefined
}

/** The options with their defaults. */
export interface Choices extends Wishes {
  readonly memoryBytes: number | undefined
  readonly maxOperations: number
  readonly ids: 'index' | 'wild'
  readonly reconnect: boolean
  /** undefined: for ever. */
  readonly connectTimeoutMs: number | undefined
  readonly closeTimeoutMs: number
  readonly editKeys: ((keys: Map<string, string>) => void) | undefined
}

const MAX_MS = 2 ** 31 - 1

/** @throws ERR_VBD_ARGUMENT for anything out of range */
export function chooseOptions(options: FrontendOptions): Choices {
  const manners = mannersOf(options.manners ?? 'linux')
  if (manners === undefined) throw notOneOf('manners', options.manners, Object.keys(MANNERS))
  const protocol = options.protocol ?? 'x86_64-abi'
  if (!Object.hasOwn(LAYOUTS, protocol)) {
    throw notOneOf('protocol', protocol, Object.keys(LAYOUTS))
  }
  const { memoryBytes } = options
  if (memoryBytes !== undefined) integer('memoryBytes', memoryBytes, PAGE_BYTES, 2 ** 40)
  const connectTimeoutMs = integer(
    'connectTimeoutMs',
    options.connectTimeoutMs ?? 30_000,
    0,
    MAX_MS,
  )
  return {
    manners,
    protocol,
    queues: integer('queues', options.queues ?? 1, 1, 64),
    ringOrder: integer('ringOrder', options.ringOrder ?? 0, 0, 4),
    indirectSegments: integer(
      'indirectSegments',
      options.indirectSegments ?? 32,
      0,
      MAX_INDIRECT_SEGMENTS,
    ),
    persistent: options.persistent ?? true,
    memoryBytes,
    maxOperations: integer('maxOperations', options.maxOperations ?? 16384, 1, 1 << 24),
    ids: options.ids ?? manners.ids,
    reconnect: options.reconnect ?? true,
    connectTimeoutMs: connectTimeoutMs === 0 ? undefined : connectTimeoutMs,
    closeTimeoutMs: integer('closeTimeoutMs', options.closeTimeoutMs ?? 10_000, 0, MAX_MS),
    editKeys: options.editKeys,
  }
}

function integer(name: string, value: number, least: number, most: number): number {
  if (Number.isInteger(value) && value >= least && value <= most) return value
  throw new VbdError('ERR_VBD_ARGUMENT', `${name} is ${value}, not ${least} to ${most}`)
}

function notOneOf(name: string, value: unknown, allowed: readonly string[]): VbdError {
  return new VbdError('ERR_VBD_ARGUMENT', `'${value}' is no ${name}`, {
    remedy: `it is one of ${allowed.join(', ')}`,
  })
}
