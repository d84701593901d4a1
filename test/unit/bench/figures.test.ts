/** Figures: order statistics against a sorted list, ratios by round, fairness between its ends. */
import fc from 'fast-check'
import { expect, it } from 'vitest'
import { fairness, figureOf, quantile, ratioOf } from '../../../lib/bench/figures.js'

const positive = fc.double({ min: 1e-3, max: 1e9, noNaN: true })
const some = fc.array(positive, { minLength: 1, maxLength: 40 })

it('a quantile lies between neighbours of the sorted values, and its ends are theirs', () => {
  fc.assert(
    fc.property(some, fc.double({ min: 0, max: 1, noNaN: true }), (values, share) => {
      const sorted = values.toSorted((a, b) => a - b)
      const value = quantile(values, share)
      const at = (sorted.length - 1) * share
      expect(value).toBeGreaterThanOrEqual(sorted[Math.floor(at)]! * (1 - 1e-9))
      expect(value).toBeLessThanOrEqual(sorted[Math.ceil(at)]! * (1 + 1e-9))
      expect(quantile(values, 0)).toBe(sorted[0])
      expect(quantile(values, 1)).toBe(sorted.at(-1))
    }),
  )
  expect(quantile([3, 1, 2], 0.5)).toBe(2)
  expect(quantile([1, 2, 3, 4], 0.5)).toBe(2.5)
})

it('a figure is the median between its tenth and ninetieth percentiles', () => {
  expect(figureOf([5, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11])).toEqual({
    median: 6,
    p10: 2,
    p90: 10,
    rounds: 11,
  })
})

it('what disturbs both sides of a round goes out of the ratio', () => {
  fc.assert(
    fc.property(some, positive, (disturbance, ratio) => {
      const figure = ratioOf(
        disturbance.map((speed) => speed * ratio),
        disturbance,
      )
      expect(figure.median / ratio).toBeCloseTo(1, 9)
      expect(figure.p90 / figure.p10).toBeCloseTo(1, 9)
    }),
  )
})

it('fairness is 1 among equals and 1/n where one has everything', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 64 }), positive, (count, share) => {
      expect(fairness(Array(count).fill(share))).toBeCloseTo(1, 9)
      expect(fairness([share, ...Array(count - 1).fill(0)])).toBeCloseTo(1 / count, 9)
    }),
  )
  fc.assert(
    fc.property(some, (shares) => {
      expect(fairness(shares)).toBeLessThanOrEqual(1 + 1e-9)
      expect(fairness(shares)).toBeGreaterThanOrEqual(1 / shares.length - 1e-9)
    }),
  )
})
