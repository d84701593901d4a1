/** `vbdkit explain DOM:VDEV`: how a disk is served. */

import { addControlOptions, type ControlOptions, connectControl } from '../control_option.js'
import { vbdArgument } from '../options.js'
import { action, addCommand, type Command, type Context } from '../program.js'

/** Adds the command. */
export function addExplain(program: Command, context: Context): void {
  const { terminal } = context
  const command = addCommand(program, 'explain', {
    description:
      'Says of which stages a disk is made and where each of them runs, in C++ or as a script, and what was agreed ' +
      'on with the guest. The chain from the storage outwards runs in C++; the first script takes the rest.',
    examples: [
      ['vbdkit explain 1:xvda', 'for people'],
      ['vbdkit explain 1:xvda --json', 'the same as one document'],
    ],
  })
  command.argument('[DOM:VDEV]', 'the disk; the only one by default', vbdArgument)
  addControlOptions(command)
  command.action(
    action(context, async (wanted: string | undefined, options: ControlOptions) => {
      const { client, vbd } = await connectControl(options, wanted)
      try {
        const { text, ...explanation } = (await client.call({ verb: 'explain', vbd })) as {
          text: string
        }
        terminal.result(explanation, text)
        return 0
      } finally {
        client.close()
      }
    }),
  )
}
