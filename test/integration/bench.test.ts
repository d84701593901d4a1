/** The benchmark as its user meets it: the page in a browser, and a short run from the command line. */
import { execFile, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { reportHtml } from '../../lib/bench/html.js'
import { plotsOf } from '../../lib/bench/plots.js'
import type { Report } from '../../lib/bench/report.js'
import { fullReport } from '../support/bench_report.js'

const run = promisify(execFile)
const CLI = new URL('../../bin/vbdkit.js', import.meta.url).pathname
const MACHINE = new URL('../../dist/lib/bench/machine.js', import.meta.url).href

/** The priority of this session; '' where the kernel has no such thing. */
function sessionPriority(): string {
  try {
    return readFileSync('/proc/self/autogroup', 'utf8')
  } catch {
    return ''
  }
}

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'vbdkit-bench-test-'))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

function browser(): string {
  const found = ['chromium', 'google-chrome'].find((name) => {
    try {
      return execFileSync(name, ['--version'], { stdio: 'pipe' }).length > 0
    } catch {
      return false
    }
  })
  if (found === undefined) throw new Error('no chromium: npm run setup -- test')
  return found
}

/** What a browser drew: for each canvas its marks inside the plot, and whether pixels have each series' colour. */
interface Drawn {
  readonly id: string
  readonly marks: number
  readonly series: readonly { label: string; pixels: number }[]
}

const PROBE = `<script>
addEventListener('load', () => setTimeout(() => {
  const drawn = [...document.querySelectorAll('canvas')].map((canvas) => {
    const chart = Chart.getChart(canvas)
    if (!chart) return { id: canvas.id, marks: 0, series: [] }
    const { left, right, top, bottom } = chart.chartArea
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
    const colourOf = (dataset) => [dataset.backgroundColor].flat()[0]
    const pixels = (colour) => {
      const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16))
      let count = 0
      for (let i = 0; i < data.length; i += 4) {
        if (data[i] === r && data[i + 1] === g && data[i + 2] === b && data[i + 3] === 255) count++
      }
      return count
    }
    const inside = ({ x, y }) => x >= left - 1 && x <= right + 1 && y >= top - 1 && y <= bottom + 1
    const metas = chart.data.datasets.map((_, i) => chart.getDatasetMeta(i).data)
    return {
      id: canvas.id,
      marks: metas.flat().filter(inside).length,
      series: chart.data.datasets.map((d) => ({ label: d.label, pixels: pixels(colourOf(d)) })),
    }
  })
  document.title = 'DRAWN' + JSON.stringify(drawn) + 'END'
}, 0))
</script>`

/** Opens a page without a network and says what was drawn on it. */
async function open(html: string): Promise<Drawn[]> {
  const path = join(folder, 'probed.html')
  writeFileSync(path, html.replace('</body>', `${PROBE}</body>`))
  const offline = ['--host-resolver-rules=MAP * ~NOTFOUND', '--disable-gpu', '--no-sandbox']
  const size = ['--window-size=1300,900', '--virtual-time-budget=20000']
  const profile = `--user-data-dir=${join(folder, 'profile')}`
  const args = ['--headless', ...offline, ...size, profile, '--dump-dom', `file://${path}`]
  const { stdout } = await run(browser(), args, { maxBuffer: 64 * 1024 * 1024 })
  const told = /<title>DRAWN(.*)END<\/title>/.exec(stdout)?.[1]
  if (told === undefined) throw new Error('the page did not say what it drew')
  return JSON.parse(told.replaceAll('&amp;', '&').replaceAll('&lt;', '<').replaceAll('&gt;', '>'))
}

function expectAllDrawn(drawn: readonly Drawn[], plots: readonly string[]): void {
  expect(drawn.map(({ id }) => id)).toEqual(plots)
  for (const { id, marks, series } of drawn) {
    expect(marks, `marks of ${id}`).toBeGreaterThan(0)
    for (const { label, pixels } of series) {
      expect(pixels, `pixels of ${label} in ${id}`).toBeGreaterThan(20)
    }
  }
}

describe('the page', () => {
  it('draws every plot of a report with all groups, without a network', async () => {
    const report = fullReport()
    const plots = plotsOf(report).map(({ id }) => id)
    expect(plots).toHaveLength(13)
    expectAllDrawn(await open(reportHtml(report)), plots)
  }, 60_000)

  it('takes nothing from elsewhere, and no text for markup', () => {
    const html = reportHtml(fullReport())
    expect(html).not.toMatch(/<(script|link|img|iframe)[^>]*\b(src|href)=/i)
    expect(html).not.toContain('</script><b>')
    expect(html).toContain('A &lt;processor&gt; &amp; more')
    expect(html.match(/<\/script>/g)).toHaveLength(4)
    expect(html).toContain('Released under the MIT License')
  })
})

// In a session of its own: what is next to this test would starve.
it.skipIf(sessionPriority() === '')(
  'raises the priority of a session for a while, and puts it back',
  async () => {
    const program = `
    import { readFileSync } from 'node:fs'
    const { raisePriority } = await import(${JSON.stringify(MACHINE)})
    const nice = () => /nice (.*)/.exec(readFileSync('/proc/self/autogroup', 'utf8'))?.[1]
    const before = nice()
    const putBack = raisePriority()
    const meanwhile = nice()
    putBack?.()
    console.log(JSON.stringify({ raised: putBack !== undefined, meanwhile, same: nice() === before }))`
    const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
      detached: true,
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const said = JSON.parse(Buffer.concat(await child.stdout.toArray()).toString())
    expect(said.same).toBe(true)
    if (said.raised) expect(said.meanwhile).toBe('-20')
  },
)

describe('vbdkit bench', () => {
  it('runs a group, prints a table, and leaves a report and a page that draws it', async () => {
    const out = join(folder, 'out')
    const priority = sessionPriority()
    const args = [CLI, 'bench', '--quick', '--only', 'ring', '--out', out]
    const { stdout } = await run(process.execPath, args, { maxBuffer: 16 * 1024 * 1024 })
    expect(stdout).toContain('QUICK')
    const report = JSON.parse(readFileSync(join(out, 'bench.json'), 'utf8')) as Report
    expect(report.groups).toEqual(['ring'])
    expect(report.quick).toBe(true)
    // A quick run shares the machine with others.
    expect(report.machine.raisedPriority).toBe(false)
    expect(sessionPriority()).toBe(priority)
    expect(report.rows.length).toBeGreaterThan(5)
    for (const { perSecond, series, workload } of report.rows) {
      expect(perSecond.rounds, `${workload}, ${series}`).toBeGreaterThanOrEqual(7)
      expect(perSecond.median).toBeGreaterThan(0)
      expect(stdout).toContain(workload)
    }
    const drawn = await open(readFileSync(join(out, 'bench.html'), 'utf8'))
    expectAllDrawn(
      drawn,
      plotsOf(report).map(({ id }) => id),
    )
  }, 120_000)

  it.each(['SIGINT', 'SIGTERM'] as const)(
    'leaves no files behind after %s',
    async (signal) => {
      const files = mkdtempSync(join('/var/tmp', 'vbdkit-bench-killed-'))
      const args = [CLI, 'bench', '--quick', '--only', 'ring', '--dir', files, '--out', folder]
      const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'ignore'] })
      const exited = once(child, 'exit')
      // Its first line of progress comes when the files are there.
      await once(child.stdout, 'data')
      expect(readdirSync(files)).toHaveLength(1)
      child.kill(signal)
      await exited
      expect(readdirSync(files)).toEqual([])
      rmSync(files, { recursive: true })
    },
    60_000,
  )

  it.each([
    [['--only', 'ring,rings'], "there is no group 'rings'"],
    [['--rounds', '3'], 'not a whole number from 7'],
    [['--cpus', '0'], 'are not two processors'],
    [['--cpus', '0,4095'], 'processor 4095 cannot be used'],
  ])('refuses %j in one line', async (words, message) => {
    const failure = run(process.execPath, [CLI, 'bench', '--quick', ...words])
    await expect(failure).rejects.toMatchObject({
      code: 2,
      stderr: expect.stringContaining(message),
    })
  })
})
