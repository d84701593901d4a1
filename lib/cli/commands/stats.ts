/** `vbdkit stats [DOM:VDEV]`: what a disk that is being served has done, once or every so often. */

import { formatNanoseconds, formatSize } from '../../units.js'
import type { Latency, OperationStats, VbdStats } from '../../vbd/stats.js'
import { addControlOptions, type ControlOptions, connectControl } from '../control_option.js'
import { durationOption, vbdArgument, wholeOption } from '../options.js'
import { action, addCommand, type Command, type Context } from '../program.js'
import { EXIT_INTERRUPTED, stoppable } from '../signals.js'
import { pairs, table } from '../table.js'

interface StatsOptions extends ControlOptions {
  readonly every?: number
  readonly count?: number
}

const OPERATIONS = ['read', 'write', 'flush', 'discard'] as const

/** Lines between two headings of the stream. */
const HEADING_EVERY = 20

/** Adds the command. */
export function addStats(program: Command, context: Context): void {
  const { terminal } = context
  const command = addCommand(program, 'stats', {
    description:
      'Prints requests, bytes, errors, latencies, grants and notifications since the disk is served; with --every, a ' +
      'line about each interval until Ctrl-C.',
    examples: [
      ['vbdkit stats 1:xvda', 'everything, once'],
      ['vbdkit stats 1:xvda --every 1s', 'a line each second'],
      ['vbdkit stats --json --every 10s --count 6', 'six JSON lines, ten seconds apart'],
    ],
  })
  command
    .argument('[DOM:VDEV]', 'the disk; the only one by default', vbdArgument)
    .addOption(
      durationOption('--every <time>', 'go on, with a line about each interval', {
        min: 50,
        max: 3_600_000,
      }),
    )
    .addOption(
      wholeOption('--count <n>', 'end after so many lines', { min: 1, max: 1_000_000_000 }),
    )
  addControlOptions(command)
  command.action(
    action(context, async (wanted: string | undefined, options: StatsOptions) => {
      const { client, vbd } = await connectControl(options, wanted)
      if (options.every === undefined) {
        try {
          const stats = (await client.call({ verb: 'stats', vbd })) as VbdStats
          terminal.result(stats, showStats(stats))
          return 0
        } finally {
          client.close()
        }
      }
      return stoppable(terminal, async (signal) => {
        signal.addEventListener('abort', () => client.close())
        let lines = 0
        try {
          for await (const event of client.stats(vbd, options.every!)) {
            if (lines % HEADING_EVERY === 0) terminal.line(heading())
            terminal.result(event, showLine(event as unknown as VbdStats))
            if (++lines === options.count) break
          }
          return 0
        } catch (thrown) {
          if (signal.aborted) return signal.reason === 'SIGINT' ? EXIT_INTERRUPTED : 0
          throw thrown
        } finally {
          client.close()
        }
      })
    }),
  )
}

/** Everything about one vbd. */
export function showStats(stats: VbdStats): string {
  const { counters } = stats
  const rows = OPERATIONS.map((name) => {
    const { requests, errors, bytes, iops, latency } = stats[name]
    const times = [latency.mean, latency.p50, latency.p99, latency.max].map((ns) =>
      time(latency, ns),
    )
    return [name, String(requests), String(errors), formatSize(bytes), perSecond(iops), ...times]
  })
  const right = (title: string) => ({ title, right: true })
  const operations = table(
    [
      { title: stats.vbd },
      right('requests'),
      right('errors'),
      right('data'),
      right('per second'),
      right('mean'),
      right('p50'),
      right('p99'),
      right('max'),
    ],
    rows,
  )
  const saved = counters.notificationsSent + counters.notificationsSaved
  const details = pairs(
    [
      ['connected', stats.connected ? 'yes' : 'no'],
      ['in flight', String(stats.inFlight)],
      ['out of requests', `${stats.outOfRequests} times`],
      ['rejected', rejected(stats)],
      ['failed', `${counters.grantErrors} by a grant, ${counters.diskErrors} by the disk`],
      [
        'persistent grants',
        `${counters.persistentGrants} of at most ${counters.persistentGrantsCap} in use, ` +
          `${counters.persistentGrantsPurged} purged, ` +
          `${counters.persistentGrantsOverflow} segments copied for want of room`,
      ],
      [
        'grant operations',
        `${counters.grantMaps} maps, ${counters.grantUnmaps} unmaps, ${counters.grantCopies} copies ` +
          `in ${counters.grantCalls} calls`,
      ],
      [
        'notifications',
        `${counters.notificationsSent} sent, ${percent(counters.notificationsSaved, saved)} saved`,
      ],
      [
        'events',
        `${counters.eventsReceived} received, ${counters.spuriousEvents} spurious, ${counters.wakeups} wake-ups`,
      ],
      ['page pool', `${counters.poolPagesInUse} pages in use, ${counters.poolPagesFree} free`],
      ['ring utilisation', `${stats.ringUtilisation.toFixed(1)} requests a pass`],
      ['segments', `${mean(counters.segmentsPerRequest)} a request`],
    ],
    '  ',
  )
  return `${operations}\n\n${details}`
}

function rejected({ counters, rejected: total }: VbdStats): string {
  const kinds = Object.entries(counters.rejected).filter(([, count]) => count > 0)
  if (kinds.length === 0) return String(total)
  return `${total} (${kinds.map(([kind, count]) => `${kind} ${count}`).join(', ')})`
}

const LINE_WIDTHS = [8, 8, 10, 10, 8, 8, 8, 6]

function heading(): string {
  return columns(['rd/s', 'wr/s', 'read', 'written', 'rd p99', 'wr p99', 'fl+ds/s', 'flight'])
}

/** One interval in one line. */
function showLine(stats: VbdStats): string {
  const { read, write, flush, discard } = stats
  return columns([
    perSecond(read.iops),
    perSecond(write.iops),
    rate(read),
    rate(write),
    time(read.latency, read.latency.p99),
    time(write.latency, write.latency.p99),
    perSecond(flush.iops + discard.iops),
    String(stats.inFlight),
  ])
}

function columns(cells: readonly string[]): string {
  return cells.map((cell, i) => cell.padStart(LINE_WIDTHS[i] ?? 8)).join(' ')
}

function rate(operation: OperationStats): string {
  return `${formatSize(Math.round(operation.bytesPerSecond))}/s`
}

function perSecond(count: number): string {
  return count >= 100 ? String(Math.round(count)) : String(Math.round(count * 10) / 10)
}

function time(latency: Latency, nanoseconds: number): string {
  return latency.count === 0 ? '-' : formatNanoseconds(nanoseconds)
}

function percent(part: number, whole: number): string {
  return whole === 0 ? '0 %' : `${Math.round((part / whole) * 100)} %`
}

function mean({ count, sum }: { count: number; sum: number }): string {
  return count === 0 ? '0' : (sum / count).toFixed(1)
}
