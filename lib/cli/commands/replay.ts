/**
 * `vbdkit replay FILE DRIVER [ARG...]`: a traced load once more, against another disk or engine, on a mock Xen in this
 * process.
 */
import { Backend } from '../../backend.js'
import type { Disk } from '../../disk/disk.js'
import { VbdError } from '../../errors.js'
import { MockGuest } from '../../testing/guest.js'
import { type ReplayResult, replay } from '../../testing/replay.js'
import { formatNanoseconds, formatSize } from '../../units.js'
import { readTrace, type TraceReader } from '../../vbd/trace_file.js'
import { DISKS } from '../disk_words.js'
import { type DriverOptions, loadDiskOf } from '../drivers.js'
import { filterOption } from '../filters.js'
import { choiceOption } from '../options.js'
import { action, addCommand, type Command, type Context } from '../program.js'
import { startProgress } from '../progress.js'
import { stoppable } from '../signals.js'
import { table } from '../table.js'
import type { Terminal } from '../terminal.js'

interface ReplayOptions extends DriverOptions {
  readonly engine?: 'native' | 'js'
  readonly transfer?: 'auto' | 'persistent' | 'copy' | 'map'
  readonly speed: 'max' | number
}

const GUEST = { domid: 1, vdev: 'xvda', memoryBytes: 64 * 1024 * 1024 } as const

/** Adds the command. */
export function addReplay(program: Command, context: Context): void {
  const { terminal } = context
  const command = addCommand(program, 'replay', {
    description:
      'Sends the requests of a trace (see `vbdkit trace`) to a disk, through rings and grants on a mock Xen in this ' +
      'process, and compares how long they took. A request that waited for another when it was traced waits for it ' +
      'again. Traces have no data: what the disk holds is overwritten with made-up bytes, the same for every replay. ' +
      `Drivers: ${DISKS}.`,
    examples: [
      ['vbdkit replay load.trace memory 10GiB', 'without a disk'],
      ['vbdkit replay load.trace file scratch.img --speed 1', 'with the pauses of the original'],
      ['vbdkit replay load.trace memory 10GiB --engine js --json', 'on the JavaScript engine'],
    ],
  })
  command
    .argument('<FILE>', 'the trace')
    .argument('<DRIVER>', DISKS)
    .argument('[ARG...]', 'of the driver')
    .addOption(choiceOption('--engine <which>', 'what moves the data', ['native', 'js'], 'native'))
    .addOption(
      choiceOption(
        '--transfer <how>',
        'how guest pages are reached',
        ['auto', 'persistent', 'copy', 'map'],
        'auto',
      ),
    )
    .addOption(filterOption())
    .option('--speed <n>', 'so many times as fast as traced, or max', parseSpeed, 'max')
  command.action(
    action(context, (path: string, driver: string, args: string[], options: ReplayOptions) =>
      stoppable(terminal, async (signal) => {
        const trace = await readTrace(path)
        const disk = await loadDiskOf(driver, args, options)
        const result = await run(terminal, trace, disk, options, signal)
        terminal.result(asJson(path, disk, result), show(path, disk, result))
        return result.errors === 0 ? 0 : 1
      }),
    ),
  )
}

async function run(
  terminal: Terminal,
  trace: TraceReader,
  disk: Disk,
  options: ReplayOptions,
  signal: AbortSignal,
): Promise<ReplayResult> {
  const { engine = 'native', transfer = 'auto', speed } = options
  await using backend = await Backend.open({ xen: 'mock', engine })
  await backend.serve(`${GUEST.domid}:${GUEST.vdev}`, disk, { transfer })
  await using guest = await MockGuest.join({ dir: backend.mock!.dir, ...GUEST })
  const frontend = await guest.disk(GUEST.vdev, { memoryBytes: GUEST.memoryBytes / 2 })
  const progress = startProgress(terminal, 'replay', trace.sizeBytes)
  try {
    return await replay(frontend, trace.requests, {
      speed,
      signal,
      onProgress: (requests) => progress.update(trace.bytesRead(), `${requests} requests`),
    })
  } finally {
    progress.stop()
  }
}

function parseSpeed(text: string): 'max' | number {
  if (text === 'max') return text
  const speed = Number(text)
  if (/^\d+(\.\d+)?$/.test(text) && speed >= 0.001 && speed <= 1000) return speed
  throw new VbdError('ERR_VBD_ARGUMENT', `--speed: '${text}' is neither max nor 0.001 to 1000`)
}

function asJson(trace: string, disk: Disk, result: ReplayResult) {
  const { latencies, ...rest } = result
  const operations = Object.fromEntries(
    [...latencies].map(([operation, { traced, replayed }]) => [
      operation,
      { requests: traced.length, tracedUs: percentiles(traced), replayedUs: percentiles(replayed) },
    ]),
  )
  return { trace, disk: disk.description, ...rest, operations }
}

function show(trace: string, disk: Disk, result: ReplayResult): string {
  const right = (title: string) => ({ title, right: true })
  const rows = [...result.latencies].map(([operation, { traced, replayed }]) => [
    operation,
    String(traced.length),
    ...[traced, replayed].flatMap((latencies) => {
      const { p50, p99 } = percentiles(latencies)
      return [micros(p50), micros(p99)]
    }),
  ])
  const titles = [
    { title: 'operation' },
    right('requests'),
    right('traced p50'),
    right('p99'),
    right('replayed p50'),
    right('p99'),
  ]
  const { requests, bytes, errors, skipped, elapsedMs } = result
  const rate = Math.round((requests / elapsedMs) * 1000)
  const left = skipped > 0 ? `, ${skipped} left out` : ''
  return (
    `${trace} on ${disk.description}\n${table(titles, rows)}\n` +
    `${requests} requests, ${formatSize(bytes)}, in ${(elapsedMs / 1000).toFixed(1)} s (${rate}/s), ` +
    `${errors} errors${left}`
  )
}

function percentiles(latenciesUs: readonly number[]): { p50: number; p99: number } {
  const sorted = Float64Array.from(latenciesUs).sort()
  const at = (share: number) =>
    sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))]
  return { p50: at(0.5) ?? 0, p99: at(0.99) ?? 0 }
}

function micros(us: number): string {
  return formatNanoseconds(us * 1000)
}
