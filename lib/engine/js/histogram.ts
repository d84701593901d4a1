/**
 * Histogram: counts of values in log-linear buckets, 16 per power of two: the same buckets as the native engine's
 * (native/base/histogram.h), so that one can be compared with the other.
 *
 *   v < 16    bucket v
 *   else      e = floor(log2 v), bucket (e-3)*16 + ((v >> (e-4)) & 15)
 */
import type { HistogramCounters } from '../engine.js'

/** Greater values count as this one. */
const MAX_VALUE = 2 ** 40
const SUB_BUCKETS = 16
const BUCKETS = (40 - 3) * SUB_BUCKETS + 1

/** The bucket that counts `value`, 0 or more. */
function indexOf(value: number): number {
  if (value < SUB_BUCKETS) return value | 0
  if (value < 0x8000_0000) {
    const whole = value | 0
    const exponent = 31 - Math.clz32(whole)
    return (exponent - 3) * SUB_BUCKETS + ((whole >>> (exponent - 4)) & (SUB_BUCKETS - 1))
  }
  // What is cut off here is below the four bits that tell buckets apart.
  return indexOf(Math.floor(Math.min(value, MAX_VALUE) / 1024)) + 10 * SUB_BUCKETS
}

export class Histogram {
  readonly #buckets = new Float64Array(BUCKETS)
  #sum = 0
  #min = Number.POSITIVE_INFINITY
  #max = 0

  record(value: number): void {
    this.#buckets[indexOf(value)]!++
    this.#sum += value
    if (value < this.#min) this.#min = value
    if (value > this.#max) this.#max = value
  }

  /** Adds what `other` counted. */
  merge(other: Histogram): void {
    for (let i = 0; i < BUCKETS; i++) this.#buckets[i]! += other.#buckets[i]!
    this.#sum += other.#sum
    this.#min = Math.min(this.#min, other.#min)
    this.#max = Math.max(this.#max, other.#max)
  }

  counters(): HistogramCounters {
    const used = this.#buckets.findLastIndex((count) => count > 0) + 1
    const buckets = Array.from(this.#buckets.subarray(0, used))
    const count = buckets.reduce((total, samples) => total + samples, 0)
    return { count, sum: this.#sum, min: count === 0 ? 0 : this.#min, max: this.#max, buckets }
  }
}
