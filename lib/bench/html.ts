/**
 * The report as one page that needs nothing else: style, data and Chart.js are in it. Chart.js is under the MIT
 * licence, whose notice stands at the head of its file and is inlined with it.
 */
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { formatNanoseconds, formatSize } from '../units.js'
import type { Figure } from './figures.js'
import { SCRIPT, STYLE } from './page.js'
import { type Plot, plotsOf } from './plots.js'
import type { Report, Row, Target } from './report.js'
import { count } from './text.js'

/** The whole page. */
export function reportHtml(report: Report): string {
  const plots = plotsOf(report)
  const drawn = plots.map(({ id, chart }) => ({ id, chart }))
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>vbdkit bench, ${text(report.startedAt.slice(0, 10))}</title>
<style>${STYLE}</style>
</head>
<body>
${heading(report)}
${targets(report.targets)}
<h2>Plots</h2>
<div class="plots">
${plots.map(figure).join('\n')}
</div>
${notes(report)}
${rows(report.rows)}
<script type="application/json" id="plots">${json(drawn)}</script>
<script type="application/json" id="report">${json(report)}</script>
<script>${script(chartLibrary())}</script>
<script>${script(SCRIPT)}</script>
</body>
</html>
`
}

function heading(report: Report): string {
  const { machine } = report
  const versions = Object.values(machine.versions).join('; ')
  return `<h1>vbdkit ${text(report.vbdkit)}: benchmark</h1>
<p class="soft">${text(machine.cpu)}, ${machine.processors} processors, ${formatSize(machine.memoryBytes)},
Linux ${text(machine.kernel)}, Node.js ${text(machine.node)}${versions && `; ${text(versions)}`}</p>
<p class="soft">${text(report.startedAt)}, ${report.seconds.toFixed(0)} s. Every figure is the median of
${report.rounds} interleaved rounds of ${report.roundMs} ms or more, with its 10th and 90th percentile. Guests run on
processor ${machine.guestCpu}, what is measured on processor ${machine.backendCpu}.</p>
${banner(report.quick, 'Quick: short rounds and fewer workloads. Good for a look, nothing to quote.')}
${banner(
  machine.othersBusy > 0.2,
  `Noisy: others kept ${machine.othersBusy.toFixed(1)} processors busy. ` +
    'Ratios may be trusted a little, absolute figures not.',
)}`
}

function banner(shown: boolean, what: string): string {
  return shown ? `<p class="banner">${text(what)}</p>` : ''
}

function figure({ id, title, caption, wide, height }: Plot): string {
  return `<figure${wide ? ' class="wide"' : ''}>
<h3>${text(title)}</h3><figcaption>${text(caption)}</figcaption>
<div class="canvas" style="height:${height}px"><canvas id="${id}" role="img" aria-label="${text(title)}"></canvas></div>
</figure>`
}

function targets(all: readonly Target[]): string {
  if (all.length === 0) return ''
  const limit = (value: number | undefined, unit: string) =>
    value === undefined ? '' : text(`${value} ${unit}`)
  const line = (target: Target) => `<tr><td>${text(target.id)}</td><td>${text(target.what)}</td>
<td class="number">${ranged(target.figure, (value) => `${short(value)} ${target.unit}`)}</td>
<td class="number">${limit(target.floor, target.unit)}</td><td class="number">${limit(target.goal, target.unit)}</td>
<td>${text(target.against)}</td><td class="verdict ${target.verdict}">${VERDICTS[target.verdict]}</td></tr>`
  return `<h2>Speed to reach</h2>
<p class="soft">Ratios within one run. The floor must be reached, the goal is what we are after.</p>
<div class="scroll"><table>
<tr><th></th><th>what</th><th class="number">measured</th><th class="number">floor</th><th class="number">goal</th>
<th>against</th><th>verdict</th></tr>
${all.map(line).join('\n')}
</table></div>`
}

const VERDICTS = { goal: 'goal', floor: 'floor', missed: 'missed' } as const

function rows(all: readonly Row[]): string {
  const latency = (row: Row, key: 'p50' | 'p99' | 'p999') =>
    row.latencyUs === undefined ? '' : formatNanoseconds(row.latencyUs[key].median * 1000)
  const line = (
    row: Row,
  ) => `<tr><td>${row.group}</td><td>${text(row.workload)}</td><td>${row.axis} ${row.at}</td>
<td>${text(row.series)}</td><td class="number">${ranged(row.perSecond, count)}</td>
<td class="number">${ranged(row.cpuUs, (us) => formatNanoseconds(us * 1000))}</td>
<td class="number">${latency(row, 'p50')}</td><td class="number">${latency(row, 'p99')}</td>
<td class="number">${latency(row, 'p999')}</td>
<td class="number">${row.ratio ? `${ranged(row.ratio.figure, short)} × ${text(row.ratio.to)}` : ''}</td></tr>`
  return `<h2>All figures</h2>
<details><summary>${all.length} rows: median [10th .. 90th percentile]</summary>
<div class="scroll"><table>
<tr><th>group</th><th>workload</th><th></th><th>who</th><th class="number">per second</th>
<th class="number">CPU each</th>
<th class="number">p50</th><th class="number">p99</th><th class="number">p99.9</th><th class="number">ratio</th></tr>
${all.map(line).join('\n')}
</table></div></details>`
}

function notes(report: Report): string {
  const { verified, skipped } = report
  const blocks = verified.reduce((sum, each) => sum + each.blocks, 0)
  const checked =
    blocks === 0
      ? ''
      : `<p>${blocks} blocks were written, read and compared through the same binaries, untimed, on
${verified.length} paths (${text(verified.map(({ what }) => what).join('; '))}): all were right.</p>`
  const left = skipped.map(
    ({ what, why, remedy }) =>
      `<li>${text(what)}: ${text(why)}${remedy ? ` (<code>${text(remedy)}</code>)` : ''}</li>`,
  )
  return `<h2>How to read this</h2>
<p>Compare ratios, not figures: contenders take turns, round by round, so that what disturbs one disturbs the other.
Polling is compared with polling, sleeping with sleeping. CPU time is that of the backend or server, not of who drives
it.</p>
${checked}
${left.length > 0 ? `<p>Not measured:</p><ul>${left.join('')}</ul>` : ''}`
}

function ranged(figure: Figure, format: (value: number) => string): string {
  const { median, p10, p90 } = figure
  return `${text(format(median))} <span class="soft">[${text(format(p10))} .. ${text(format(p90))}]</span>`
}

function short(value: number): string {
  return Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3)
}

function text(value: string): string {
  const entities: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' }
  return value.replace(/[&<>"]/g, (character) => entities[character]!)
}

/** JSON that cannot end its script element. */
function json(value: unknown): string {
  return JSON.stringify(value).replaceAll('<', '\\u003c')
}

function script(code: string): string {
  return code.replaceAll('</script', '<\\/script').replace(/\n?\/\/# sourceMappingURL=.*$/m, '')
}

/** The build of Chart.js for pages: it is beside the entry that its package exports. */
function chartLibrary(): string {
  const entry = createRequire(import.meta.url).resolve('chart.js')
  return readFileSync(join(dirname(entry), 'chart.umd.min.js'), 'utf8')
}
