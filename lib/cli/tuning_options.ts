/** The options about what can be tuned: of `tune`, and of what serves at its start. */

import type { Tuning } from '../control/protocol.js'
import { DEFAULT_TUNABLES } from '../engine/engine.js'
import { formatSize } from '../units.js'
import { MAX_LOG_STATS_SECONDS, TUNABLE_RANGES } from '../vbd/tunables.js'
import { sizeOption, wholeOption } from './options.js'
import type { Command } from './program.js'

/** The options that `serve` takes at its start and `tune` later, with one name and one range. */
export function addTuningOptions(command: Command, withDefaults: boolean): Command {
  const limits = (name: keyof typeof TUNABLE_RANGES) => ({
    min: TUNABLE_RANGES[name].least,
    max: TUNABLE_RANGES[name].most,
    ...(withDefaults ? { fallback: String(DEFAULT_TUNABLES[name]) } : {}),
  })
  return command
    .addOption(
      wholeOption(
        '--max-persistent-grants <n>',
        'persistent grants kept per ring',
        limits('maxPersistentGrants'),
      ),
    )
    .addOption(
      wholeOption(
        '--persistent-grant-idle <s>',
        'seconds until an unused persistent grant goes; 0: never',
        limits('persistentGrantIdleSeconds'),
      ),
    )
    .addOption(
      wholeOption(
        '--max-buffer-pages <n>',
        'free pages of 4 KiB that the pool of a reactor keeps',
        limits('maxBufferPages'),
      ),
    )
    .addOption(
      sizeOption(
        '--max-in-flight <size>',
        'guest data that one ring may have in flight, 1MiB to 1TiB',
        withDefaults ? formatSize(DEFAULT_TUNABLES.maxInFlightBytes) : undefined,
      ),
    )
    .addOption(
      wholeOption(
        '--poll-us <us>',
        'microseconds that a reactor polls before it sleeps; 0: sleeps at once',
        limits('pollUs'),
      ),
    )
    .addOption(
      wholeOption('--log-stats <s>', 'seconds between lines of statistics on stderr; 0: none', {
        min: 0,
        max: MAX_LOG_STATS_SECONDS,
        ...(withDefaults ? { fallback: '0' } : {}),
      }),
    )
}

/** What those options become. */
export interface TuningOptions {
  readonly maxPersistentGrants?: number
  readonly persistentGrantIdle?: number
  readonly maxBufferPages?: number
  readonly maxInFlight?: number
  readonly pollUs?: number
  readonly logStats?: number
}

/** The options that were given, by the names of the library. */
export function tuningOf(options: TuningOptions): Tuning {
  const {
    maxPersistentGrants,
    persistentGrantIdle,
    maxBufferPages,
    maxInFlight,
    pollUs,
    logStats,
  } = options
  return {
    ...(maxPersistentGrants === undefined ? {} : { maxPersistentGrants }),
    ...(persistentGrantIdle === undefined
      ? {}
      : { persistentGrantIdleSeconds: persistentGrantIdle }),
    ...(maxBufferPages === undefined ? {} : { maxBufferPages }),
    ...(maxInFlight === undefined ? {} : { maxInFlightBytes: maxInFlight }),
    ...(pollUs === undefined ? {} : { pollUs }),
    ...(logStats === undefined ? {} : { logStats }),
  }
}
