/**
 * Page: the style and the script of bench.html. The script runs in a browser, after Chart.js, and draws what plots.ts
 * described; it asks for nothing from anywhere.
 */

/** For screens and paper, light and dark. */
export const STYLE = `
:root { color-scheme: light dark; --ink: #1a1d21; --soft: #5c6570; --paper: #f6f7f9; --card: #fff; --line: #dfe3e8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #9aa4b0; --paper: #14171a; --card: #1d2125; --line: #343a41 }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1280px; padding: 24px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 26px; margin: 0 0 4px }
h2 { font-size: 19px; margin: 32px 0 8px }
h3 { font-size: 15px; margin: 0 }
p { margin: 4px 0 }
.soft, figcaption { color: var(--soft); font-size: 13px }
.banner { border-left: 4px solid #e69f00; background: var(--card); padding: 10px 14px; margin: 12px 0 }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(560px, 100%), 1fr)); gap: 16px }
figure { margin: 0; padding: 14px 16px; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  min-width: 0 }
figure.wide { grid-column: 1 / -1 }
.canvas { position: relative; margin-top: 8px }
table { border-collapse: collapse; width: 100%; background: var(--card); font-size: 13px;
  font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid var(--line); padding: 5px 10px; text-align: left; vertical-align: top }
th { color: var(--soft); font-weight: 600 }
.number { text-align: right; white-space: nowrap }
.verdict { font-weight: 600; white-space: nowrap }
.goal { color: #009e73 } .floor { color: #b97f00 } .missed { color: #d55e00 }
.scroll { overflow-x: auto }
summary { cursor: pointer; margin: 8px 0 }
@media print { body { max-width: none } figure { break-inside: avoid } }
`

/** Draws every plot of the JSON in #plots onto the canvas of its name. */
export const SCRIPT = `
'use strict'
const style = getComputedStyle(document.documentElement)
const ink = style.getPropertyValue('--ink').trim(), line = style.getPropertyValue('--line').trim()
Chart.defaults.color = ink
Chart.defaults.borderColor = line
Chart.defaults.font.family = 'system-ui, sans-serif'
const significant = (value) => Number(value.toPrecision(3)).toString()
const formats = {
  count: (v) => v >= 1e6 ? significant(v / 1e6) + ' M' : v >= 1e3 ? significant(v / 1e3) + ' k' : significant(v),
  'µs': (v) => v >= 1000 ? significant(v / 1000) + ' ms' : significant(v) + ' µs',
  ns: (v) => significant(v) + ' ns',
  '×': (v) => significant(v) + ' ×',
}
// Logarithmic axes have more ticks than labels fit: 1, 2 and 5 of each decade are written.
const written = (v) => [1, 2, 5].includes(Number((v / 10 ** Math.floor(Math.log10(v) + 1e-9)).toFixed(6)))
const errorBars = {
  id: 'errorBars',
  afterDatasetsDraw(chart) {
    const { ctx, options } = chart
    const flat = options.indexAxis === 'y'
    const scale = flat ? chart.scales.x : chart.scales.y
    ctx.save()
    ctx.strokeStyle = ink
    ctx.globalAlpha = 0.65
    ctx.lineWidth = 1
    chart.data.datasets.forEach((dataset, i) => {
      if (!chart.isDatasetVisible(i)) return
      chart.getDatasetMeta(i).data.forEach((mark, j) => {
        const range = dataset.ranges?.[j]
        if (!range) return
        const [low, high] = range.map((value) => scale.getPixelForValue(Math.max(value, scale.min)))
        const at = flat ? mark.y : mark.x
        ctx.beginPath()
        const caps = [low, high].map((end) => [at - 3, end, at + 3, end])
        for (const [x1, y1, x2, y2] of [[at, low, at, high], ...caps]) {
          flat ? (ctx.moveTo(y1, x1), ctx.lineTo(y2, x2)) : (ctx.moveTo(x1, y1), ctx.lineTo(x2, y2))
        }
        ctx.stroke()
      })
    })
    ctx.restore()
  },
}
for (const { id, chart } of JSON.parse(document.getElementById('plots').textContent)) {
  const value = Object.values(chart.options.scales).find((scale) => scale.format)
  const format = formats[value.format]
  const log = value.type === 'logarithmic'
  value.ticks = { callback: (v) => log && !written(v) ? '' : format(v) }
  if (chart.type === 'line') {
    chart.options.spanGaps = true
    chart.options.elements = { point: { radius: 4 }, line: { borderWidth: 2, tension: 0 } }
  }
  chart.options.plugins = {
    legend: { position: 'bottom', labels: { boxWidth: 14 } },
    ...chart.options.plugins,
    tooltip: {
      callbacks: {
        label({ dataset, dataIndex, raw }) {
          const range = dataset.ranges?.[dataIndex]
          const around = range ? ' [' + format(range[0]) + ' .. ' + format(range[1]) + ']' : ''
          return dataset.label + ': ' + format(raw) + around
        },
      },
    },
  }
  new Chart(document.getElementById(id), { ...chart, plugins: [errorBars] })
}
`
