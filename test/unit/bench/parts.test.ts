/** The pure parts of the benchmark: verdicts, the pattern, what fio says, processors. */
import { expect, it } from 'vitest'
import { figureOf } from '../../../lib/bench/figures.js'
import { allowedCpus } from '../../../lib/bench/machine.js'
import { mismatch, patternAt } from '../../../lib/bench/pattern.js'
import { type FioJob, fioArguments, sampleOf } from '../../../lib/bench/peers/fio.js'
import { verdictOf } from '../../../lib/bench/report.js'

it('a verdict tells goal from floor from missed, whichever way is better', () => {
  const verdict = (median: number, better: 'more' | 'less', floor?: number, goal?: number) =>
    verdictOf({
      figure: figureOf([median]),
      better,
      ...(floor !== undefined && { floor }),
      ...(goal !== undefined && { goal }),
    })
  expect(verdict(8, 'more', 3, 8)).toBe('goal')
  expect(verdict(7.9, 'more', 3, 8)).toBe('floor')
  expect(verdict(2.9, 'more', 3, 8)).toBe('missed')
  expect(verdict(0.3, 'less', 0.6, 0.3)).toBe('goal')
  expect(verdict(0.6, 'less', 0.6, 0.3)).toBe('floor')
  expect(verdict(0.61, 'less', 0.6, 0.3)).toBe('missed')
  expect(verdict(1.2, 'less', undefined, 0.8)).toBe('floor')
  expect(verdict(Number.NaN, 'more', 1, 2)).toBe('missed')
})

it('the pattern is found again where it belongs, and nowhere else', () => {
  const far = 5 * 2 ** 32
  for (const offset of [0, 4096, far]) {
    expect(mismatch(patternAt(offset, 4096), offset)).toBeUndefined()
    expect(mismatch(patternAt(offset + 4096, 4096), offset)).toBeGreaterThanOrEqual(offset)
    expect(mismatch(patternAt(offset, 4096, 7), offset)).toBe(offset + 4)
    expect(mismatch(patternAt(offset, 4096, 7), offset, 7)).toBeUndefined()
  }
  const torn = patternAt(far, 4096)
  torn[1234] = torn[1234]! ^ 1
  expect(mismatch(torn, far)).toBe(far + 1234)
})

const JOB: FioJob = {
  series: 'fio io_uring',
  engine: 'io_uring',
  target: '/srv/a.raw',
  sizeBytes: 1024 ** 3,
  write: false,
  sequential: false,
  block: 4096,
  depth: 32,
  cpu: 1,
}

it('fio is told to keep the page cache, and to batch where there is depth', () => {
  const words = fioArguments(JOB, 250)
  for (const word of ['--invalidate=0', '--runtime=250ms', '--rw=randread', '--iodepth=32']) {
    expect(words).toContain(word)
  }
  expect(words.join(' ')).toContain('batch_submit=32')
  expect(fioArguments({ ...JOB, depth: 1 }, 250).join(' ')).not.toContain('batch')
  expect(fioArguments({ ...JOB, write: true, sequential: true }, 1)).toContain('--rw=write')
  expect(fioArguments({ ...JOB, engine: 'nbd', target: 'nbd://x' }, 1)).toContain('--uri=nbd://x')
})

it("fio's words become a sample, with notes before the JSON or without", () => {
  const side = {
    total_ios: 1000,
    runtime: 100,
    iops: 10_000,
    clat_ns: { percentile: { '50.000000': 1, '99.000000': 2, '99.900000': 3 } },
  }
  const none = { total_ios: 0, runtime: 0, iops: 0, clat_ns: {} }
  const job = { error: 0, usr_cpu: 20, sys_cpu: 30, read: side, write: none }
  const sample = sampleOf(`note: something\n${JSON.stringify({ jobs: [job] })}`, false)
  expect(sample.operations).toBe(1000)
  expect(sample.elapsedNs).toBe(1e8)
  expect(sample.cpuNs).toBe(5e7)
  expect(sample.latencyNs).toEqual({ p50: 1, p99: 2, p999: 3 })
})

it('processors are read as the kernel lists them', () => {
  expect(allowedCpus('Name:\tx\nCpus_allowed_list:\t0-2,7\n')).toEqual([0, 1, 2, 7])
  expect(allowedCpus('Cpus_allowed_list:\t5\n')).toEqual([5])
})
