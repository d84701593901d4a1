/** `vbdkit tune DOM:VDEV`: changes settings of a running `serve`. */
import { z } from 'zod'
import type { ControlClient } from '../../control/client.js'
import { MAX_LOG_STATS_SECONDS, type Tuning } from '../../control/protocol.js'
import { DEFAULT_TUNABLES } from '../../engine/engine.js'
import { VbdError } from '../../errors.js'
import { formatSize, parseSize } from '../../units.js'
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

/** A setting of a stage: `throttle.iops=500`. */
interface StageSetting {
  readonly stage: string
  readonly setting: string
  readonly value: number
}

/** Adds the command. */
export function addTune(program: Command, context: Context): void {
  const { terminal } = context
  const command = addCommand(program, 'tune', {
    summary: 'change settings of a disk that is being served',
    description:
      'Changes settings while guests are connected, and prints all of them, with the counters of the drivers and ' +
      'filters of the disk. Without options it only prints.',
    examples: [
      ['vbdkit tune 1:xvda --poll-us 0', 'never poll: less CPU, more latency'],
      ['vbdkit tune 1:xvda --log-stats 10', 'a line of statistics every 10 s'],
      ['vbdkit tune 1:xvda throttle.iops=500 throttle.bps=10MiB', 'other limits; 0: none'],
      ['vbdkit tune 1:xvda fault.probability=0.5', 'of its filter `fault`'],
    ],
  })
  command.argument('[DOM:VDEV]', 'the disk; the only one by default')
  command.argument('[STAGE.SETTING=VALUE...]', 'settings of its drivers and filters')
  addControlOptions(addTuningOptions(command, false))
  command.action(
    action(
      context,
      async (
        first: string | undefined,
        rest: string[],
        options: ControlOptions & TuningOptions,
      ) => {
        const given = first === undefined ? [] : [first, ...rest]
        const wanted = first?.includes('=') === false ? vbdArgument(first) : undefined
        const settings = (wanted === undefined ? given : rest).map(parseSetting)
        const { client, vbd } = await connectControl(options, wanted)
        try {
          const now = await client.call({ verb: 'tune', vbd, tuning: tuningOf(options) })
          if (typeof now !== 'object' || now === null) {
            throw new VbdError('ERR_VBD_PROTOCOL', `${client.path} did not say what is set now`)
          }
          const stages = await tuneStages(client, vbd, settings)
          const entries = [
            ...Object.entries(now),
            ...stages.flatMap(({ name, values }) =>
              Object.entries(values).map(([setting, value]) => [`${name}.${setting}`, value]),
            ),
          ].map(([name, value]) => [String(name), String(value)] as const)
          terminal.result({ vbd, ...now, stages }, pairs(entries))
          return 0
        } finally {
          client.close()
        }
      },
    ),
  )
}

const stagesSchema = z.object({
  stages: z.array(
    z.object({ name: z.string(), kind: z.string(), values: z.record(z.string(), z.number()) }),
  ),
})

async function tuneStages(client: ControlClient, vbd: string, settings: readonly StageSetting[]) {
  for (const { stage, setting, value } of settings) {
    await client.call({ verb: 'stages', vbd, tune: { stage, settings: { [setting]: value } } })
  }
  return stagesSchema.parse(await client.call({ verb: 'stages', vbd })).stages
}

function parseSetting(text: string): StageSetting {
  const match = /^([a-zA-Z]+(?:#\d+)?)\.([a-zA-Z]+)=(.+)$/.exec(text)
  const [, stage, setting, word] = match ?? []
  if (stage === undefined || setting === undefined || word === undefined) {
    throw new VbdError('ERR_VBD_ARGUMENT', `'${text}' is no setting of a driver or filter`, {
      remedy: 'write: throttle.iops=500',
    })
  }
  const value = /^\d+(\.\d+)?$/.test(word) ? Number(word) : parseSize(word)
  return { stage, setting, value }
}
