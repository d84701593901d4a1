/**
 * Plots: what of a report is drawn, as configurations of Chart.js that are plain JSON. What needs code (error bars,
 * number formats) is in page.ts. Pure.
 */
import type { Figure } from './figures.js'
import type { Group, Report, Row } from './report.js'

/** One plot of the page. */
export interface Plot {
  readonly id: string
  readonly title: string
  /** One sentence: what is on the axes, and which way is good. */
  readonly caption: string
  /** Half a page wide, or all of it. */
  readonly wide: boolean
  /** Pixels. */
  readonly height: number
  readonly chart: ChartConfig
}

/** As much of Chart.js's configuration as is used. */
export interface ChartConfig {
  readonly type: 'line' | 'bar'
  readonly data: { readonly labels: readonly string[]; readonly datasets: readonly Dataset[] }
  readonly options: Record<string, unknown>
}

export interface Dataset {
  readonly label: string
  readonly data: readonly (number | null)[]
  /** p10 and p90 of each, for the error bars. */
  readonly ranges?: readonly (readonly [number, number] | null)[]
  readonly backgroundColor: string | readonly string[]
  readonly borderColor: string | readonly string[]
}

// Okabe and Ito's palette: told apart with any eyes. Who is drawn twice has the same colour twice.
const COLOURS: readonly (readonly [pattern: RegExp, colour: string])[] = [
  [/^(vbdkit|native|persistent|event loop idle|file)$/, '#0072b2'],
  [/^vbdkit, polling$|^event loop busy$|^file, throttled$/, '#56b4e9'],
  [/^(fio|map$|red-black)/, '#d55e00'],
  [/^(qemu vhost|cache line|vbdkit, sleeping)/, '#009e73'],
  [/^(qemu NBD|JavaScript|TypeScript|copy|eventfd|flat)/, '#e69f00'],
  [/^nbdkit/, '#cc79a7'],
]

function colourOf(series: string): string {
  return COLOURS.find(([pattern]) => pattern.test(series))?.[1] ?? '#888888'
}

const VERDICT_COLOURS = { goal: '#009e73', floor: '#e69f00', missed: '#d55e00' } as const

/** Every plot that this report has data for. */
export function plotsOf(report: Report): Plot[] {
  const of = (group: Group) => report.rows.filter((row) => row.group === group)
  return [
    ...targetPlot(report),
    ...depthPlots(of('files')),
    ...latencyPlots(of('latency')),
    ...guestPlots(of('guests')),
    ...barPlot('ring', 'Ring only, and memory', 'Requests a second; more is better.', of('ring')),
    ...peerPlots(of('peers')),
    ...enginePlot(of('engines')),
    ...barPlot(
      'scripts',
      'Disks in TypeScript, and filters',
      'Requests a second; more is better.',
      of('scripts'),
    ),
    ...lookupPlot(of('micro')),
  ]
}

function distinct<T>(values: readonly T[]): T[] {
  return [...new Set(values)]
}

/** One dataset for each series, over the labels; gaps where a series has no row. */
function datasets(
  rows: readonly Row[],
  labels: readonly string[],
  labelOf: (row: Row) => string,
  figureOf: (row: Row) => Figure | undefined,
): Dataset[] {
  return distinct(rows.map(({ series }) => series)).map((series) => {
    const found = labels.map((label) =>
      rows.find((row) => row.series === series && labelOf(row) === label),
    )
    const figures = found.map((row) => (row === undefined ? undefined : figureOf(row)))
    const colour = colourOf(series)
    return {
      label: series,
      data: figures.map((figure) => figure?.median ?? null),
      ranges: figures.map((figure) => (figure === undefined ? null : [figure.p10, figure.p90])),
      backgroundColor: colour,
      borderColor: colour,
    }
  })
}

interface Axis {
  readonly title: string
  readonly log?: boolean
  readonly format: 'count' | 'µs' | 'ns' | '×'
}

function scales(x: string, y: Axis, horizontal = false): Record<string, unknown> {
  const value = {
    type: y.log ? 'logarithmic' : 'linear',
    title: { display: true, text: y.title },
    ...(!y.log && { beginAtZero: true }),
    format: y.format,
  }
  const category = { title: { display: x !== '', text: x } }
  return {
    maintainAspectRatio: false,
    animation: false,
    ...(horizontal && { indexAxis: 'y' }),
    scales: horizontal ? { x: value, y: category } : { x: category, y: value },
  }
}

function depthPlots(rows: readonly Row[]): Plot[] {
  const random = rows.filter(({ workload }) => workload.startsWith('4 KiB random read'))
  return distinct(random.map(({ workload }) => workload)).map((workload, i) => {
    const shown = random.filter((row) => row.workload === workload)
    const labels = distinct(shown.map(({ at }) => String(at)))
    const labelOf = (row: Row) => String(row.at)
    return {
      id: `depth-${i}`,
      title: `Throughput against depth: ${workload}`,
      caption:
        'Requests a second by requests in flight; bars from the 10th to the 90th percentile.',
      wide: false,
      height: 300,
      chart: {
        type: 'line',
        data: { labels, datasets: datasets(shown, labels, labelOf, (row) => row.perSecond) },
        options: scales('requests in flight', { title: 'requests a second', format: 'count' }),
      },
    }
  })
}

const PERCENTILES = [
  ['p50', 'p50'],
  ['p99', 'p99'],
  ['p99.9', 'p999'],
] as const

function latencyPlots(rows: readonly Row[]): Plot[] {
  const timed = rows.filter(({ latencyUs }) => latencyUs !== undefined)
  return distinct(timed.map(({ workload }) => workload)).map((workload, i) => {
    const shown = timed.filter((row) => row.workload === workload)
    return {
      id: `latency-${i}`,
      title: `Latency at depth 1: ${workload}`,
      caption: 'Microseconds on a logarithmic scale; less is better.',
      wide: false,
      height: 300,
      chart: {
        type: 'bar',
        data: {
          labels: PERCENTILES.map(([label]) => label),
          datasets: shown.map((row) => {
            const figures = PERCENTILES.map(([, key]) => row.latencyUs![key])
            return {
              label: row.series,
              data: figures.map(({ median }) => median),
              ranges: figures.map(({ p10, p90 }) => [p10, p90] as const),
              backgroundColor: colourOf(row.series),
              borderColor: colourOf(row.series),
            }
          }),
        },
        options: scales('', { title: 'microseconds', log: true, format: 'µs' }),
      },
    }
  })
}

function guestPlots(rows: readonly Row[]): Plot[] {
  return distinct(rows.map(({ workload }) => workload)).flatMap((workload, i) => {
    const shown = rows.filter((row) => row.workload === workload)
    const labels = distinct(shown.map(({ at }) => String(at)))
    const labelOf = (row: Row) => String(row.at)
    const plot = (what: string, axis: Axis, figureOf: (row: Row) => Figure): Plot => ({
      id: `guests-${i}-${axis.format === 'µs' ? 'cpu' : 'speed'}`,
      title: `${what} against guests: ${workload}`,
      caption:
        'Guests share one reactor. Mapping and unmapping for each request pays for every unmap; ' +
        'persistent grants stay mapped. Logarithmic scale.',
      wide: false,
      height: 300,
      chart: {
        type: 'line',
        data: { labels, datasets: datasets(shown, labels, labelOf, figureOf) },
        options: scales('guests', axis),
      },
    })
    const speed: Axis = { title: 'requests a second', log: true, format: 'count' }
    const cost: Axis = { title: 'CPU µs a request', log: true, format: 'µs' }
    return [
      plot('Throughput', speed, (row) => row.perSecond),
      plot('Cost', cost, (row) => row.cpuUs),
    ]
  })
}

function barPlot(id: string, title: string, caption: string, rows: readonly Row[]): Plot[] {
  if (rows.length === 0) return []
  const labelOf = (row: Row) =>
    row.axis === 'segments' ? `${row.workload}, ${row.at} segments` : row.workload
  const labels = distinct(rows.map(labelOf))
  const bars = distinct(rows.map(({ series }) => series)).length
  return [
    {
      id,
      title,
      caption,
      wide: true,
      height: 80 + labels.length * (14 * bars + 12),
      chart: {
        type: 'bar',
        data: { labels, datasets: datasets(rows, labels, labelOf, (row) => row.perSecond) },
        options: scales('', { title: 'requests a second', log: true, format: 'count' }, true),
      },
    },
  ]
}

function peerPlots(rows: readonly Row[]): Plot[] {
  if (rows.length === 0) return []
  const labelOf = (row: Row) => row.workload.replace('4 KiB random read, ', '')
  const labels = distinct(rows.map(labelOf))
  const plot = (id: string, title: string, axis: Axis, figureOf: (row: Row) => Figure): Plot => ({
    id,
    title,
    caption:
      '4 KiB random reads of one file at depth 32; both sides sleep when they have nothing to do.',
    wide: false,
    height: 320,
    chart: {
      type: 'bar',
      data: { labels, datasets: datasets(rows, labels, labelOf, figureOf) },
      options: scales('', axis),
    },
  })
  return [
    plot(
      'peers-speed',
      'Peers: throughput',
      { title: 'requests a second', format: 'count' },
      (row) => row.perSecond,
    ),
    plot(
      'peers-cpu',
      'Peers: CPU time of the server for each request',
      { title: 'CPU µs a request', format: 'µs' },
      (row) => row.cpuUs,
    ),
  ]
}

function enginePlot(rows: readonly Row[]): Plot[] {
  const native = rows.filter(({ series }) => series === 'native')
  if (native.length === 0) return []
  const uring = native.map(({ workload, at }) =>
    rows.find(
      (row) => row.series.endsWith('io_uring') && row.workload === workload && row.at === at,
    ),
  )
  const labels = native.map(({ workload, at }) => `${workload}, depth ${at}`)
  const dataset = (label: string, figures: (Figure | undefined)[], colour: string): Dataset => ({
    label,
    data: figures.map((figure) => figure?.median ?? null),
    ranges: figures.map((figure) => (figure === undefined ? null : [figure.p10, figure.p90])),
    backgroundColor: colour,
    borderColor: colour,
  })
  const inverse = ({ median, p10, p90, rounds }: Figure): Figure => ({
    median: 1 / median,
    p10: 1 / p90,
    p90: 1 / p10,
    rounds,
  })
  const cpu = native.map(({ cpuRatio }) => cpuRatio && inverse(cpuRatio.figure))
  return [
    {
      id: 'engines',
      title: 'Native against JavaScript',
      caption:
        'Times as fast as the JavaScript engine with node:fs, and times less CPU for each request; 1 is parity.',
      wide: true,
      height: 110 + labels.length * 60,
      chart: {
        type: 'bar',
        data: {
          labels,
          datasets: [
            dataset(
              'native, throughput',
              native.map(({ ratio }) => ratio?.figure),
              '#0072b2',
            ),
            ...(uring.some((row) => row !== undefined)
              ? [
                  dataset(
                    'JavaScript with io_uring, throughput',
                    uring.map((row) => row?.ratio?.figure),
                    '#009e73',
                  ),
                ]
              : []),
            dataset('native, CPU for each request', cpu, '#e69f00'),
          ],
        },
        options: scales(
          '',
          { title: 'times JavaScript with node:fs', log: true, format: '×' },
          true,
        ),
      },
    },
  ]
}

function lookupPlot(rows: readonly Row[]): Plot[] {
  const shown = rows.filter(({ workload }) => workload.startsWith('grant lookup'))
  if (shown.length === 0) return []
  const labels = distinct(shown.map(({ at }) => at.toLocaleString('en')))
  const labelOf = (row: Row) => row.at.toLocaleString('en')
  const each = (row: Row): Figure => ({
    median: 1e9 / row.perSecond.median,
    p10: 1e9 / row.perSecond.p90,
    p90: 1e9 / row.perSecond.p10,
    rounds: row.perSecond.rounds,
  })
  return [
    {
      id: 'lookup',
      title: 'Finding a grant',
      caption: 'Nanoseconds for a lookup that waits for the one before it; less is better.',
      wide: false,
      height: 300,
      chart: {
        type: 'bar',
        data: { labels, datasets: datasets(shown, labels, labelOf, each) },
        options: scales('grants held', { title: 'nanoseconds', log: true, format: 'ns' }),
      },
    },
  ]
}

/** Each target as a multiple of what it must reach. */
function targetPlot({ targets }: Report): Plot[] {
  if (targets.length === 0) return []
  // A cost of nothing would be infinitely good: a hundred times is good enough to draw.
  const share = (value: number, limit: number, better: 'more' | 'less') =>
    Math.min(100, better === 'more' ? value / limit : limit / Math.max(0, value))
  const rows = targets.map((target) => {
    const limit = target.floor ?? target.goal ?? 1
    const { median, p10, p90 } = target.figure
    const [low, high] = [p10, p90].map((value) => share(value, limit, target.better))
    return {
      target,
      value: share(median, limit, target.better),
      range: [Math.min(low!, high!), Math.max(low!, high!)] as const,
    }
  })
  const colours = rows.map(({ target }) => VERDICT_COLOURS[target.verdict])
  return [
    {
      id: 'targets',
      title: 'Reached, as a multiple of the floor',
      caption:
        'Right of 1 is enough. Green: the goal is reached; amber: the floor; red: it is missed.',
      wide: true,
      height: 90 + rows.length * 24,
      chart: {
        type: 'bar',
        data: {
          labels: rows.map(({ target }) => `${target.id}  ${target.what}`),
          datasets: [
            {
              label: 'measured over floor',
              data: rows.map(({ value }) => value),
              ranges: rows.map(({ range }) => range),
              backgroundColor: colours,
              borderColor: colours,
            },
          ],
        },
        options: {
          ...scales('', { title: 'times the floor', log: true, format: '×' }, true),
          plugins: { legend: { display: false } },
        },
      },
    },
  ]
}
