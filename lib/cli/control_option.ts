/** How the control commands find the `serve` or `daemon` that they are about: --xen, --control and the disk's name. */
import { resolve } from 'node:path'
import type { Command } from 'commander'
import { ControlClient } from '../control/client.js'
import { controlSocket, controlSockets, daemonSocket, vbdOfSocket } from '../control/path.js'
import { VbdError } from '../errors.js'
import type { XenChoice } from '../store.js'
import { parseVbdId } from '../units.js'
import { mockDirOf, xenOption } from './xen_option.js'

export interface ControlOptions {
  readonly xen: XenChoice
  readonly control?: string
}

/** --xen and --control, for commands that talk to a running `serve`. */
export function addControlOptions(command: Command): Command {
  return command
    .addOption(xenOption('the Xen it serves on: auto, host or mock:DIR'))
    .option('--control <socket>', "the server's control socket, when it is not in its usual place")
}

/** A connection to the server of `vbd`, and the vbd's name; without `vbd`, to the only server there is. */
export async function connectControl(
  options: ControlOptions,
  vbd: string | undefined,
): Promise<{ client: ControlClient; vbd: string }> {
  if (options.control !== undefined) {
    const client = await ControlClient.connect(resolve(options.control))
    return { client, vbd: vbd ?? (await onlyVbd(client)) }
  }
  const mockDir = mockDirOf(options.xen)
  if (vbd !== undefined) {
    return { client: await connectServer(mockDir, vbd), vbd }
  }
  const sockets = controlSockets(mockDir)
  const [only] = sockets
  if (only === undefined) throw nobody('any disk', mockDir)
  if (sockets.length > 1) {
    const names = sockets.map((path) => vbdOfSocket(path) ?? 'those of the daemon')
    throw new VbdError('ERR_VBD_ARGUMENT', `several disks are served: ${names.join(', ')}`, {
      remedy: 'say which: DOM:VDEV',
    })
  }
  const client = await connectOrExplain(only, 'any disk', mockDir)
  return { client, vbd: await onlyVbd(client) }
}

/** The server of one disk: a `serve` of its own, or else the daemon. */
async function connectServer(mockDir: string | undefined, vbd: string): Promise<ControlClient> {
  const { domid, devid } = parseVbdId(vbd)
  try {
    return await ControlClient.connect(controlSocket(mockDir, domid, devid))
  } catch {
    return connectOrExplain(daemonSocket(mockDir), vbd, mockDir)
  }
}

/** The vbd of a server that serves exactly one. */
async function onlyVbd(client: ControlClient): Promise<string> {
  const vbds = (await client.call({ verb: 'list' })) as { vbd: string }[]
  const [only] = vbds
  if (only !== undefined && vbds.length === 1) return only.vbd
  client.close()
  throw new VbdError('ERR_VBD_ARGUMENT', `${client.path} serves ${vbds.length} disks`, {
    remedy: 'say which: DOM:VDEV',
  })
}

async function connectOrExplain(
  path: string,
  what: string,
  mockDir: string | undefined,
): Promise<ControlClient> {
  try {
    return await ControlClient.connect(path)
  } catch {
    throw nobody(what, mockDir)
  }
}

function nobody(what: string, mockDir: string | undefined): VbdError {
  const where = mockDir === undefined ? 'on this host' : `on the mock in ${mockDir}`
  const hint = mockDir === undefined ? ', or name the mock with --xen mock:DIR' : ''
  return new VbdError('ERR_VBD_NOT_FOUND', `no \`vbdkit serve\` serves ${what} ${where}`, {
    remedy: `start one with \`vbdkit serve\`${hint}`,
  })
}
