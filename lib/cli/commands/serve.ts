/** `vbdkit serve DOM:VDEV DRIVER [ARG]`: serves a disk to a guest, in the foreground. */
import { Backend } from '../../backend.js'
import { controlSocket } from '../../control/path.js'
import { ControlServer } from '../../control/server.js'
import { backendTarget } from '../../control/target.js'
import type { Placement, Protocol, TransferChoice } from '../../engine/engine.js'
import { VbdError } from '../../errors.js'
import { Service } from '../../host/service.js'
import type { EngineChoice, XenChoice } from '../../platform.js'
import { formatSize, parseVbdId } from '../../units.js'
import type { ToolstackChoice } from '../../vbd/attachment.js'
import { MAX_INDIRECT_SEGMENTS, MAX_QUEUES, MAX_RING_ORDER } from '../../vbd/options.js'
import type { Vbd } from '../../vbd/vbd.js'
import { Announcer } from '../announcer.js'
import { DRIVERS, type DriverOptions, diskOf } from '../drivers.js'
import { LOG_LEVELS, type LogLevel, openLog } from '../log.js'
import { choiceOption, vbdArgument, wholeOption } from '../options.js'
import { action, addCommand, type Command, type Context } from '../program.js'
import { aborted, stoppable } from '../signals.js'
import { mockDirOf, xenOption } from '../xen_option.js'
import { addTuningOptions, type TuningOptions, tuningOf } from './tune.js'

interface ServeOptions extends DriverOptions, TuningOptions {
  readonly xen: XenChoice
  readonly transfer?: TransferChoice
  readonly engine?: EngineChoice
  readonly queues?: number
  readonly ringOrder?: number
  readonly indirect?: number
  readonly reactors?: number
  readonly placement?: Placement
  readonly protocolDefault?: Protocol
  readonly kind?: string
  readonly toolstack?: ToolstackChoice
  readonly onFlushFailure?: 'hold' | 'close'
  readonly discard?: boolean
  readonly flush?: boolean
  readonly control?: string
  readonly log?: string
  readonly logLevel?: LogLevel
}

/** How long guests are given to let go of their disk: less than what `stoppable` gives us. */
const CLOSE_MS = 7000

/** Adds the command. */
export function addServe(program: Command, context: Context): void {
  const command = addCommand(program, 'serve', {
    summary: 'serve a disk to a guest',
    description:
      'Serves a disk to a guest, in the foreground, until Ctrl-C or SIGTERM. The guest may ' +
      'come and go, and may not exist ' +
      `yet. Drivers: ${DRIVERS}. A raw image is never probed for another format.`,
    examples: [
      ['vbdkit serve 3:xvdb file /srv/vm3.raw', 'a raw image to domain 3, on a Xen host'],
      [
        'vbdkit serve --xen mock:/tmp/xen 1:xvda file disk.img',
        'on the mock of `vbdkit mock /tmp/xen`',
      ],
      ['vbdkit serve 3:xvdb file /srv/cd.iso --read-only', 'guests may only read'],
      ['vbdkit serve --xen mock:/tmp/xen 1:xvda null 1TiB', 'nothing at all, for measurements'],
    ],
  })
  command
    .argument('<DOM:VDEV>', 'the guest and its device', vbdArgument)
    .argument('<DRIVER>', DRIVERS)
    .argument('[ARG...]', 'of the driver')
  addOfferOptions(command)
  addDiskOptions(command)
  addProcessOptions(command)
  addTuningOptions(command, true)
  command.action(
    action(context, (id: string, driver: string, args: string[], options: ServeOptions) =>
      stoppable(context.terminal, (signal) => serve(context, id, driver, args, options, signal)),
    ),
  )
}

function addOfferOptions(command: Command): void {
  const indirect = { min: 0, max: MAX_INDIRECT_SEGMENTS, fallback: '256' }
  const order = { min: 0, max: MAX_RING_ORDER, fallback: '4, 16 pages' }
  command
    .addOption(xenOption('where Xen is: auto, host, mock (in this process) or mock:DIR'))
    .addOption(
      choiceOption(
        '--transfer <how>',
        'how guest pages are reached',
        ['auto', 'persistent', 'copy', 'map'],
        'auto',
      ),
    )
    .addOption(choiceOption('--engine <which>', 'what moves the data', ['native', 'js'], 'native'))
    .addOption(
      wholeOption('--queues <n>', 'rings that the guest may use', {
        min: 1,
        max: MAX_QUEUES,
        fallback: 'the processors, at most 4',
      }),
    )
    .addOption(
      wholeOption(
        '--ring-order <n>',
        'pages per ring that the guest may use, as a power of two',
        order,
      ),
    )
    .addOption(
      wholeOption(
        '--indirect <n>',
        'segments of an indirect request; 0: none are offered',
        indirect,
      ),
    )
    .option('--no-flush', 'do not offer cache flushes: each write is durable before its answer')
    .option('--no-discard', 'do not offer discard')
    .addOption(
      choiceOption(
        '--protocol-default <abi>',
        'the ABI of guests that name none',
        ['x86_64-abi', 'x86_32-abi', 'arm-abi'],
        process.arch === 'arm64' ? 'arm-abi' : 'x86_32-abi',
      ),
    )
    .addOption(
      choiceOption(
        '--on-flush-failure <what>',
        'when a flush fails: answer no more, or close',
        ['hold', 'close'],
        'hold',
      ),
    )
}

function addDiskOptions(command: Command): void {
  command
    .option('--read-only', 'guests may only read')
    .addOption(
      choiceOption(
        '--direct <how>',
        'past the page cache (O_DIRECT)',
        ['auto', 'on', 'off'],
        'auto',
      ),
    )
    .addOption(
      choiceOption(
        '--io <how>',
        'how files are read and written',
        ['auto', 'uring', 'sync'],
        'auto',
      ),
    )
    .addOption(
      choiceOption(
        '--sector-size <bytes>',
        'logical sector size, in bytes',
        ['512', '4096'],
        '512',
      ),
    )
    .option('--write-through', 'each write is on stable storage before its answer')
    .option('--shared', 'several guests may use the file at once although one writes')
}

function addProcessOptions(command: Command): void {
  command
    .addOption(
      wholeOption('--reactors <n>', 'threads that serve rings', {
        min: 1,
        max: 64,
        fallback: 'half of the processors, at most 4',
      }),
    )
    .addOption(
      choiceOption(
        '--placement <whose>',
        'whose those threads are: each guest has its own, or all share them',
        ['guest', 'shared'],
        'guest on a Xen host, shared on the mock',
      ),
    )
    .option('--kind <name>', 'kind of backend in xenstore: vbd, vbd3, qdisk, ... (default: vbd)')
    .addOption(
      choiceOption(
        '--toolstack <who>',
        'who makes the xenstore directories: a toolstack if it has, else we; we; or a toolstack',
        ['auto', 'create', 'wait'],
        'auto',
      ),
    )
    .option(
      '--control <socket>',
      'where `stats`, `resize` and `tune` reach it, instead of the usual place',
    )
    .option('--log <file>', 'append a log, one line of JSON each, to this file')
    .addOption(choiceOption('--log-level <level>', 'the least that is logged', LOG_LEVELS, 'info'))
}

async function serve(
  context: Context,
  id: string,
  driver: string,
  args: readonly string[],
  options: ServeOptions,
  signal: AbortSignal,
): Promise<number> {
  const disk = diskOf(driver, args, options)
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
    await backend?.close({ timeoutMs: CLOSE_MS })
    if (backend !== undefined) announcer.say('stopped', {}, 'stopped')
    await log.close()
  }
}

function backendOptions(options: ServeOptions) {
  const { xen, engine, reactors, placement, kind } = options
  return {
    xen,
    tunables: tuningOf(options),
    ...(engine === undefined ? {} : { engine }),
    ...(reactors === undefined ? {} : { reactors }),
    ...(placement === undefined ? {} : { placement }),
    ...(kind === undefined ? {} : { kinds: [kind] }),
  }
}

function serveOptions(options: ServeOptions) {
  const {
    transfer,
    queues,
    ringOrder,
    indirect,
    readOnly,
    flush,
    discard,
    protocolDefault,
    toolstack,
  } = options
  const { onFlushFailure } = options
  return {
    ...(transfer === undefined ? {} : { transfer }),
    ...(queues === undefined ? {} : { queues }),
    ...(ringOrder === undefined ? {} : { ringOrder }),
    ...(indirect === undefined ? {} : { indirectSegments: indirect }),
    ...(readOnly === undefined ? {} : { readOnly }),
    // Commander gives true for a --no- option that was not named: then the library decides.
    ...(flush === false ? { flush } : {}),
    ...(discard === false ? { discard } : {}),
    ...(protocolDefault === undefined ? {} : { defaultProtocol: protocolDefault }),
    ...(toolstack === undefined ? {} : { toolstack }),
    ...(onFlushFailure === undefined ? {} : { onFlushFailure }),
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
    return await ControlServer.listen(path, backendTarget(backend, stop))
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
