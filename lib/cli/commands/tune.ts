/** `vbdkit tune DOM:VDEV`: changes settings of a running `serve`. */
import { MAX_LOG_STATS_SECONDS, type Tuning } from '../../control/protocol.js'
import { DEFAULT_TUNABLES } from '../../engine/engine.js'
import { VbdError } from '../../errors.js'
import { formatSize } from '../../units.js'
import { TUNABLE_RANGES } from '../../vbd/tunables.js'
import { sizeOption, vbdArgument, wholeOption } from '../options.js'
import { action, addCommand, type Command, type Context } from '../program.js'
import { pairs } from '../table.js'
import { addControlOptions, type ControlOptions, connectControl } from '../xen_option.js'

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

/** Adds the command. */
export function addTune(program: Command, context: Context): void {
  const { terminal } = context
  const command = addCommand(program, 'tune', {
    summary: 'change settings of a disk that is being served',
    description:
      'Changes settings while guests are connected, and prints all of them. Without options it only prints.',
    examples: [
      ['vbdkit tune 1:xvda --poll-us 0', 'never poll: less CPU, more latency'],
      ['vbdkit tune 1:xvda --log-stats 10', 'a line of statistics every 10 s'],
    ],
  })
  command.argument('[DOM:VDEV]', 'the disk; the only one by default', vbdArgument)
  addControlOptions(addTuningOptions(command, false))
  command.action(
    action(context, async (wanted: string | undefined, options: ControlOptions & TuningOptions) => {
      const { client, vbd } = await connectControl(options, wanted)
      try {
        const now = await client.call({ verb: 'tune', vbd, tuning: tuningOf(options) })
        if (typeof now !== 'object' || now === null) {
          throw new VbdError('ERR_VBD_PROTOCOL', `${client.path} did not say what is set now`)
        }
        const entries = Object.entries(now).map(([name, value]) => [name, String(value)] as const)
        terminal.result({ vbd, ...now }, pairs(entries))
        return 0
      } finally {
        client.close()
      }
    }),
  )
}
