/** `vbdkit guest DOM:VDEV`: a guest of the mock Xen with one disk, which other programs reach over NBD. */
import { resolve } from 'node:path'
import type { Protocol } from '../../engine/engine.js'
import { VbdError } from '../../errors.js'
import type { XenChoice } from '../../store.js'
import type { ConnectionSummary } from '../../testing/frontend_events.js'
import { MANNERS, type MannersName } from '../../testing/manners.js'
import { type GuestEvent, runGuest } from '../../testing/run_guest.js'
import { formatSize, parseVbdId } from '../../units.js'
import { stateName, type XenbusState } from '../../xenbus/state.js'
import { choiceOption, durationOption, sizeOption, vbdArgument, wholeOption } from '../options.js'
import { action, addCommand, type Command, type Context } from '../program.js'
import { aborted, stoppable } from '../signals.js'
import { oneLine, type Terminal } from '../terminal.js'
import { mockDirOf, xenOption } from '../xen_option.js'

interface GuestOptions {
  readonly xen: XenChoice
  readonly nbd?: string
  readonly nbdPort?: number
  readonly protocol?: Protocol
  readonly queues?: number
  readonly ringOrder?: number
  readonly indirect?: number
  readonly persistent: boolean
  readonly manners?: MannersName
  readonly memory?: number
  readonly timeout?: number
  readonly keys?: true
}

/**
 * How long each of the three steps of closing may wait for a backend that may be dead: with the five seconds that NBD's
 * requests get, less than what `stoppable` gives us.
 */
const CLOSE_STEP_MS = 1500

/** Adds the command. */
export function addGuest(program: Command, context: Context): void {
  const command = addCommand(program, 'guest', {
    description:
      'Runs a guest of a mock Xen in the foreground: a domain with memory and a complete ' +
      'block frontend, which connects ' +
      'its disk when a backend serves it. With --nbd any program that speaks NBD (qemu-io, ' +
      'fio, nbdcopy, ...) can use the ' +
      'disk as the guest sees it, through ring and grants. Ctrl-C closes the disk and ends the guest.',
    examples: [
      ['vbdkit guest --xen mock:/tmp/xen 1:xvda', 'connect the disk, and stay'],
      ['vbdkit guest --xen mock:/tmp/xen 1:xvda --nbd /tmp/d.sock', 'and export it'],
      ["qemu-io -f raw 'nbd+unix:///?socket=/tmp/d.sock' -c 'read -v 0 512'", 'then, elsewhere'],
      [
        'vbdkit guest --xen mock:/tmp/xen 1:xvda --manners windows',
        'with the habits of another system',
      ],
    ],
  })
  command
    .argument(
      '<DOM:VDEV>',
      'the number of the domain, made if there is none, and its device',
      vbdArgument,
    )
    .addOption(xenOption('the mock Xen: mock:DIR'))
    .option('--nbd <socket>', 'export the disk as NBD on this unix socket')
    .addOption(
      wholeOption(
        '--nbd-port <port>',
        'export the disk as NBD on this port of 127.0.0.1; 0: any free one',
        {
          min: 0,
          max: 65_535,
        },
      ),
    )
    .addOption(
      choiceOption(
        '--protocol <abi>',
        'the ABI of the ring',
        ['x86_64-abi', 'x86_32-abi', 'arm-abi'],
        'x86_64-abi',
      ),
    )
    .addOption(
      wholeOption('--queues <n>', 'rings to use, if the backend allows', {
        min: 1,
        max: 64,
        fallback: '1',
      }),
    )
    .addOption(
      wholeOption('--ring-order <n>', 'pages of a ring, as a power of two', {
        min: 0,
        max: 4,
        fallback: '0, 1 page',
      }),
    )
    .addOption(
      wholeOption('--indirect <n>', 'segments of an indirect request; 0: none', {
        min: 0,
        max: 4096,
        fallback: '32',
      }),
    )
    .option('--no-persistent', 'do not offer persistent grants')
    .addOption(
      choiceOption('--manners <system>', 'whose habits to follow', Object.keys(MANNERS), 'linux'),
    )
    .addOption(sizeOption('--memory <size>', "the guest's memory, 256KiB to 16GiB", '64MiB'))
    .addOption(
      durationOption('--timeout <time>', 'how long to wait for a backend; 0s: for ever', {
        min: 0,
        max: 86_400_000,
        fallback: '30s',
      }),
    )
    .option('--keys', 'print each key that is written to xenstore')
  command.action(
    action(context, (id: string, options: GuestOptions) =>
      stoppable(context.terminal, (signal) => guest(context.terminal, id, options, signal)),
    ),
  )
}

async function guest(
  terminal: Terminal,
  id: string,
  options: GuestOptions,
  signal: AbortSignal,
): Promise<number> {
  const dir = mockDirOf(options.xen)
  if (dir === undefined) {
    throw new VbdError('ERR_VBD_ARGUMENT', 'a guest needs a mock Xen: --xen mock:DIR', {
      remedy: 'start one with `vbdkit mock DIR`; on a real Xen guests come from xl',
    })
  }
  if (options.nbd !== undefined && options.nbdPort !== undefined) {
    throw new VbdError('ERR_VBD_ARGUMENT', '--nbd and --nbd-port exclude each other')
  }
  const { domid, devid } = parseVbdId(id)
  const { protocol, queues, ringOrder, indirect, manners, persistent, nbdPort } = options
  try {
    const running = await runGuest({
      dir,
      domid,
      vdev: devid,
      signal,
      persistent,
      nbdSocket: options.nbd === undefined ? undefined : resolve(options.nbd),
      nbdPort,
      indirect,
      memoryBytes: options.memory,
      ...(protocol === undefined ? {} : { protocol }),
      ...(queues === undefined ? {} : { queues }),
      ...(ringOrder === undefined ? {} : { ringOrder }),
      ...(manners === undefined ? {} : { manners }),
      ...(options.timeout === undefined ? {} : { connectTimeoutMs: options.timeout }),
      closeTimeoutMs: CLOSE_STEP_MS,
      onEvent: (event) => tell(terminal, id, event, options),
    })
    await Promise.race([running.done, aborted(signal)])
    await running.close()
  } catch (thrown) {
    // Ctrl-C while it still waits for its backend is no failure.
    if (!signal.aborted) throw thrown
  }
  return 0
}

/** One event: a line for people, JSON for programs. */
function tell(terminal: Terminal, id: string, event: GuestEvent, options: GuestOptions): void {
  const { type, ...fields } = event
  const text = inWords(id, event, options)
  terminal.event(type, { vbd: id, ...fields }, text === undefined ? undefined : oneLine(text))
}

/** undefined: not worth a line. */
function inWords(id: string, event: GuestEvent, options: GuestOptions): string | undefined {
  switch (event.type) {
    case 'joined':
      return `${id}: domain ${event.domid}, waiting for its disk; Ctrl-C ends it`
    case 'state':
      return `${id}: ${event.side} ${stateName(event.state as XenbusState)}`
    case 'key':
      return options.keys ? `${id}: ${event.path} = ${event.value}` : undefined
    case 'connected':
      return `${id}: connected, ${describe(event.connection)}`
    case 'nbd':
      return `${id}: exported as ${event.uri}`
    case 'resize':
      return `${id}: ${formatSize(event.previousBytes)} → ${formatSize(event.sizeBytes)}`
    case 'disconnected':
      return `${id}: disconnected: ${event.reason}`
    case 'feature-lost':
      return `${id}: the backend does not take ${event.feature} any more`
    case 'violation':
      return `${id}: the backend broke the protocol: ${event.violation.message}`
    case 'stalled':
      return `${id}: no answer for ${Math.round(event.milliseconds / 1000)} s, ${event.requests} requests wait`
    case 'resumed':
      return `${id}: answers come again`
    case 'request-failed':
      return `${id}: a request failed: ${event.message}`
    case 'closed':
      return `${id}: closed`
  }
}

/** The disk and the rings, as the guest sees them. */
export function describe(connection: ConnectionSummary): string {
  const {
    sizeBytes,
    sectorSize,
    readOnly,
    protocol,
    queues,
    ringPages,
    persistent,
    indirectSegments,
  } = connection
  const pages = ringPages === 1 ? '1 page' : `${ringPages} pages`
  const parts = [
    `${formatSize(sizeBytes)} in sectors of ${sectorSize}${readOnly ? ', read-only' : ''}`,
    protocol,
    queues === 1 ? `1 queue of ${pages}` : `${queues} queues of ${pages}`,
    persistent && 'persistent grants',
    indirectSegments > 0 && `indirect requests of up to ${indirectSegments} segments`,
    connection.flush && 'flush',
    connection.barrier && 'barrier',
    connection.discard && 'discard',
  ]
  return parts.filter((part) => part !== false).join(', ')
}
