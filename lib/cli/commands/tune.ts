/** `vbdkit tune DOM:VDEV`: changes settings of a running `serve`. */
import { z } from 'zod'
import type { ControlClient } from '../../control/client.js'
import { VbdError } from '../../errors.js'
import { parseSize } from '../../units.js'
import { addControlOptions, type ControlOptions, connectControl } from '../control_option.js'
import { vbdArgument } from '../options.js'
import { action, addCommand, type Command, type Context } from '../program.js'
import { pairs } from '../table.js'
import { addTuningOptions, type TuningOptions, tuningOf } from '../tuning_options.js'

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
