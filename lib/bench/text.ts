/** The report as text, for a terminal: targets first, then every row. Pure. */
import { formatNanoseconds } from '../units.js'
import type { Figure } from './figures.js'
import type { Report, Row, Target, Verdict } from './report.js'

/** Whole report. */
export function reportText(report: Report): string {
  const { machine, quick } = report
  const head = [
    `vbdkit ${report.vbdkit} on ${machine.cpu}, ${machine.processors} processors, Linux ${machine.kernel}`,
    `median of ${report.rounds} interleaved rounds [p10 .. p90]; guests on processor ${machine.guestCpu}, ` +
      `what is measured on ${machine.backendCpu}`,
    ...(quick ? ['QUICK: short rounds, fewer workloads. A look, nothing to quote.'] : []),
    ...(machine.othersBusy > 0.2
      ? [
          `NOISY: others kept ${machine.othersBusy.toFixed(1)} processors busy. Trust ratios, if anything.`,
        ]
      : []),
  ]
  const parts = [
    head.join('\n'),
    ...(report.targets.length > 0 ? [targetTable(report.targets)] : []),
    ...report.groups.map((group) => groupTable(report.rows.filter((row) => row.group === group))),
    verifiedText(report),
    ...report.skipped.map(
      ({ what, why, remedy }) => `skipped: ${what}: ${why}${remedy ? ` (${remedy})` : ''}`,
    ),
  ]
  return parts.filter((part) => part !== '').join('\n\n')
}

function verifiedText({ verified }: Report): string {
  const blocks = verified.reduce((sum, each) => sum + each.blocks, 0)
  return blocks === 0
    ? ''
    : `verified: ${blocks} blocks through ${verified.length} paths came back right`
}

const VERDICTS: Readonly<Record<Verdict, string>> = {
  goal: 'goal',
  floor: 'floor',
  missed: 'MISSED',
}

function targetTable(targets: readonly Target[]): string {
  const limit = (value: number | undefined, unit: string) =>
    value === undefined ? '' : `${value} ${unit}`.trim()
  return columns(
    ['', 'what', 'measured', 'floor', 'goal', 'against', 'verdict'],
    targets.map((target) => [
      target.id,
      target.what,
      `${short(target.figure.median)} ${target.unit} ${range(target.figure, short)}`,
      limit(target.floor, target.unit),
      limit(target.goal, target.unit),
      target.against,
      VERDICTS[target.verdict],
    ]),
  )
}

function groupTable(rows: readonly Row[]): string {
  const [first] = rows
  if (first === undefined) return ''
  return columns(
    [first.group, '', 'who', 'per second', '', 'CPU each', 'p50', 'p99', 'p99.9', 'ratio'],
    rows.map((row) => [
      row.workload,
      `${row.axis} ${row.at}`,
      row.series,
      count(row.perSecond.median),
      range(row.perSecond, count),
      formatNanoseconds(row.cpuUs.median * 1000),
      ...(['p50', 'p99', 'p999'] as const).map((key) =>
        row.latencyUs === undefined ? '' : formatNanoseconds(row.latencyUs[key].median * 1000),
      ),
      row.ratio === undefined ? '' : `${short(row.ratio.figure.median)} × ${row.ratio.to}`,
    ]),
  )
}

function range(figure: Figure, format: (value: number) => string): string {
  return `[${format(figure.p10)} .. ${format(figure.p90)}]`
}

/** `12.3 M`, `45.6 k` */
export function count(value: number): string {
  if (value >= 1e6) return `${(value / 1e6).toPrecision(3)} M`
  if (value >= 1e3) return `${(value / 1e3).toPrecision(3)} k`
  return value.toPrecision(3)
}

function short(value: number): string {
  return Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3)
}

function columns(titles: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = titles.map((title, i) =>
    Math.max(title.length, ...rows.map((row) => row[i]?.length ?? 0)),
  )
  const line = (cells: readonly string[]) =>
    cells
      .map((cell, i) => cell.padEnd(widths[i] ?? 0))
      .join('  ')
      .trimEnd()
  return [titles, ...rows].map(line).join('\n')
}
