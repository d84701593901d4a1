/** `vbdkit unit`: prints a systemd service for `vbdkit daemon`. */
import { realpathSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { systemdUnit } from '../../host/unit.js'
import { wholeOption } from '../options.js'
import { action, addCommand, type Command, type Context } from '../program.js'

interface UnitWords {
  readonly device?: readonly string[]
  readonly writable?: readonly string[]
  readonly watchdog?: number
}

/** Where images usually are; those that do not exist are no error. */
const IMAGES = ['/srv', '/var/lib/xen', '/var/lib/vbdkit']

const collect = (text: string, before: readonly string[] = []) => [...before, text]

/** Adds the command. */
export function addUnit(program: Command, context: Context): void {
  addCommand(program, 'unit', {
    description:
      'Prints a hardened systemd service that runs `vbdkit daemon` with this node and this package: no capabilities, ' +
      'no network, no device but those of Xen, everything read-only but the directories of the images. ' +
      'The disks that it may open are said with --writable and --device.',
    examples: [
      ['vbdkit unit > /etc/systemd/system/vbdkit.service', 'images in /srv and /var/lib/xen'],
      ['vbdkit unit --device block-device-mapper -- --kind vbd3', 'disks on LVM, another kind'],
      ['vbdkit unit --writable /data/images', 'images elsewhere'],
    ],
  })
    .argument('[ARG...]', 'of `vbdkit daemon`, after --')
    .option(
      '--device <path>',
      'a block device, or a class of them, for disks; again for more',
      collect,
    )
    .option(
      '--writable <dir>',
      `a directory with images; again for more (default: ${IMAGES.join(', ')})`,
      collect,
    )
    .addOption(
      wholeOption('--watchdog <seconds>', 'restart when a thread has hung for so long', {
        min: 1,
        max: 3600,
        fallback: '30',
      }),
    )
    .action(
      action(context, async (args: string[], words: UnitWords) => {
        const manifest = createRequire(import.meta.url).resolve('vbdkit/package.json')
        const unit = systemdUnit({
          node: realpathSync(process.execPath),
          script: join(dirname(manifest), 'bin/vbdkit.js'),
          arguments: args,
          writable: words.writable ?? IMAGES,
          devices: words.device ?? [],
          watchdogSeconds: words.watchdog ?? 30,
        })
        context.terminal.result({ unit }, unit)
        return 0
      }),
    )
}
