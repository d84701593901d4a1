/** `vbdkit serve DOM:VDEV DRIVER [ARG]`: serves a disk to a guest, in the foreground. */
import type { Backend } from '../../backend.js'
import { controlSocket } from '../../control/path.js'
import { formatSize, parseVbdId } from '../../units.js'
import type { ToolstackChoice } from '../../vbd/attachment.js'
import type { Vbd } from '../../vbd/vbd.js'
import { DISKS } from '../disk_words.js'
import { type DriverOptions, loadDiskOf } from '../drivers.js'
import { filterOption } from '../filters.js'
import { choiceOption, vbdArgument } from '../options.js'
import { action, addCommand, type Command, type Context } from '../program.js'
import {
  addServerOptions,
  runServer,
  type Server,
  type ServerWords,
  type Serving,
} from '../server.js'
import { stoppable } from '../signals.js'
import { vbdOptionsOf } from '../vbd_options.js'
import { mockDirOf } from '../xen_option.js'

interface ServeOptions extends DriverOptions, ServerWords {
  readonly kind?: string
  readonly toolstack?: ToolstackChoice
  readonly ownThread?: true
}

/** A disk that was served by hand is taken away with its server. */
const ON_STOP = 'close'

/** Adds the command. */
export function addServe(program: Command, context: Context): void {
  const command = addCommand(program, 'serve', {
    description:
      'Serves a disk to a guest, in the foreground, until Ctrl-C or SIGTERM. The guest may ' +
      'come and go, and may not exist ' +
      `yet. Drivers: ${DISKS}. A raw image is never probed for another format. FILE.ts (or ` +
      '.js, .mjs) is a module whose default export is a disk: it runs as it is, without a ' +
      'compiler and without a check of its types.',
    examples: [
      ['vbdkit serve 3:xvdb file /srv/vm3.raw', 'a raw image to domain 3, on a Xen host'],
      [
        'vbdkit serve --xen mock:/tmp/xen 1:xvda file disk.img',
        'on the mock of `vbdkit mock /tmp/xen`',
      ],
      ['vbdkit serve 3:xvdb file /srv/cd.iso --read-only', 'guests may only read'],
      ['vbdkit serve --xen mock:/tmp/xen 1:xvda null 1TiB', 'nothing at all, for measurements'],
      [
        'vbdkit serve --xen mock:/tmp/xen 1:xvda memory 1GiB --engine js',
        'by the engine that is written in TypeScript',
      ],
      ['vbdkit serve 3:xvdb ./disk.ts', 'a disk in TypeScript; `vbdkit init` writes one'],
      ['vbdkit serve 3:xvdb ./disk.ts size=1GiB', 'the same; it exports a function of { size }'],
      [
        'vbdkit serve 3:xvdb file vm3.raw --filter throttle:iops=500',
        'no faster than that; `tune` changes it',
      ],
    ],
  })
  command
    .argument('<DOM:VDEV>', 'the guest and its device', vbdArgument)
    .argument('<DRIVER>', DISKS)
    .argument('[ARG...]', 'of the driver')
  command.addOption(filterOption())
  addServeOptions(command)
  addServerOptions(command, ON_STOP)
  command.action(
    action(context, (id: string, driver: string, args: string[], options: ServeOptions) =>
      stoppable(context.terminal, (signal) => serve(context, id, driver, args, options, signal)),
    ),
  )
}

function addServeOptions(command: Command): void {
  command
    .option('--read-only', 'guests may only read')
    .option('--own-thread', 'run the functions of FILE.ts on a thread of their own')
    .option('--shared', 'several guests may use the file at once although one writes')
    .option('--kind <name>', 'kind of backend in xenstore: vbd, vbd3, qdisk, ... (default: vbd)')
    .addOption(
      choiceOption(
        '--toolstack <who>',
        'who makes the xenstore directories: a toolstack if it has, else we; we; or a toolstack',
        ['auto', 'create', 'wait'],
        'auto',
      ),
    )
}

async function serve(
  context: Context,
  id: string,
  driver: string,
  args: readonly string[],
  words: ServeOptions,
  signal: AbortSignal,
): Promise<number> {
  const disk = await loadDiskOf(driver, args, words)
  const start = async (server: Server): Promise<Serving> => {
    const { announcer, backend } = server
    const vbd = await backend.serve(id, disk, serveOptions(words))
    announceServing(server, vbd)
    return {
      status: `serving ${vbd.id}`,
      stopping: () => announcer.say('stopping', { vbd: vbd.id }, `${vbd.id}: stopping`),
    }
  }
  const options = {
    words,
    onStop: ON_STOP,
    ...(words.kind === undefined ? {} : { kinds: [words.kind] }),
    controlPath: (backend: Backend) => controlPath(words, backend, id),
    taken: {
      vbd: id,
      message: `${id} is served already by another vbdkit serve`,
      remedy: 'stop that one (`vbdkit list` shows it), or serve another device',
    },
    start,
  } as const
  return runServer(context, options, signal)
}

function serveOptions(options: ServeOptions) {
  const { readOnly, toolstack } = options
  return {
    ...vbdOptionsOf(options),
    ...(readOnly === undefined ? {} : { readOnly }),
    ...(toolstack === undefined ? {} : { toolstack }),
  }
}

function controlPath({ xen }: ServeOptions, backend: Backend, id: string): string {
  const { domid, devid } = parseVbdId(id)
  return controlSocket(backend.mock?.dir ?? mockDirOf(xen), domid, devid)
}

function announceServing({ announcer, backend, control }: Server, vbd: Vbd): void {
  const { description, sizeBytes, readOnly } = vbd.disk
  const mock = backend.mock?.dir
  const mode = readOnly ? ', read-only' : ''
  announcer.say(
    'serving',
    {
      vbd: vbd.id,
      disk: vbd.disk,
      engine: backend.engine,
      control: control.path,
      pid: process.pid,
      mock,
    },
    `${vbd.id}: serving ${description}, ${formatSize(sizeBytes)}${mode}, ${backend.engine} engine; Ctrl-C ends it`,
  )
  if (mock !== undefined)
    announcer.say('mock', { dir: mock }, `mock Xen in this process: guests use --xen mock:${mock}`)
}
