/**
 * Figures: what becomes of many samples: a median with its tenth and ninetieth percentiles, ratios within one round,
 * and fairness. Pure.
 */

/** One quantity over all rounds. */
export interface Figure {
  readonly median: number
  readonly p10: number
  readonly p90: number
  /** Rounds it was measured in. */
  readonly rounds: number
}

/** The value that a share (0..1) of `values` does not exceed, interpolated between neighbours; NaN for none. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  const at = (sorted.length - 1) * share
  const below = sorted[Math.floor(at)] ?? Number.NaN
  const above = sorted[Math.ceil(at)] ?? Number.NaN
  return below + (above - below) * (at - Math.floor(at))
}

/** Of at least one value. */
export function figureOf(values: readonly number[]): Figure {
  return {
    median: quantile(values, 0.5),
    p10: quantile(values, 0.1),
    p90: quantile(values, 0.9),
    rounds: values.length,
  }
}

/** Pairs the rounds: what disturbed one round disturbs both of its sides, and goes out of the ratio. */
export function ratioOf(measured: readonly number[], reference: readonly number[]): Figure {
  const rounds = Math.min(measured.length, reference.length)
  const ratios: number[] = []
  for (let i = 0; i < rounds; i++) ratios.push(measured[i]! / reference[i]!)
  return figureOf(ratios)
}

/** Jain's index of fairness: 1 where all got the same, 1/n where one got everything. */
export function fairness(shares: readonly number[]): number {
  const sum = shares.reduce((total, share) => total + share, 0)
  const squares = shares.reduce((total, share) => total + share * share, 0)
  return squares === 0 ? 1 : (sum * sum) / (shares.length * squares)
}
