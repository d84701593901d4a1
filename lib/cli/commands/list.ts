/** `vbdkit list`: the disks that are being served here. */
import { existsSync } from 'node:fs'
import { ControlClient } from '../../control/client.js'
import { controlSockets } from '../../control/path.js'
import type { VbdSummary } from '../../control/target.js'
import { VbdError } from '../../errors.js'
import { formatSize } from '../../units.js'
import { addControlOptions, type ControlOptions } from '../control_option.js'
import { action, addCommand, type Command, type Context } from '../program.js'
import { table } from '../table.js'
import { mockDirOf } from '../xen_option.js'

/** Adds the command. */
export function addList(program: Command, context: Context): void {
  const { terminal } = context
  const command = addCommand(program, 'list', {
    description: 'Asks every running `vbdkit serve` of this user on this Xen what it serves.',
    examples: [
      ['vbdkit list', 'on this host'],
      ['vbdkit list --xen mock:/tmp/xen', 'on the mock Xen'],
    ],
  })
  addControlOptions(command)
  command.action(
    action(context, async (options: ControlOptions) => {
      const paths = options.control === undefined ? socketsOf(options) : [options.control]
      const answers = await Promise.all(
        paths.map((path) => ask(path, options.control !== undefined)),
      )
      const vbds = answers.flat()
      terminal.result(vbds, vbds.length === 0 ? 'nothing is being served' : show(vbds))
      return 0
    }),
  )
}

/** @throws ERR_VBD_NO_XEN when there is no such mock, which is not the same as one where nothing is served */
function socketsOf({ xen }: ControlOptions): string[] {
  const mockDir = mockDirOf(xen)
  if (mockDir !== undefined && !existsSync(mockDir)) {
    throw new VbdError('ERR_VBD_NO_XEN', `no mock Xen runs in ${mockDir}`, {
      path: mockDir,
      remedy: 'check the path, or start one with `vbdkit mock DIR`',
    })
  }
  return controlSockets(mockDir)
}

/** What one server serves; nothing when it is gone, unless it was named. */
async function ask(path: string, named: boolean): Promise<(VbdSummary & { control: string })[]> {
  let client: ControlClient
  try {
    client = await ControlClient.connect(path)
  } catch (thrown) {
    if (named) throw thrown
    return []
  }
  try {
    const vbds = (await client.call({ verb: 'list' })) as VbdSummary[]
    return vbds.map((vbd) => ({ ...vbd, control: path }))
  } finally {
    client.close()
  }
}

function show(vbds: readonly VbdSummary[]): string {
  return table(
    [
      { title: 'VBD' },
      { title: 'STATE' },
      { title: 'SIZE', right: true },
      { title: 'MODE' },
      { title: 'TRANSFER' },
      { title: 'ENGINE' },
      { title: 'DISK' },
    ],
    vbds.map((vbd) => [
      vbd.vbd,
      vbd.paused ? `${vbd.state}, paused` : vbd.state,
      formatSize(vbd.sizeBytes),
      vbd.readOnly ? 'r' : 'rw',
      vbd.transfer ?? '-',
      vbd.engine,
      vbd.disk,
    ]),
  )
}
