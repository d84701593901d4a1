import fc from 'fast-check'
import { expect, it } from 'vitest'
import { mergeHistograms } from '../../../lib/testing/load.js'

/** A histogram of small values, one bucket each. */
function histogram(values: readonly number[]) {
  const buckets: number[] = []
  for (const value of values) {
    while (buckets.length <= value) buckets.push(0)
    buckets[value]!++
  }
  const count = values.length
  const sum = values.reduce((total, value) => total + value, 0)
  return {
    count,
    sum,
    min: count ? Math.min(...values) : 0,
    max: count ? Math.max(...values) : 0,
    buckets,
  }
}

it('the histogram of all is the same as all histograms merged', () => {
  fc.assert(
    fc.property(fc.array(fc.array(fc.nat(40))), (groups) => {
      expect(mergeHistograms(groups.map(histogram))).toEqual(histogram(groups.flat()))
    }),
  )
})
