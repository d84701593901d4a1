/** `vbdkit daemon`: serves whatever a toolstack attaches, as a service. */
import { Backend } from '../../backend.js'
import { ControlClient } from '../../control/client.js'
import { controlSocket, daemonSocket } from '../../control/path.js'
import { ControlServer } from '../../control/server.js'
import { backendTarget } from '../../control/target.js'
import { DEFAULT_CLAIMS, type KindClaim, parseKind } from '../../daemon/claims.js'
import { Daemon } from '../../daemon/daemon.js'
import type { DriverWords } from '../../daemon/params.js'
import { VbdError } from '../../errors.js'
import { findConflicts, refuseConflicts } from '../../host/conflicts.js'
import { Service } from '../../host/service.js'
import { formatSize } from '../../units.js'
import type { DeviceOffer } from '../../vbd/offer.js'
import type { Vbd } from '../../vbd/vbd.js'
import { Announcer } from '../announcer.js'
import { diskOf, diskOfParams, loadDiskOf } from '../drivers.js'
import { openLog } from '../log.js'
import { action, addCommand, type Command, type Context } from '../program.js'
import { aborted, stoppable } from '../signals.js'
import { addTuningOptions, type TuningOptions, tuningOf } from '../tuning_options.js'
import {
  addEngineOptions,
  addFileOptions,
  addOfferOptions,
  addServiceOptions,
  engineOptionsOf,
  type OfferWords,
  type OnStop,
  onStopOption,
  type ProcessWords,
  vbdOptionsOf,
} from '../vbd_options.js'
import { mockDirOf } from '../xen_option.js'

interface DaemonWords extends DriverWords, TuningOptions, OfferWords, ProcessWords {
  readonly kind?: readonly KindClaim[]
  readonly onStop?: OnStop
}

/** How long guests are given to let go of their disk: less than what `stoppable` gives us. */
const CLOSE_MS = 7000

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
  command.addOption(onStopOption('keep'))
  addEngineOptions(command)
  addServiceOptions(command)
  addOfferOptions(command)
  addFileOptions(command)
  addTuningOptions(command, true)
  command.action(
    action(context, (words: DaemonWords) =>
      stoppable(context.terminal, (signal) => run(context, words, signal)),
    ),
  )
}

async function run(context: Context, words: DaemonWords, signal: AbortSignal): Promise<number> {
  const log = await openLog(words.log, words.logLevel ?? 'info')
  const announcer = new Announcer(context.terminal, log)
  const end = new AbortController()
  const claims = words.kind ?? DEFAULT_CLAIMS
  let backend: Backend | undefined
  let control: ControlServer | undefined
  let daemon: Daemon | undefined
  const service = new Service({
    heartbeats: () => backend?.heartbeats() ?? [],
    onChange: (message) => announcer.warn(undefined, message),
  })
  try {
    if (onHost(words)) refuseConflicts(claims.map(({ kind }) => kind))
    backend = await Backend.open(backendOptions(words, claims))
    announcer.follow(backend)
    control = await listen(words, backend, () => end.abort())
    daemon = makeDaemon(words, claims, backend, announcer, service)
    daemon.start()
    announceReady(announcer, claims, backend, control)
    service.ready(statusOf(backend))
    await Promise.race([aborted(AbortSignal.any([signal, end.signal])), lost(backend, words)])
    announcer.say('stopping', {}, stoppingText(backend, words))
    return 0
  } finally {
    service.stopping()
    await daemon?.stop()
    await control?.close()
    await backend?.close({ timeoutMs: CLOSE_MS, keepGuest: keepsGuests(words) })
    if (backend !== undefined) announcer.say('stopped', {}, 'stopped')
    await log.close()
  }
}

function backendOptions(words: DaemonWords, claims: readonly KindClaim[]) {
  return {
    ...engineOptionsOf(words),
    tunables: tuningOf(words),
    kinds: claims.map(({ kind }) => kind),
  }
}

function makeDaemon(
  words: DaemonWords,
  claims: readonly KindClaim[],
  backend: Backend,
  announcer: Announcer,
  service: Service,
): Daemon {
  backend.on('closed', ({ vbd }) => {
    announcer.say('closed', { vbd: vbd.id }, `${vbd.id}: closed`)
    service.status(statusOf(backend))
  })
  const mockDir = backend.mock?.dir ?? mockDirOf(words.xen)
  return new Daemon({
    backend,
    claims,
    words: fileWords(words),
    vbd: vbdOptionsOf(words),
    // A disk that is a program has a thread of its own: it may be busy, and others must not wait for it.
    makeDisk: (driver, argument, options) =>
      driver === 'script'
        ? loadDiskOf(argument, [], { ...options, ownThread: true })
        : diskOf(driver, [argument], options),
    // Loaded since we started, by whoever attached another disk.
    obstacle: (kind) => (onHost(words) ? findConflicts([kind])[0] : undefined),
    isServedElsewhere: ({ domid, devid }) => answers(controlSocket(mockDir, domid, devid)),
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

/** A service is stopped to be started again: its guests must not lose their disks. */
function keepsGuests({ onStop = 'keep' }: DaemonWords): boolean {
  return onStop === 'keep'
}

function stoppingText(backend: Backend, words: DaemonWords): string {
  const count = backend.vbds().filter(({ connected }) => connected).length
  if (count === 0) return 'stopping'
  return keepsGuests(words)
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

function announceReady(
  announcer: Announcer,
  claims: readonly KindClaim[],
  backend: Backend,
  control: ControlServer,
): void {
  const kinds = claims.map(({ kind }) => kind)
  const mock = backend.mock?.dir
  const fields = { kinds, engine: backend.engine, control: control.path, pid: process.pid, mock }
  announcer.say('ready', fields, `serving what is attached as ${kinds.join(', ')}`)
}

async function listen(
  words: DaemonWords,
  backend: Backend,
  stop: () => void,
): Promise<ControlServer> {
  const path = words.control ?? daemonSocket(backend.mock?.dir ?? mockDirOf(words.xen))
  try {
    return await ControlServer.listen(path, backendTarget(backend, stop, diskOfParams))
  } catch (thrown) {
    if (!(thrown instanceof VbdError) || thrown.code !== 'ERR_VBD_BUSY') throw thrown
    throw new VbdError('ERR_VBD_BUSY', 'another vbdkit daemon is running', {
      path,
      cause: thrown,
      remedy: 'stop that one first',
    })
  }
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

/** Rejects when the mock ends, which takes its guests with it. A host's xenstore comes back. */
function lost(backend: Backend, words: DaemonWords): Promise<never> {
  return new Promise((_, reject) => {
    backend.on('xenstore', ({ state }) => {
      if (state === 'lost' && !onHost(words)) {
        reject(new VbdError('ERR_VBD_XENSTORE', 'the mock Xen has ended, and its guests with it'))
      }
    })
  })
}
