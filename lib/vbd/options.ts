/**
 * What an operator may say about one vbd: its options, their defaults and ranges. Pure.
 */
import { availableParallelism } from 'node:os'
import type { Protocol, TransferChoice } from '../engine/engine.js'
import { VbdError } from '../errors.js'

/** How a disk is offered to its guest. Everything has a default. */
export interface VbdOptions {
  /** How guest pages are reached. `auto`: persistent where the frontend offers it, else copy. */
  readonly transfer?: TransferChoice
  /** Queues (rings) that a frontend may use, 1..64; by default the number of processors, at most 4. */
  readonly queues?: number
  /** Ring pages that a frontend may use per queue, as a power of two: 0..4; 4 by default (16 pages). */
  readonly ringOrder?: number
  /** Segments of one indirect request, 0 (not offered) to 4096; 256 by default. */
  readonly indirectSegments?: number
  /** Refuse writes and discards although the disk could take them. */
  readonly readOnly?: boolean
  /** Tell the guest that the medium can be removed. */
  readonly removable?: boolean
  /** Tell the guest that the disk is a CD-ROM. */
  readonly cdrom?: boolean
  /**
   * Offer cache flushes; true by default where the disk has them. Without them each write is made durable before its
   * answer.
   */
  readonly flush?: boolean
  /** Offer write barriers; as `flush` by default. */
  readonly barrier?: boolean
  /** Offer discard; true by default where the disk has it and the toolstack does not say `discard-enable=0`. */
  readonly discard?: boolean
  /** Offer secure discard; true by default where the disk has it. */
  readonly secureDiscard?: boolean
  /** The ABI of frontends that name none. By default `x86_32-abi`, as Linux and QEMU have it; `arm-abi` on arm64. */
  readonly defaultProtocol?: Protocol
  /**
   * What a failed flush does: `hold` (default) answers no flush any more and fails writes, `close` closes the vbd as
   * well.
   */
  readonly onFlushFailure?: 'hold' | 'close'
}

export type ResolvedVbdOptions = Required<
  Omit<VbdOptions, 'flush' | 'barrier' | 'discard' | 'secureDiscard'>
> &
  Pick<VbdOptions, 'flush' | 'barrier' | 'discard' | 'secureDiscard'>

export const MAX_QUEUES = 64
export const MAX_RING_ORDER = 4
/** 8 indirect pages of 512 segments. */
export const MAX_INDIRECT_SEGMENTS = 4096

const TRANSFERS: readonly string[] = ['auto', 'persistent', 'copy', 'map']
const PROTOCOLS: readonly string[] = ['x86_64-abi', 'x86_32-abi', 'arm-abi']

/**
 * Fills in defaults and checks ranges.
 *
 * @throws ERR_VBD_ARGUMENT naming the option
 */
export function resolveVbdOptions(options: VbdOptions): ResolvedVbdOptions {
  const resolved: ResolvedVbdOptions = {
    ...options,
    transfer: options.transfer ?? 'auto',
    queues: options.queues ?? Math.min(4, availableParallelism()),
    ringOrder: options.ringOrder ?? MAX_RING_ORDER,
    indirectSegments: options.indirectSegments ?? 256,
    readOnly: options.readOnly ?? false,
    removable: options.removable ?? false,
    cdrom: options.cdrom ?? false,
    defaultProtocol:
      options.defaultProtocol ?? (process.arch === 'arm64' ? 'arm-abi' : 'x86_32-abi'),
    onFlushFailure: options.onFlushFailure ?? 'hold',
  }
  checkOneOf('transfer', resolved.transfer, TRANSFERS)
  checkOneOf('defaultProtocol', resolved.defaultProtocol, PROTOCOLS)
  checkOneOf('onFlushFailure', resolved.onFlushFailure, ['hold', 'close'])
  checkWhole('queues', resolved.queues, 1, MAX_QUEUES)
  checkWhole('ringOrder', resolved.ringOrder, 0, MAX_RING_ORDER)
  checkWhole('indirectSegments', resolved.indirectSegments, 0, MAX_INDIRECT_SEGMENTS)
  return resolved
}

/** @throws ERR_VBD_ARGUMENT unless `value` is a whole number within `least..most` */
export function checkWhole(name: string, value: number, least: number, most: number): void {
  if (Number.isInteger(value) && value >= least && value <= most) return
  throw new VbdError('ERR_VBD_ARGUMENT', `${name} cannot be ${value}`, {
    remedy: `give ${name} a whole number from ${least} to ${most}`,
  })
}

/** @throws ERR_VBD_ARGUMENT unless these are different names of backend directories, one at least */
export function checkKinds(kinds: readonly string[]): void {
  const valid = kinds.length > 0 && kinds.every((kind) => /^[a-z0-9_]{1,32}$/.test(kind))
  if (valid && new Set(kinds).size === kinds.length) return
  throw new VbdError('ERR_VBD_ARGUMENT', `'${kinds.join(',')}' are no kinds of backends`, {
    remedy: "give kinds like ['vbd'] or ['vbd3', 'vbd']",
  })
}

function checkOneOf(name: string, value: string, choices: readonly string[]): void {
  if (choices.includes(value)) return
  throw new VbdError('ERR_VBD_ARGUMENT', `${name} cannot be '${value}'`, {
    remedy: `give ${name} one of ${choices.join(', ')}`,
  })
}
