/** `vbdkit pause DOM:VDEV` and `vbdkit resume DOM:VDEV`: holding a guest's requests back for a while. */

import { addControlOptions, type ControlOptions, connectControl } from '../control_option.js'
import { vbdArgument } from '../options.js'
import { action, addCommand, type Command, type CommandText, type Context } from '../program.js'

/** Adds the command. */
export function addPause(program: Command, context: Context): void {
  add(program, context, 'pause', 'paused', {
    description:
      'Answers what was taken and takes no more, until `vbdkit resume`: the image is at rest, and may be copied or ' +
      'looked at. The guest waits; Linux complains after two minutes, and loses nothing.',
    examples: [['vbdkit pause 1:xvda && cp disk.img copy.img; vbdkit resume 1:xvda', 'a copy']],
  })
}

/** Adds the command. */
export function addResume(program: Command, context: Context): void {
  add(program, context, 'resume', 'resumed', {
    description: 'Ends what `vbdkit pause` began. Without a pause nothing happens.',
    examples: [['vbdkit resume 1:xvda', 'served again']],
  })
}

function add(
  program: Command,
  { terminal, ...context }: Context,
  verb: 'pause' | 'resume',
  done: string,
  text: CommandText,
): void {
  const command = addCommand(program, verb, text)
  command.argument('[DOM:VDEV]', 'the disk; the only one by default', vbdArgument)
  addControlOptions(command)
  command.action(
    action(
      { terminal, ...context },
      async (wanted: string | undefined, options: ControlOptions) => {
        const { client, vbd } = await connectControl(options, wanted)
        try {
          await client.call({ verb, vbd })
          terminal.result({ vbd, [done]: true }, `${vbd}: ${done}`)
          return 0
        } finally {
          client.close()
        }
      },
    ),
  )
}
