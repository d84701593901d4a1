/** `vbdkit daemon`: serves whatever a toolstack attaches, as a service. */
import type { Backend } from '../../backend.js'
import { ControlClient } from '../../control/client.js'
import { controlSocket, daemonSocket } from '../../control/path.js'
import { DEFAULT_CLAIMS, type KindClaim, parseKind } from '../../daemon/claims.js'
import { Daemon } from '../../daemon/daemon.js'
import type { DriverWords } from '../../daemon/params.js'
import { findConflicts, refuseConflicts } from '../../host/conflicts.js'
import { formatSize } from '../../units.js'
import type { DeviceOffer } from '../../vbd/offer.js'
import type { Vbd } from '../../vbd/vbd.js'
import type { Announcer } from '../announcer.js'
import { diskNamed } from '../drivers.js'
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

interface DaemonWords extends DriverWords, ServerWords {
  readonly kind?: readonly KindClaim[]
}

/** A service is stopped to be started again: its guests must not lose their disks. */
const ON_STOP = 'keep'

/** Adds the command. */
export function addDaemon(program: Command, context: Context): void {
  const command = addCommand(program, 'daemon', {
    description:
      'Serves every disk that a toolstack attaches with script=block-vbdkit, one process for all of them, until ' +
      'SIGTERM. The disk is what the target in its configuration says: /path/of/image, or ' +
      'DRIVER[,OPTION...]:ARGUMENT as in file,direct=on:/srv/a.raw or memory:1GiB. Disks of other backends are left ' +
      'alone. To be run by a service manager, which it tells when it is ready (sd_notify). Stopped and started ' +
      'again, it goes on under its guests, which keep their disks and wait meanwhile.',
    examples: [
      ['vbdkit daemon', 'in dom0, without xen-blkback'],
      ['vbdkit daemon --kind vbd3 --kind vbdkit', 'beside xen-blkback: xl with backendtype=tap'],
      ['vbdkit daemon --xen mock:/tmp/xen', 'on the mock of `vbdkit mock /tmp/xen`'],
    ],
  })
  command.option(
    '--kind <name>',
    'kind of backend in xenstore, again for more; NAME:all takes every device of a kind that is shared otherwise ' +
      '(default: vbd, vbd3, vbdkit)',
    (text: string, before: readonly KindClaim[] = []) => [...before, parseKind(text)],
  )
  addServerOptions(command, ON_STOP)
  command.action(
    action(context, (words: DaemonWords) =>
      stoppable(context.terminal, (signal) => run(context, words, signal)),
    ),
  )
}

async function run(context: Context, words: DaemonWords, signal: AbortSignal): Promise<number> {
  const claims = words.kind ?? DEFAULT_CLAIMS
  const kinds = claims.map(({ kind }) => kind)
  if (onHost(words)) refuseConflicts(kinds)
  const start = async (server: Server): Promise<Serving> => {
    const { announcer, backend } = server
    const daemon = makeDaemon(words, claims, server)
    daemon.start()
    announceReady(server, kinds)
    return {
      status: statusOf(backend),
      stopping: () => announcer.say('stopping', {}, stoppingText(backend, words)),
      stop: () => daemon.stop(),
    }
  }
  const options = {
    words,
    kinds,
    onStop: ON_STOP,
    controlPath: (backend: Backend) => daemonSocket(mockDir(words, backend)),
    taken: { message: 'another vbdkit daemon is running', remedy: 'stop that one first' },
    start,
  } as const
  return runServer(context, options, signal)
}

function makeDaemon(
  words: DaemonWords,
  claims: readonly KindClaim[],
  { backend, announcer, service }: Server,
): Daemon {
  backend.on('closed', ({ vbd }) => {
    announcer.say('closed', { vbd: vbd.id }, `${vbd.id}: closed`)
    service.status(statusOf(backend))
  })
  return new Daemon({
    backend,
    claims,
    words: fileWords(words),
    vbd: vbdOptionsOf(words),
    makeDisk: diskNamed,
    // Loaded since we started, by whoever attached another disk.
    obstacle: (kind) => (onHost(words) ? findConflicts([kind])[0] : undefined),
    isServedElsewhere: ({ domid, devid }) =>
      answers(controlSocket(mockDir(words, backend), domid, devid)),
    events: {
      serving(vbd, offer) {
        announceServing(announcer, vbd, offer)
        service.status(statusOf(backend))
      },
      refused: ({ id }, error) => announcer.error(id, error),
      waiting({ id }, error) {
        announcer.error(id, error)
        announcer.warn(id, 'its guest waits; this is tried again')
      },
      ignored: ({ id, kind, script }) =>
        announcer.detail('ignored', { vbd: id, kind, script }, `${id}: not ours`),
    },
  })
}

function stoppingText(backend: Backend, words: DaemonWords): string {
  const count = backend.vbds().filter(({ connected }) => connected).length
  if (count === 0) return 'stopping'
  return (words.onStop ?? ON_STOP) === 'keep'
    ? `stopping; ${count} connected disks wait for the next vbdkit daemon`
    : `stopping; closing ${count} connected disks`
}

function statusOf(backend: Backend): string {
  const count = backend.vbds().length
  return `serving ${count} ${count === 1 ? 'disk' : 'disks'}`
}

/** What every file gets that does not say otherwise. */
function fileWords({ direct, io, sectorSize, writeThrough }: DaemonWords): DriverWords {
  return {
    ...(direct === undefined ? {} : { direct }),
    ...(io === undefined ? {} : { io }),
    ...(sectorSize === undefined ? {} : { sectorSize }),
    ...(writeThrough === undefined ? {} : { writeThrough }),
  }
}

function announceServing(announcer: Announcer, vbd: Vbd, { kind, params }: DeviceOffer): void {
  const { description, sizeBytes, readOnly } = vbd.disk
  const mode = readOnly ? ', read-only' : ''
  announcer.say(
    'serving',
    { vbd: vbd.id, kind, params, disk: vbd.disk },
    `${vbd.id}: serving ${description}, ${formatSize(sizeBytes)}${mode}`,
  )
}

function announceReady({ announcer, backend, control }: Server, kinds: readonly string[]): void {
  const mock = backend.mock?.dir
  const fields = { kinds, engine: backend.engine, control: control.path, pid: process.pid, mock }
  announcer.say('ready', fields, `serving what is attached as ${kinds.join(', ')}`)
}

function mockDir({ xen }: DaemonWords, backend: Backend): string | undefined {
  return backend.mock?.dir ?? mockDirOf(xen)
}

async function answers(path: string): Promise<boolean> {
  try {
    const client = await ControlClient.connect(path)
    client.close()
    return true
  } catch {
    return false
  }
}

function onHost({ xen }: DaemonWords): boolean {
  return xen === 'auto' || xen === 'host'
}
