/**
 * Statistics of one vbd: the engine's counters as figures that people and programs can use. Pure, but for the clock
 * of the stream. Reading takes a snapshot; nothing here reaches into a running engine.
 */
import type { HistogramCounters, OperationCounters, VbdCounters } from '../engine/engine.js'
import { formatNanoseconds, parseDuration } from '../units.js'

/** Nanoseconds. All 0 when there was nothing to measure. */
export interface Latency {
  readonly count: number
  readonly mean: number
  readonly min: number
  readonly p50: number
  readonly p90: number
  readonly p99: number
  readonly p999: number
  readonly max: number
}

export interface OperationStats {
  /** Totals since the vbd was made. */
  readonly requests: number
  /** Of 512 bytes. */
  readonly sectors: number
  readonly bytes: number
  readonly errors: number
  /** Over the interval: requests per second, and bytes per second. */
  readonly iops: number
  readonly bytesPerSecond: number
  /** Over the interval. */
  readonly latency: Latency
}

export interface VbdStats {
  /** `1:xvda` */
  readonly vbd: string
  /** Milliseconds since 1970. */
  readonly time: number
  /** What rates and latencies are about: since the vbd was made, or in a stream since the item before. Milliseconds. */
  readonly intervalMs: number
  readonly connected: boolean
  readonly read: OperationStats
  readonly write: OperationStats
  readonly flush: OperationStats
  readonly discard: OperationStats
  /** Times that requests had to wait in the ring for want of an entry, a page or budget. */
  readonly outOfRequests: number
  readonly inFlight: number
  readonly persistentGrants: number
  readonly persistentGrantsCap: number
  /** Requests answered unexecuted, over all reasons. */
  readonly rejected: number
  /** Mean of requests found per pass over a ring, over the interval. */
  readonly ringUtilisation: number
  /** The engine's own figures, since the vbd was made. */
  readonly counters: VbdCounters
}

const EMPTY_HISTOGRAM: HistogramCounters = { count: 0, sum: 0, min: 0, max: 0, buckets: [] }
const EMPTY_OPERATION: OperationCounters = {
  requests: 0,
  sectors: 0,
  bytes: 0,
  errors: 0,
  latencyNs: EMPTY_HISTOGRAM,
}

/** The counters of a vbd that no engine has served yet. */
export const EMPTY_COUNTERS: VbdCounters = {
  read: EMPTY_OPERATION,
  write: EMPTY_OPERATION,
  flush: EMPTY_OPERATION,
  discard: EMPTY_OPERATION,
  rejected: {},
  grantErrors: 0,
  diskErrors: 0,
  outOfRequests: 0,
  inFlight: 0,
  persistentGrants: 0,
  persistentGrantsCap: 0,
  persistentGrantsOverflow: 0,
  persistentGrantsPurged: 0,
  grantMaps: 0,
  grantUnmaps: 0,
  grantCopies: 0,
  grantCalls: 0,
  notificationsSent: 0,
  notificationsSaved: 0,
  eventsReceived: 0,
  spuriousEvents: 0,
  wakeups: 0,
  poolPagesInUse: 0,
  poolPagesFree: 0,
  ringUtilisation: EMPTY_HISTOGRAM,
  segmentsPerRequest: EMPTY_HISTOGRAM,
}

/** 16 buckets per power of two (native/base/histogram.h): the bucket that holds `value`. */
export function bucketOf(value: number): number {
  if (value < 16) return Math.max(0, Math.floor(value))
  let exponent = Math.floor(Math.log2(value))
  // log2 of a number just below a power of two rounds up.
  if (2 ** exponent > value) exponent--
  return (exponent - 3) * 16 + (Math.floor(value / 2 ** (exponent - 4)) & 15)
}

/** Lowest value of a bucket; the bucket ends where the next one begins. */
export function bucketStart(bucket: number): number {
  if (bucket < 16) return bucket
  const exponent = Math.floor(bucket / 16) + 3
  return (16 + (bucket % 16)) * 2 ** (exponent - 4)
}

/**
 * The value that a share of the samples does not exceed, interpolated within its bucket: at most a sixteenth off.
 *
 * @param share 0..1
 * @returns 0 for an empty histogram
 */
export function percentile(histogram: HistogramCounters, share: number): number {
  const { count, min, max, buckets } = histogram
  if (count === 0) return 0
  const rank = Math.max(1, Math.ceil(share * count))
  let below = 0
  for (const [bucket, samples] of buckets.entries()) {
    if (below + samples >= rank) {
      const start = bucketStart(bucket)
      const width = bucketStart(bucket + 1) - start
      const value = start + (width * (rank - below)) / samples
      return Math.min(max, Math.max(min, value))
    }
    below += samples
  }
  return max
}

/**
 * What came into a histogram between two readings of it. Its ends are those of its buckets, as near as can be known.
 */
export function histogramSince(
  after: HistogramCounters,
  before: HistogramCounters,
): HistogramCounters {
  if (before.count === 0) return after
  // A new engine vbd counts from nothing again.
  if (after.count < before.count) return after
  const buckets = after.buckets.map((samples, bucket) => samples - (before.buckets[bucket] ?? 0))
  const first = buckets.findIndex((samples) => samples > 0)
  if (first < 0) return EMPTY_HISTOGRAM
  const last = buckets.findLastIndex((samples) => samples > 0)
  return {
    count: after.count - before.count,
    sum: after.sum - before.sum,
    min: Math.max(after.min, bucketStart(first)),
    max: Math.min(after.max, bucketStart(last + 1)),
    buckets,
  }
}

function latencyOf(histogram: HistogramCounters): Latency {
  const { count, sum, min, max } = histogram
  const at = (share: number) => Math.round(percentile(histogram, share))
  return {
    count,
    mean: count === 0 ? 0 : Math.round(sum / count),
    min,
    p50: at(0.5),
    p90: at(0.9),
    p99: at(0.99),
    p999: at(0.999),
    max,
  }
}

/** One reading of the counters, and when. */
export interface Reading {
  readonly counters: VbdCounters
  /** Milliseconds since 1970. */
  readonly time: number
}

/** The figures of one vbd between two readings. */
export function makeStats(
  vbd: string,
  connected: boolean,
  before: Reading,
  after: Reading,
): VbdStats {
  const { counters } = after
  const intervalMs = Math.max(1, after.time - before.time)
  const operation = (name: 'read' | 'write' | 'flush' | 'discard') =>
    operationStats(counters[name], before.counters[name], intervalMs)
  const utilisation = histogramSince(counters.ringUtilisation, before.counters.ringUtilisation)
  return {
    vbd,
    time: after.time,
    intervalMs,
    connected,
    read: operation('read'),
    write: operation('write'),
    flush: operation('flush'),
    discard: operation('discard'),
    outOfRequests: counters.outOfRequests,
    inFlight: counters.inFlight,
    persistentGrants: counters.persistentGrants,
    persistentGrantsCap: counters.persistentGrantsCap,
    rejected: Object.values(counters.rejected).reduce((sum, count) => sum + count, 0),
    ringUtilisation: utilisation.count === 0 ? 0 : utilisation.sum / utilisation.count,
    counters,
  }
}

function operationStats(
  after: OperationCounters,
  before: OperationCounters,
  intervalMs: number,
): OperationStats {
  const since = (now: number, then: number) => (now >= then ? now - then : now)
  const { requests, sectors, bytes, errors } = after
  return {
    requests,
    sectors,
    bytes,
    errors,
    iops: (since(requests, before.requests) * 1000) / intervalMs,
    bytesPerSecond: (since(bytes, before.bytes) * 1000) / intervalMs,
    latency: latencyOf(histogramSince(after.latencyNs, before.latencyNs)),
  }
}

/**
 * One line like that of blkback's `log_stats`: out of requests, reads, writes, flushes and discards since the line
 * before, then persistent grants in use and their cap.
 */
export function statsLine(stats: VbdStats, before: VbdCounters): string {
  const { counters } = stats
  const since = (now: number, then: number) => String(now >= then ? now - then : now).padStart(4)
  const parts = [
    `oo ${since(counters.outOfRequests, before.outOfRequests)}`,
    `rd ${since(counters.read.requests, before.read.requests)}`,
    `wr ${since(counters.write.requests, before.write.requests)}`,
    `f ${since(counters.flush.requests, before.flush.requests)}`,
    `ds ${since(counters.discard.requests, before.discard.requests)}`,
    `pg: ${String(counters.persistentGrants).padStart(4)}/${counters.persistentGrantsCap}`,
    `p99 rd ${formatNanoseconds(stats.read.latency.p99)} wr ${formatNanoseconds(stats.write.latency.p99)}`,
  ]
  return `${stats.vbd}: ${parts.join(' | ')}`
}

export interface StatsStreamOptions {
  /** Interval: milliseconds, or a duration such as `'1s'`; 10 ms at least. */
  readonly every: number | string
  /** Ends the stream. */
  readonly signal?: AbortSignal
}

/** What a stream of statistics is made from. */
export interface StatsSource {
  readonly vbd: string
  read(): Reading
  connected(): boolean
  /** Fires when the vbd is closed. */
  readonly closed: AbortSignal
}

/**
 * Statistics at an interval, each made when it is due and asked for: a reader that is slow gets fewer items, each
 * about the whole time since its last one, and never old ones. Ends when the signal fires or the vbd is closed.
 */
export async function* streamStats(
  source: StatsSource,
  options: StatsStreamOptions,
): AsyncGenerator<VbdStats, void, undefined> {
  const every = Math.max(10, parseDuration(options.every))
  const stop = options.signal ? AbortSignal.any([source.closed, options.signal]) : source.closed
  let before = source.read()
  let due = before.time + every
  while (await sleepUntil(due, stop)) {
    const after = source.read()
    yield makeStats(source.vbd, source.connected(), before, after)
    before = after
    due = Math.max(due + every, Date.now())
  }
}

/** False when the signal came first. */
function sleepUntil(due: number, signal: AbortSignal): Promise<boolean> {
  if (signal.aborted) return Promise.resolve(false)
  return new Promise((resolve) => {
    const finish = (elapsed: boolean) => {
      clearTimeout(timer)
      signal.removeEventListener('abort', onAbort)
      resolve(elapsed)
    }
    const onAbort = () => finish(false)
    const timer = setTimeout(() => finish(true), Math.max(0, due - Date.now()))
    signal.addEventListener('abort', onAbort)
  })
}
