/** `vbdkit xl-script install|uninstall|print`: the hotplug script that xl needs for our disks. */
import { resolve } from 'node:path'
import {
  hotplugScript,
  type Installed,
  installScript,
  SCRIPT_FOLDER,
  uninstallScript,
} from '../../daemon/hotplug_script.js'
import { VbdError } from '../../errors.js'
import { action, addCommand, type Command, type Context } from '../program.js'

const WHAT = ['install', 'uninstall', 'print'] as const

/** Adds the command. */
export function addXlScript(program: Command, context: Context): void {
  const { terminal } = context
  const command = addCommand(program, 'xl-script', {
    description:
      `Writes ${SCRIPT_FOLDER}/block-vbdkit, which disk lines name with script=block-vbdkit: xl runs it for each ` +
      'such disk, and shows what it reports when `vbdkit daemon` refuses a disk or does not run. Nothing else is ' +
      'written. `uninstall` takes it away again, `print` shows it.',
    examples: [
      ['vbdkit xl-script install', 'once, in dom0 and in each driver domain'],
      ['vbdkit xl-script install --dir debian/tmp/etc/xen/scripts', 'for a package'],
      ['vbdkit xl-script print', 'what it would write'],
    ],
  })
  command
    .argument('<WHAT>', WHAT.join(', '))
    .option('--dir <folder>', 'where xl looks for scripts', SCRIPT_FOLDER)
  command.action(
    action(context, async (what: string, { dir }: { dir: string }) => {
      const folder = resolve(dir)
      switch (what) {
        case 'print':
          terminal.result({ script: hotplugScript() }, hotplugScript())
          return 0
        case 'install':
          return show(installScript(folder))
        case 'uninstall':
          return show(uninstallScript(folder))
        default:
          throw new VbdError('ERR_VBD_ARGUMENT', `'${what}' is none of ${WHAT.join(', ')}`)
      }
    }),
  )

  function show(installed: Installed): number {
    const { path, done } = installed
    terminal.result(installed, done === 'absent' ? `${path} is not there` : `${path}: ${done}`)
    return 0
  }
}
