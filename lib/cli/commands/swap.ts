/** `vbdkit swap DOM:VDEV DRIVER ARG`: puts another disk in place of the one that a guest uses. */
import { resolve } from 'node:path'
import { formatParams } from '../../daemon/params.js'
import { isDiskFile } from '../../disk/load.js'
import type { DiskInfo } from '../../engine/engine.js'
import { formatSize } from '../../units.js'
import { addControlOptions, type ControlOptions, connectControl } from '../control_option.js'
import type { DriverOptions } from '../drivers.js'
import { vbdArgument } from '../options.js'
import { action, addCommand, type Command, type Context } from '../program.js'
import { addFileOptions } from '../vbd_options.js'

interface SwapWords extends DriverOptions, ControlOptions {
  readonly shrink?: true
}

/** Adds the command. */
export function addSwap(program: Command, context: Context): void {
  const { terminal } = context
  const command = addCommand(program, 'swap', {
    description:
      'Answers what was taken, closes the disk, and goes on with another: an image that was moved, a copy on other ' +
      'storage. The guest sees a short wait, and the new size. What the new disk holds is your affair: while the ' +
      'guest writes, copy the image between `vbdkit pause` and this.',
    examples: [
      ['vbdkit swap 1:xvda file /new/disk.img', 'the same data elsewhere'],
      ['vbdkit swap 1:xvdc file /srv/cd2.iso --shrink', 'another medium, perhaps a smaller one'],
    ],
  })
  command
    .argument('<DOM:VDEV>', 'the disk', vbdArgument)
    .argument('<DRIVER>', 'file PATH | memory SIZE | null SIZE | FILE.ts')
    .argument('[ARG]', 'of the driver')
    .option('--shrink', 'allow a smaller disk: what is beyond its end is lost to the guest')
  addFileOptions(command)
  addControlOptions(command)
  command.action(
    action(context, async (wanted: string, driver: string, arg: string, words: SwapWords) => {
      const { client, vbd } = await connectControl(words, wanted)
      try {
        const params = paramsOf(driver, arg, words)
        const shrink = words.shrink === true
        const disk = (await client.call({ verb: 'swap', vbd, params, shrink })) as DiskInfo
        terminal.result(
          { vbd, disk },
          `${vbd}: now ${disk.description}, ${formatSize(disk.sizeBytes)}`,
        )
        return 0
      } finally {
        client.close()
      }
    }),
  )
}

/** In the server's words; a path is meant from where we are. */
function paramsOf(driver: string, arg: string | undefined, words: SwapWords): string {
  const { direct, io, sectorSize, writeThrough } = words
  const options = { direct, io, sectorSize, writeThrough } as DriverOptions
  if (isDiskFile(driver)) return formatParams('script', resolve(driver), {})
  const argument = driver === 'file' && arg !== undefined ? resolve(arg) : (arg ?? '')
  return formatParams(driver, argument, options)
}
