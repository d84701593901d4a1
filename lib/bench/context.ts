/**
 * Context: what every group of measurements gets, and the one way to measure: contenders in turn, round by round, after
 * a round that does not count.
 */
import { throwIfAborted, VbdError } from '../errors.js'
import { type Figure, ratioOf } from './figures.js'
import type { TestFiles } from './files.js'
import type { Processors } from './machine.js'
import { NativeContender } from './peers/native.js'
import {
  type Group,
  type Row,
  type Skipped,
  type Target,
  type Verified,
  verdictOf,
} from './report.js'
import { type Contender, cpuUs, nsEach, perSecond, type Sample, summarise } from './sample.js'
import type { World } from './world.js'

export interface Settings {
  readonly quick: boolean
  readonly rounds: number
  /** Length of one sample. */
  readonly roundMs: number
}

/** What groups leave behind. */
export interface Collected {
  readonly rows: Row[]
  readonly targets: Target[]
  readonly verified: Verified[]
  readonly skipped: Skipped[]
}

export interface Context extends Settings {
  readonly world: World
  readonly cpus: Processors
  readonly files: TestFiles
  readonly collected: Collected
  readonly signal: AbortSignal
  /** Says what is being measured. */
  note(what: string): void
}

/** One comparison: a workload and who takes part. */
export interface Comparison {
  readonly group: Group
  readonly workload: string
  readonly axis: Row['axis']
  readonly at: number
  readonly bytesEach: number
  readonly contenders: readonly Contender[]
  /** The series that the others' ratios are over. */
  readonly reference?: string
  /** Length of a sample where the usual one is too short; half of it does for a quick run. */
  readonly leastMs?: number
}

/** The samples of a comparison. */
export class Measured {
  readonly #samples: ReadonlyMap<string, readonly Sample[]>

  constructor(samples: ReadonlyMap<string, readonly Sample[]>) {
    this.#samples = samples
  }

  of(series: string): readonly Sample[] {
    return this.#samples.get(series) ?? []
  }

  /** Operations per second of one over those of another. */
  speed(series: string, over: string): Figure {
    return ratioOf(this.of(series).map(perSecond), this.of(over).map(perSecond))
  }

  /** CPU time per operation, in the same way. */
  cpu(series: string, over: string): Figure {
    return ratioOf(this.of(series).map(cpuUs), this.of(over).map(cpuUs))
  }
}

/** Measures the contenders in turn and leaves a row for each. */
export async function compare(context: Context, comparison: Comparison): Promise<Measured> {
  const { rounds, roundMs, signal, collected } = context
  const { contenders, reference, leastMs = 0 } = comparison
  const milliseconds = Math.max(roundMs, context.quick ? leastMs / 2 : leastMs)
  context.note(`${comparison.workload}, ${comparison.axis} ${comparison.at}`)
  const samples = new Map<string, Sample[]>()
  for (const { series } of contenders) samples.set(series, [])
  for (let round = -1; round < rounds; round++) {
    for (const contender of contenders) {
      throwIfAborted(signal)
      if (round < 0 && contender.startsAnew) continue
      // Round -1 maps grants, fills caches and wakes processors.
      const sample = await measureSome(contender, round < 0 ? milliseconds / 2 : milliseconds)
      if (round >= 0) samples.get(contender.series)!.push(sample)
    }
  }
  const measured = new Measured(samples)
  for (const { series } of contenders) {
    const compared = reference !== undefined && series !== reference
    const { group, workload, axis, at, bytesEach } = comparison
    collected.rows.push({
      group,
      workload,
      series,
      axis,
      at,
      bytesEach,
      ...summarise(measured.of(series)),
      ...(compared && {
        ratio: { to: reference, figure: measured.speed(series, reference) },
        cpuRatio: { to: reference, figure: measured.cpu(series, reference) },
      }),
    })
  }
  return measured
}

const TRIES = 5

/** A processor that others hold may let nothing happen in a short round: then a longer one is tried. */
async function measureSome(contender: Contender, milliseconds: number): Promise<Sample> {
  for (let i = 0; i < TRIES; i++) {
    const sample = await contender.measure(milliseconds * 2 ** i)
    if (sample.operations > 0) return sample
  }
  throw new VbdError('ERR_VBD_TIMEOUT', `${contender.series} did nothing`, {
    remedy: 'run it when less else runs on this machine',
  })
}

/** Leaves a target with its verdict. */
export function settle(context: Context, target: Omit<Target, 'verdict'>): void {
  context.collected.targets.push({ ...target, verdict: verdictOf(target) })
}

/** Leaves word of what was not measured. */
export function skip(context: Context, what: string, why: string, remedy?: string): void {
  context.collected.skipped.push({ what, why, ...(remedy !== undefined && { remedy }) })
}

/** A native contender to be started: its series, the name of the measurement, and what it is told. */
export type NativeWish = readonly [
  series: string,
  name: string,
  values: Readonly<Record<string, string | number>>,
]

/** Starts native contenders, runs `body`, and stops them whatever happens. */
export async function withNative<T>(
  wanted: readonly NativeWish[],
  body: (...contenders: NativeContender[]) => Promise<T>,
): Promise<T> {
  const started: NativeContender[] = []
  try {
    for (const [series, name, values] of wanted) {
      started.push(await NativeContender.start(series, name, values))
    }
    return await body(...started)
  } finally {
    for (const contender of started) await contender.stop()
  }
}

/** Nanoseconds that each operation took, by round. */
export function nanoseconds(samples: readonly Sample[]): number[] {
  return samples.map(nsEach)
}
