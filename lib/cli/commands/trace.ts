/** `vbdkit trace [DOM:VDEV]`: a guest's requests as they are answered, on the terminal or in a file. */
import type { ControlClient } from '../../control/client.js'
import type { TracedBatch, TracedRequest } from '../../engine/traced.js'
import { VbdError } from '../../errors.js'
import { formatSize } from '../../units.js'
import { type TraceHeader, writeTrace } from '../../vbd/trace_file.js'
import { addControlOptions, type ControlOptions, connectControl } from '../control_option.js'
import { durationOption, vbdArgument, wholeOption } from '../options.js'
import { action, addCommand, type Command, type Context } from '../program.js'
import { EXIT_INTERRUPTED, stoppable } from '../signals.js'
import type { Terminal } from '../terminal.js'

interface TraceOptions extends ControlOptions {
  readonly to?: string
  readonly count?: number
  readonly for?: number
}

/** Adds the command. */
export function addTrace(program: Command, context: Context): void {
  const { terminal } = context
  const command = addCommand(program, 'trace', {
    description:
      'A line for each request: its operation, place, length, answer and how long it took; until Ctrl-C, or as long ' +
      'as asked for. With --to, into a file that `vbdkit replay` reads. What comes faster than it is taken is left ' +
      'out, and counted; the guest never waits for it.',
    examples: [
      ['vbdkit trace 1:xvda', 'on the terminal'],
      ['vbdkit trace 1:xvda --to load.trace --for 30s', 'half a minute of it, for a replay'],
      ['vbdkit trace --json --count 1000 | jq .latencyUs', 'a thousand, for a program'],
    ],
  })
  command
    .argument('[DOM:VDEV]', 'the disk; the only one by default', vbdArgument)
    .option('--to <file>', 'write them into this file')
    .addOption(wholeOption('--count <n>', 'end after so many', { min: 1, max: 1_000_000_000 }))
    .addOption(durationOption('--for <time>', 'end after so long', { min: 1, max: 86_400_000 }))
  addControlOptions(command)
  command.action(
    action(context, async (wanted: string | undefined, options: TraceOptions) => {
      const { client, vbd } = await connectControl(options, wanted)
      return stoppable(terminal, (signal) => trace(terminal, client, vbd, options, signal))
    }),
  )
}

async function trace(
  terminal: Terminal,
  client: ControlClient,
  vbd: string,
  options: TraceOptions,
  signal: AbortSignal,
): Promise<number> {
  const limits = options.for === undefined ? [] : [AbortSignal.timeout(options.for)]
  const end = AbortSignal.any([signal, ...limits])
  end.addEventListener('abort', () => client.close())
  try {
    const events = client.events({ verb: 'trace', vbd })
    const first = await events.next()
    const header = first.value as unknown as TraceHeader
    const batches = limited(events, options.count, end)
    if (options.to === undefined) await show(terminal, batches)
    else await save(terminal, options.to, header, batches)
    return signal.reason === 'SIGINT' ? EXIT_INTERRUPTED : 0
  } finally {
    client.close()
  }
}

/** At most `count` requests; a connection that ends because we wanted the end is no failure. */
async function* limited(
  events: AsyncIterable<Record<string, unknown>>,
  count: number | undefined,
  end: AbortSignal,
): AsyncGenerator<TracedBatch> {
  let left = count ?? Number.POSITIVE_INFINITY
  try {
    for await (const event of events) {
      const { requests, dropped } = event as unknown as TracedBatch
      yield { requests: requests.slice(0, left), dropped }
      left -= requests.length
      if (left <= 0) return
    }
  } catch (thrown) {
    if (!(end.aborted && thrown instanceof VbdError)) throw thrown
  }
}

async function show(terminal: Terminal, batches: AsyncIterable<TracedBatch>): Promise<void> {
  for await (const { requests, dropped } of batches) {
    if (dropped > 0) terminal.result({ dropped }, `... ${dropped} requests were not taken in time`)
    for (const request of requests) terminal.result(request, line(request))
  }
}

async function save(
  terminal: Terminal,
  path: string,
  header: TraceHeader,
  batches: AsyncIterable<TracedBatch>,
): Promise<void> {
  terminal.line(`${header.vbd}: tracing into ${path}; Ctrl-C ends it`)
  const summary = await writeTrace(path, header, batches)
  const missing = summary.dropped > 0 ? `, ${summary.dropped} not taken in time` : ''
  terminal.result(
    { vbd: header.vbd, path, ...summary },
    `${header.vbd}: ${summary.requests} requests in ${path}${missing}`,
  )
}

function line(request: TracedRequest): string {
  const { timeMs, operation, offset, length, status, latencyUs, queue } = request
  const time = new Date(timeMs).toISOString().slice(11, 23)
  const place = length === 0 ? '' : `${formatSize(length)} at ${offset}`
  const took = `${latencyUs.toFixed(1)}µs`
  const cells = [
    time,
    `${queue}`.padStart(2),
    operation.padEnd(7),
    place.padEnd(28),
    took.padStart(11),
  ]
  return [...cells, ...(status === 'ok' ? [] : [status])].join('  ')
}
