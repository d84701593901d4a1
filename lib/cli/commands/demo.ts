/** `vbdkit demo`: what `npm start` runs. And `demo-guest`, the process that is its guest. */
import { resolve } from 'node:path'
import { demo } from '../demo/demo.js'
import { type DemoGuestOptions, demoGuest } from '../demo/guest.js'
import { checkImage } from '../demo/image.js'
import { choiceOption, vbdArgument, wholeOption } from '../options.js'
import { action, addCommand, type Command, type Context, commandOf } from '../program.js'
import { stoppable } from '../signals.js'

interface DemoCommandOptions {
  readonly image?: string
  readonly seconds?: number
  readonly seed?: number
  readonly transfer?: string
}

const DEFAULT_SECONDS = 15

/** Adds the command. */
export function addDemo(program: Command, context: Context): void {
  const command = addCommand(program, 'demo', {
    description:
      'Makes a small ext4 image, starts a mock Xen, a backend and a guest as three ' +
      'processes, tells their handshake, runs a ' +
      'verified random workload, resizes the disk while it runs, prints statistics, checks ' +
      'the filesystem with e2fsck, and ' +
      'leaves nothing behind. It takes under a minute and needs neither Xen nor root.',
    examples: [
      ['vbdkit demo', 'with an image of its own'],
      ['vbdkit demo --image disk.img', 'with a copy of yours, which is only read'],
      ['vbdkit demo --transfer map --seconds 5', 'shorter, mapping guest pages for each batch'],
    ],
  })
  command
    .option('--image <path>', 'use a copy of this raw image; the file itself is only read')
    .addOption(
      wholeOption('--seconds <n>', 'how long the workload runs', {
        min: 1,
        max: 40,
        fallback: String(DEFAULT_SECONDS),
      }),
    )
    .addOption(
      wholeOption('--seed <n>', 'of the random workload', {
        min: 0,
        max: 2 ** 32 - 1,
        fallback: 'another each time',
      }),
    )
    .addOption(
      choiceOption(
        '--transfer <how>',
        'how guest pages are reached',
        ['auto', 'persistent', 'copy', 'map'],
        'auto',
      ),
    )
    .action(
      action(context, (options: DemoCommandOptions) =>
        stoppable(context.terminal, async (signal) => {
          const image = options.image === undefined ? undefined : resolve(options.image)
          if (image !== undefined) checkImage(image)
          const { seconds = DEFAULT_SECONDS, transfer = 'auto' } = options
          const seed = options.seed ?? Math.floor(Math.random() * 2 ** 32)
          return demo(context.terminal, { image, seconds, seed, transfer }, signal)
        }),
      ),
    )
}

/** Adds the command of its guest's process. */
export function addDemoGuest(program: Command, context: Context): void {
  commandOf(program, 'demo-guest')
    .argument('<DIR>')
    .argument('<DOM:VDEV>', '', vbdArgument)
    .option('--json')
    .requiredOption('--reference <file>')
    .addOption(wholeOption('--scratch-from <byte>', '', { min: 0, max: Number.MAX_SAFE_INTEGER }))
    .addOption(wholeOption('--seconds <n>', '', { min: 1, max: 40 }))
    .addOption(wholeOption('--until-bytes <n>', '', { min: 0, max: Number.MAX_SAFE_INTEGER }))
    .addOption(wholeOption('--seed <n>', '', { min: 0, max: 2 ** 32 - 1 }))
    .action(
      action(context, (dir: string, vbd: string, options: Omit<DemoGuestOptions, 'dir' | 'vbd'>) =>
        stoppable(context.terminal, (signal) =>
          demoGuest(context.terminal, { dir, vbd, ...options }, signal),
        ),
      ),
    )
}
