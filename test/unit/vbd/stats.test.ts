/** Percentiles, rates and streams. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { HistogramCounters, VbdCounters } from '../../../lib/engine/engine.js'
import {
  bucketOf,
  bucketStart,
  EMPTY_COUNTERS,
  histogramSince,
  makeStats,
  percentile,
  statsLine,
  streamStats,
} from '../../../lib/vbd/stats.js'
import { checkTunables } from '../../../lib/vbd/tunables.js'

/** What the native side would have counted. */
function histogram(values: readonly number[]): HistogramCounters {
  const buckets: number[] = []
  for (const value of values) {
    const bucket = bucketOf(value)
    while (buckets.length <= bucket) buckets.push(0)
    buckets[bucket]!++
  }
  return {
    count: values.length,
    sum: values.reduce((sum, value) => sum + value, 0),
    min: values.length > 0 ? Math.min(...values) : 0,
    max: values.length > 0 ? Math.max(...values) : 0,
    buckets,
  }
}

const value = fc.oneof(fc.nat(100), fc.nat(10_000_000), fc.nat(2 ** 31 - 1))
const values = fc.array(value, { minLength: 1, maxLength: 300 })

describe('buckets', () => {
  it('are those of the formula: 16 per power of two', () => {
    for (const v of [0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 1000, 4095, 4096, 2 ** 30, 2 ** 40]) {
      const e = Math.floor(Math.log2(v))
      const formula = v < 16 ? v : (e - 3) * 16 + Number((BigInt(v) >> BigInt(e - 4)) & 15n)
      expect(bucketOf(v), String(v)).toBe(formula)
    }
  })

  it('hold their values, without gaps', () => {
    fc.assert(
      fc.property(fc.maxSafeNat(), (v) => {
        const bucket = bucketOf(v)
        expect(bucketStart(bucket)).toBeLessThanOrEqual(v)
        expect(bucketStart(bucket + 1)).toBeGreaterThan(v)
      }),
    )
    for (let bucket = 0; bucket < 800; bucket++) expect(bucketOf(bucketStart(bucket))).toBe(bucket)
  })
})

describe('percentile', () => {
  it('is near the true one: a sixteenth, or one', () => {
    fc.assert(
      fc.property(values, fc.double({ min: 0, max: 1, noNaN: true }), (list, share) => {
        const sorted = [...list].sort((a, b) => a - b)
        const exact = sorted[Math.max(1, Math.ceil(share * list.length)) - 1]!
        const found = percentile(histogram(list), share)
        expect(Math.abs(found - exact)).toBeLessThanOrEqual(Math.max(1, exact / 16))
      }),
    )
  })

  it('does not fall as the share rises, and stays between least and most', () => {
    fc.assert(
      fc.property(values, (list) => {
        const h = histogram(list)
        const at = [0, 0.1, 0.5, 0.9, 0.99, 0.999, 1].map((share) => percentile(h, share))
        expect(at).toEqual([...at].sort((a, b) => a - b))
        expect(at[0]).toBeGreaterThanOrEqual(h.min)
        expect(at.at(-1)).toBe(h.max)
      }),
    )
    expect(percentile(histogram([]), 0.5)).toBe(0)
  })

  it('of an interval is that of its own samples', () => {
    fc.assert(
      fc.property(values, values, (before, later) => {
        const since = histogramSince(histogram([...before, ...later]), histogram(before))
        const own = histogram(later)
        expect(since.count).toBe(own.count)
        expect(since.sum).toBe(own.sum)
        for (const share of [0.5, 0.99]) {
          const exact = percentile(own, share)
          expect(Math.abs(percentile(since, share) - exact)).toBeLessThanOrEqual(
            Math.max(1, exact / 16),
          )
        }
      }),
    )
  })

  it('an interval over a restart of the counters, or with nothing in it', () => {
    const young = histogram([5])
    expect(histogramSince(young, histogram([1, 2, 3]))).toBe(young)
    expect(histogramSince(young, young).count).toBe(0)
  })
})

function counters(reads: number[], more: Partial<VbdCounters> = {}): VbdCounters {
  const read = {
    requests: reads.length,
    sectors: reads.length * 8,
    bytes: reads.length * 4096,
    errors: 0,
    latencyNs: histogram(reads),
  }
  return { ...EMPTY_COUNTERS, read, ...more }
}

describe('makeStats', () => {
  it('rates and latencies are about the interval, totals about all', () => {
    const before = { counters: counters([1000, 1000]), time: 1000 }
    const after = { counters: counters([1000, 1000, 5000, 5000, 5000, 5000]), time: 1500 }
    const { read, intervalMs } = makeStats('1:xvda', true, before, after)
    expect(intervalMs).toBe(500)
    expect(read).toMatchObject({ requests: 6, iops: 8, bytesPerSecond: 8 * 4096 })
    expect(read.latency.count).toBe(4)
    expect(read.latency.mean).toBe(5000)
    expect(Math.abs(read.latency.p50 - 5000)).toBeLessThan(320)
  })

  it('a line as blkback has it', () => {
    const now = counters([1000], {
      outOfRequests: 3,
      persistentGrants: 7,
      persistentGrantsCap: 1056,
    })
    const stats = makeStats(
      '1:xvda',
      true,
      { counters: EMPTY_COUNTERS, time: 0 },
      { counters: now, time: 1000 },
    )
    expect(statsLine(stats, EMPTY_COUNTERS)).toMatch(
      /^1:xvda: oo {4}3 \| rd {4}1 \| wr {4}0 \| f {4}0 \| ds {4}0 \| pg: {4}7\/1056 \| p99 rd 1µs wr 0ns$/,
    )
  })
})

describe('streamStats', () => {
  function source(read: () => VbdCounters) {
    const closed = new AbortController()
    return {
      closed,
      vbd: '1:xvda',
      read: () => ({ counters: read(), time: Date.now() }),
      connected: () => true,
    }
  }

  it('a slow reader gets the latest, once', async () => {
    let reads: number[] = []
    const from = source(() => counters(reads))
    const stream = streamStats({ ...from, closed: from.closed.signal }, { every: 10 })
    reads = [1]
    expect((await stream.next()).value?.read.requests).toBe(1)
    // Several intervals pass while nobody asks.
    await new Promise((resolve) => setTimeout(resolve, 60))
    reads = [1, 2, 3]
    const late = await stream.next()
    expect(late.value?.read.requests).toBe(3)
    expect(late.value?.intervalMs).toBeGreaterThanOrEqual(50)
    expect(late.value?.read.latency.count).toBe(2)
    from.closed.abort()
    expect((await stream.next()).done).toBe(true)
  })

  it('ends with its signal, at once', async () => {
    const from = source(() => EMPTY_COUNTERS)
    const abort = new AbortController()
    const stream = streamStats(
      { ...from, closed: from.closed.signal },
      { every: '1h', signal: abort.signal },
    )
    const next = stream.next()
    abort.abort()
    expect((await next).done).toBe(true)
  })
})

describe('checkTunables', () => {
  it('leaves out what is undefined', () => {
    expect(checkTunables({ pollUs: 0, maxBufferPages: undefined })).toEqual({ pollUs: 0 })
  })

  it.each<Record<string, unknown>>([
    { pollUs: -1 },
    { pollUs: 0.5 },
    { pollUs: '5' },
    { pollUs: true },
    { maxInFlightBytes: 4096 },
    { maxPersistentGrants: 1_000_001 },
    { logStats: -1 },
    { logStats: 'yes' },
    { __proto__x: 1 },
    { toString: 1 },
  ])('%j is refused', (tunables) => {
    expect(() => checkTunables(tunables)).toThrow(
      expect.objectContaining({ code: 'ERR_VBD_ARGUMENT' }),
    )
  })
})
