/**
 * Sample: one measurement of one contender, and what is computed from several of them.
 */
import type { HistogramCounters } from '../engine/engine.js'
import { percentile } from '../vbd/stats.js'
import { type Figure, figureOf } from './figures.js'

/** Latencies of one sample, nanoseconds. */
export interface Latencies {
  readonly p50: number
  readonly p99: number
  readonly p999: number
}

/** What one contender did in one round. */
export interface Sample {
  readonly operations: number
  /** Operations that failed: a sample with any is no sample. */
  readonly errors: number
  readonly elapsedNs: number
  /** CPU time of the side that is measured (the backend, the peer's server, fio), not of who drives it. */
  readonly cpuNs: number
  /** Absent where single operations are too short to be timed. */
  readonly latencyNs?: Latencies | undefined
  /** Operations of each ring, where there are several. */
  readonly shares?: readonly number[]
}

/** Something that can be measured again and again, in turn with others. */
export interface Contender {
  /** Who: `vbdkit`, `fio io_uring`, ... The same contender has the same name everywhere. */
  readonly series: string
  /** Every sample is a new process, which there is no use in warming. */
  readonly startsAnew?: boolean
  /** Measures for about `milliseconds`. */
  measure(milliseconds: number): Promise<Sample>
}

/** The percentiles of a histogram; undefined for an empty one. */
export function latenciesOf(histogram: HistogramCounters): Latencies | undefined {
  if (histogram.count === 0) return undefined
  return {
    p50: percentile(histogram, 0.5),
    p99: percentile(histogram, 0.99),
    p999: percentile(histogram, 0.999),
  }
}

/** Operations per second. */
export function perSecond(sample: Sample): number {
  return (sample.operations * 1e9) / sample.elapsedNs
}

/** CPU microseconds per operation. */
export function cpuUs(sample: Sample): number {
  return sample.cpuNs / 1000 / sample.operations
}

/** Elapsed nanoseconds per operation. */
export function nsEach(sample: Sample): number {
  return sample.elapsedNs / sample.operations
}

/** The figures that every row of a report has. */
export interface SampleFigures {
  readonly perSecond: Figure
  readonly cpuUs: Figure
  /** Microseconds. */
  readonly latencyUs?: { readonly p50: Figure; readonly p99: Figure; readonly p999: Figure }
}

/** Summarises the rounds of one contender. */
export function summarise(samples: readonly Sample[]): SampleFigures {
  const timed = samples.flatMap(({ latencyNs }) => (latencyNs === undefined ? [] : [latencyNs]))
  const us = (key: keyof Latencies) => figureOf(timed.map((latency) => latency[key] / 1000))
  return {
    perSecond: figureOf(samples.map(perSecond)),
    cpuUs: figureOf(samples.map(cpuUs)),
    ...(timed.length > 0 && {
      latencyUs: { p50: us('p50'), p99: us('p99'), p999: us('p999') },
    }),
  }
}
