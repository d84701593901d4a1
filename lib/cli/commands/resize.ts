/** `vbdkit resize DOM:VDEV SIZE`: changes the size of a disk while its guest uses it. */
import type { Resized } from '../../control/target.js'
import { VbdError } from '../../errors.js'
import { formatSize } from '../../units.js'
import type { VbdInfo } from '../../vbd/info.js'
import { addControlOptions, type ControlOptions, connectControl } from '../control_option.js'
import { sizeArgument, vbdArgument } from '../options.js'
import { action, addCommand, type Command, type Context } from '../program.js'

/** Adds the command. */
export function addResize(program: Command, context: Context): void {
  const { terminal } = context
  const command = addCommand(program, 'resize', {
    description:
      'Makes the disk SIZE bytes long, image included, and tells the guest, which sees the new size at once. ' +
      'SIZE is a number with a unit (10GiB, 1.5T, 500MB), or with + before it, how much to add.',
    examples: [
      ['vbdkit resize 1:xvda 20GiB', 'to 20 GiB'],
      ['vbdkit resize --xen mock:/tmp/xen 1:xvda +1GiB', 'by 1 GiB, on the mock Xen'],
    ],
  })
  command
    .argument('<DOM:VDEV>', 'the disk', vbdArgument)
    .argument('<SIZE>', 'its new size')
    .option('--shrink', 'allow a smaller size: what is beyond it is lost')
  addControlOptions(command)
  command.action(
    action(
      context,
      async (vbd: string, size: string, options: ControlOptions & { shrink?: true }) => {
        const grow = size.startsWith('+')
        const amount = sizeArgument(grow ? size.slice(1) : size)
        const { client } = await connectControl(options, vbd)
        try {
          const { disk } = (await client.call({ verb: 'info', vbd })) as VbdInfo
          const { sizeBytes } = disk
          const wanted = grow ? sizeBytes + amount : amount
          if (wanted < sizeBytes && options.shrink !== true) {
            throw new VbdError(
              'ERR_VBD_ARGUMENT',
              `${vbd} has ${formatSize(sizeBytes)}: ${formatSize(wanted)} would cut off its end`,
              { vbd, remedy: 'add --shrink if that is meant' },
            )
          }
          const done = (await client.call({
            verb: 'resize',
            vbd,
            sizeBytes: wanted,
            shrink: options.shrink === true,
          })) as Resized
          const { previousBytes } = done
          terminal.result(
            { vbd, ...done },
            `${vbd}: ${formatSize(previousBytes)} → ${formatSize(done.sizeBytes)}`,
          )
          return 0
        } finally {
          client.close()
        }
      },
    ),
  )
}
