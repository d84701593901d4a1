/** `vbdkit snapshot`, `commit` and `reset DOM:VDEV`: what an overlay has, kept, written below, or forgotten. */
import { addControlOptions, type ControlOptions, connectControl } from '../control_option.js'
import { vbdArgument } from '../options.js'
import { action, addCommand, type Command, type CommandText, type Context } from '../program.js'

interface OverlayWords extends ControlOptions {
  readonly force?: true
}

/** Adds the command. */
export function addSnapshot(program: Command, context: Context): void {
  add(program, context, 'snapshot', {
    description:
      'Answers what was taken, makes a layer of the scratch file (FILE.1, FILE.2, ...) and goes on with an empty one ' +
      'above it. The guest sees a short wait; its file systems are in the layer as after a loss of power, so have it ' +
      'sync or freeze them first. Layers are found again when the overlay is served the next time.',
    examples: [['vbdkit snapshot 1:xvda', 'prints the new layer']],
  })
}

/** Adds the command. */
export function addCommit(program: Command, context: Context): void {
  add(program, context, 'commit', {
    description:
      'Answers what was taken, writes all layers and the scratch file into the disk below, and empties the overlay. ' +
      'Nobody else may be using that disk. Interrupted, it can be done again.',
    examples: [['vbdkit commit 1:xvda', 'the image below has what the guest has']],
  })
}

/** Adds the command. */
export function addReset(program: Command, context: Context): void {
  add(program, context, 'reset', {
    description:
      'Forgets what was written since the last `vbdkit snapshot`, or since the overlay was made. A guest that is ' +
      'connected would find other data under it: that has to be asked for with --force.',
    examples: [['vbdkit reset 1:xvda', 'as it was']],
  }).option('--force', 'although a guest is connected')
}

function add(
  program: Command,
  { terminal, ...context }: Context,
  verb: 'snapshot' | 'commit' | 'reset',
  text: CommandText,
): Command {
  const command = addCommand(program, verb, text)
  command.argument('[DOM:VDEV]', 'the disk; the only one by default', vbdArgument)
  addControlOptions(command)
  command.action(
    action({ terminal, ...context }, async (wanted: string | undefined, words: OverlayWords) => {
      const { client, vbd } = await connectControl(words, wanted)
      try {
        const force = words.force === true
        const call = verb === 'reset' ? ({ verb, vbd, force } as const) : ({ verb, vbd } as const)
        const { layer } = (await client.call(call)) as { layer?: string }
        terminal.result(
          { vbd, ...(layer === undefined ? { done: verb } : { layer }) },
          `${vbd}: ${layer ?? DONE[verb]}`,
        )
        return 0
      } finally {
        client.close()
      }
    }),
  )
  return command
}

const DONE = { snapshot: 'a new layer', commit: 'written into the disk below', reset: 'reset' }
