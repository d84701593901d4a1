/** The options about how disks are offered, opened and served: of every command that serves. */
import type { Option } from 'commander'
import type { Placement, Protocol, TransferChoice } from '../engine/engine.js'
import type { EngineChoice, JsIo } from '../platform.js'
import type { XenChoice } from '../store.js'
import {
  MAX_INDIRECT_SEGMENTS,
  MAX_QUEUES,
  MAX_RING_ORDER,
  type VbdOptions,
} from '../vbd/options.js'
import type { LogLevel } from './log.js'
import { LOG_LEVELS } from './log.js'
import { choiceOption, wholeOption } from './options.js'
import type { Command } from './program.js'
import { xenOption } from './xen_option.js'

/** What a frontend is offered. */
export interface OfferWords {
  readonly transfer?: TransferChoice
  readonly queues?: number
  readonly ringOrder?: number
  readonly indirect?: number
  readonly protocolDefault?: Protocol
  readonly onFlushFailure?: 'hold' | 'close'
  readonly discard?: boolean
  readonly flush?: boolean
}

/** The process that serves. */
export interface ProcessWords {
  readonly xen: XenChoice
  readonly engine?: EngineChoice
  readonly jsIo?: JsIo
  readonly reactors?: number
  readonly placement?: Placement
  readonly control?: string
  readonly log?: string
  readonly logLevel?: LogLevel
}

/** --transfer, --queues, ... */
export function addOfferOptions(command: Command): void {
  const indirect = { min: 0, max: MAX_INDIRECT_SEGMENTS, fallback: '256' }
  const order = { min: 0, max: MAX_RING_ORDER, fallback: '4, 16 pages' }
  command
    .addOption(
      choiceOption(
        '--transfer <how>',
        'how guest pages are reached',
        ['auto', 'persistent', 'copy', 'map'],
        'auto',
      ),
    )
    .addOption(
      wholeOption('--queues <n>', 'rings that the guest may use', {
        min: 1,
        max: MAX_QUEUES,
        fallback: 'the processors, at most 4',
      }),
    )
    .addOption(
      wholeOption(
        '--ring-order <n>',
        'pages per ring that the guest may use, as a power of two',
        order,
      ),
    )
    .addOption(
      wholeOption(
        '--indirect <n>',
        'segments of an indirect request; 0: none are offered',
        indirect,
      ),
    )
    .option('--no-flush', 'do not offer cache flushes: each write is durable before its answer')
    .option('--no-discard', 'do not offer discard')
    .addOption(
      choiceOption(
        '--protocol-default <abi>',
        'the ABI of guests that name none',
        ['x86_64-abi', 'x86_32-abi', 'arm-abi'],
        process.arch === 'arm64' ? 'arm-abi' : 'x86_32-abi',
      ),
    )
    .addOption(
      choiceOption(
        '--on-flush-failure <what>',
        'when a flush fails: answer no more, or close',
        ['hold', 'close'],
        'hold',
      ),
    )
}

/** --direct, --io, --sector-size and --write-through. */
export function addFileOptions(command: Command): void {
  command
    .addOption(
      choiceOption(
        '--direct <how>',
        'past the page cache (O_DIRECT)',
        ['auto', 'on', 'off'],
        'auto',
      ),
    )
    .addOption(
      choiceOption(
        '--io <how>',
        'how files are read and written',
        ['auto', 'uring', 'sync'],
        'auto',
      ),
    )
    .addOption(
      choiceOption(
        '--sector-size <bytes>',
        'logical sector size, in bytes',
        ['512', '4096'],
        '512',
      ),
    )
    .option('--write-through', 'each write is on stable storage before its answer')
}

/** What becomes of connected guests when the process is stopped. */
export type OnStop = 'keep' | 'close'

/** --on-stop */
export function onStopOption(fallback: OnStop): Option {
  return choiceOption(
    '--on-stop <what>',
    'connected guests keep their disks and wait for the next start, or are asked to close them',
    ['keep', 'close'],
    fallback,
  )
}

/** --xen, --engine, --js-io, --reactors and --placement. */
export function addEngineOptions(command: Command): void {
  command
    .addOption(xenOption('where Xen is: auto, host, mock (in this process) or mock:DIR'))
    .addOption(
      choiceOption('--engine <which>', 'what moves the data', ['native', 'js'], 'native').env(
        'VBDKIT_ENGINE',
      ),
    )
    .addOption(
      choiceOption(
        '--js-io <how>',
        'how the engine js does file I/O: node:fs, or one io_uring call a pass',
        ['fs', 'uring'],
        'fs',
      ),
    )
    .addOption(
      wholeOption('--reactors <n>', 'threads that serve rings', {
        min: 1,
        max: 64,
        fallback: 'half of the processors, at most 4',
      }),
    )
    .addOption(
      choiceOption(
        '--placement <whose>',
        'whose those threads are: each guest has its own, or all share them',
        ['guest', 'shared'],
        'guest on a Xen host, shared on the mock',
      ),
    )
}

/** --control, --log and --log-level. */
export function addServiceOptions(command: Command): void {
  command
    .option(
      '--control <socket>',
      'where `stats`, `resize` and `tune` reach it, instead of the usual place',
    )
    .option('--log <file>', 'append a log, one line of JSON each, to this file')
    .addOption(choiceOption('--log-level <level>', 'the least that is logged', LOG_LEVELS, 'info'))
}

/** For `Backend.open`. */
export function engineOptionsOf({ xen, engine, jsIo, reactors, placement }: ProcessWords) {
  return {
    xen,
    ...(engine === undefined ? {} : { engine }),
    ...(jsIo === undefined ? {} : { jsIo }),
    ...(reactors === undefined ? {} : { reactors }),
    ...(placement === undefined ? {} : { placement }),
  }
}

/** What the words say; what they do not is left to the library. */
export function vbdOptionsOf(words: OfferWords): VbdOptions {
  const { transfer, queues, ringOrder, indirect, flush, discard } = words
  const { protocolDefault, onFlushFailure } = words
  return {
    ...(transfer === undefined ? {} : { transfer }),
    ...(queues === undefined ? {} : { queues }),
    ...(ringOrder === undefined ? {} : { ringOrder }),
    ...(indirect === undefined ? {} : { indirectSegments: indirect }),
    // Commander gives true for a --no- option that was not named: then the library decides.
    ...(flush === false ? { flush } : {}),
    ...(discard === false ? { discard } : {}),
    ...(protocolDefault === undefined ? {} : { defaultProtocol: protocolDefault }),
    ...(onFlushFailure === undefined ? {} : { onFlushFailure }),
  }
}
