/** `vbdkit serve DOM:VDEV DRIVER [ARG]`: serves a disk to a guest, in the foreground. */
import { Backend } from '../../backend.js'
import { controlSocket } from '../../control/path.js'
import { ControlServer } from '../../control/server.js'
import { backendTarget } from '../../control/target.js'
import { VbdError } from '../../errors.js'
import { Service } from '../../host/service.js'
import type { XenChoice } from '../../store.js'
import { formatSize, parseVbdId } from '../../units.js'
import type { ToolstackChoice } from '../../vbd/attachment.js'
import type { Vbd } from '../../vbd/vbd.js'
import { Announcer } from '../announcer.js'
import { DISKS } from '../disk_words.js'
import { type DriverOptions, diskOfParams, loadDiskOf } from '../drivers.js'
import { filterOption } from '../filters.js'
import { openLog } from '../log.js'
import { choiceOption, vbdArgument } from '../options.js'
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

interface ServeOptions extends DriverOptions, TuningOptions, OfferWords, ProcessWords {
  readonly kind?: string
  readonly toolstack?: ToolstackChoice
  readonly ownThread?: true
  readonly onStop?: OnStop
}

/** How long guests are given to let go of their disk: less than what `stoppable` gives us. */
const CLOSE_MS = 7000

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
  addEngineOptions(command)
  addOfferOptions(command)
  addFileOptions(command)
  command.addOption(filterOption())
  addServeOptions(command)
  addServiceOptions(command)
  addTuningOptions(command, true)
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
    .addOption(onStopOption('close'))
}

async function serve(
  context: Context,
  id: string,
  driver: string,
  args: readonly string[],
  options: ServeOptions,
  signal: AbortSignal,
): Promise<number> {
  const disk = await loadDiskOf(driver, args, options)
  const log = await openLog(options.log, options.logLevel ?? 'info')
  const announcer = new Announcer(context.terminal, log)
  const end = new AbortController()
  let backend: Backend | undefined
  let control: ControlServer | undefined
  const service = new Service({
    heartbeats: () => backend?.heartbeats() ?? [],
    onChange: (message) => announcer.warn(undefined, message),
  })
  try {
    backend = await Backend.open(backendOptions(options))
    announcer.follow(backend)
    const path = controlPath(options, backend, id)
    control = await listen(
      path,
      backend,
      () => end.abort(),
      options.control === undefined ? id : undefined,
    )
    // Said before the first state of it, and with what makes it findable.
    const vbd = await backend.serve(id, disk, serveOptions(options))
    announceServing(announcer, vbd, backend, control)
    service.ready(`serving ${vbd.id}`)
    const failure = untilGone(backend, options.xen)
    await Promise.race([aborted(AbortSignal.any([signal, end.signal])), failure])
    announcer.say('stopping', { vbd: vbd.id }, `${vbd.id}: stopping`)
    return 0
  } finally {
    service.stopping()
    await control?.close()
    await backend?.close({ timeoutMs: CLOSE_MS, keepGuest: options.onStop === 'keep' })
    if (backend !== undefined) announcer.say('stopped', {}, 'stopped')
    await log.close()
  }
}

function backendOptions(options: ServeOptions) {
  const { kind } = options
  return {
    ...engineOptionsOf(options),
    tunables: tuningOf(options),
    ...(kind === undefined ? {} : { kinds: [kind] }),
  }
}

function serveOptions(options: ServeOptions) {
  const { readOnly, toolstack } = options
  return {
    ...vbdOptionsOf(options),
    ...(readOnly === undefined ? {} : { readOnly }),
    ...(toolstack === undefined ? {} : { toolstack }),
  }
}

function controlPath(options: ServeOptions, backend: Backend, id: string): string {
  if (options.control !== undefined) return options.control
  const { domid, devid } = parseVbdId(id)
  return controlSocket(backend.mock?.dir ?? mockDirOf(options.xen), domid, devid)
}

/** @param id of the disk when the socket is in its usual place: then whoever answers there serves the same disk */
async function listen(
  path: string,
  backend: Backend,
  stop: () => void,
  id: string | undefined,
): Promise<ControlServer> {
  try {
    return await ControlServer.listen(path, backendTarget(backend, stop, diskOfParams))
  } catch (thrown) {
    if (id === undefined || !(thrown instanceof VbdError) || thrown.code !== 'ERR_VBD_BUSY')
      throw thrown
    throw new VbdError('ERR_VBD_BUSY', `${id} is served already by another vbdkit serve`, {
      vbd: id,
      path,
      cause: thrown,
      remedy: 'stop that one (`vbdkit list` shows it), or serve another device',
    })
  }
}

function announceServing(
  announcer: Announcer,
  vbd: Vbd,
  backend: Backend,
  control: ControlServer,
): void {
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

/**
 * A mock that has ended takes its guests with it and does not come back; rejects then. A host's
 * xenstore comes back.
 */
function untilGone(backend: Backend, xen: XenChoice): Promise<never> {
  return new Promise((_, reject) => {
    backend.on('xenstore', ({ state }) => {
      if (state === 'lost' && xen.startsWith('mock')) {
        reject(
          new VbdError('ERR_VBD_XENSTORE', 'the mock Xen has ended, and its guests with it', {
            remedy: 'start `vbdkit mock` again, then serve again',
          }),
        )
      }
    })
  })
}
