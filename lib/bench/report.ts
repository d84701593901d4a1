/**
 * Report: what a run of the benchmark says, as it stands in bench.json. Everything that is printed or drawn comes from
 * here, so that a stored report can be looked at again.
 */
import type { Figure } from './figures.js'
import type { SampleFigures } from './sample.js'

/** The groups of measurements, in the order in which they run. */
export const GROUPS = [
  'ring',
  'files',
  'guests',
  'latency',
  'peers',
  'micro',
  'engines',
  'scripts',
  'idle',
] as const
export type Group = (typeof GROUPS)[number]

export interface Machine {
  readonly cpu: string
  readonly processors: number
  /** Where the guests' side runs, and where the backend does. */
  readonly guestCpu: number
  readonly backendCpu: number
  readonly kernel: string
  readonly node: string
  readonly memoryBytes: number
  /** Processors that others kept busy just before and after the run, whichever was more. */
  readonly othersBusy: number
  /** Our processes had a higher priority than others. */
  readonly raisedPriority: boolean
  /** Peers and tools, as they name themselves. */
  readonly versions: Readonly<Record<string, string>>
}

/** One contender under one workload. */
export interface Row extends SampleFigures {
  readonly group: Group
  /** The workload, for people: `4 KiB random read, page cache`. */
  readonly workload: string
  /** Who: `vbdkit`, `fio io_uring`. */
  readonly series: string
  /** What a plot puts on its axis: depth, guests, segments. */
  readonly at: number
  readonly axis: 'depth' | 'guests' | 'segments' | 'entries' | 'rings'
  readonly bytesEach: number
  /** This row's throughput over that of `to`, round by round. */
  readonly ratio?: { readonly to: string; readonly figure: Figure }
  /** The same of the CPU time per operation. */
  readonly cpuRatio?: { readonly to: string; readonly figure: Figure }
}

export type Verdict = 'goal' | 'floor' | 'missed'

/** A figure that has a floor, below which we would not ship, and a goal. */
export interface Target {
  /** `W1` */
  readonly id: string
  readonly what: string
  /** What `figure` is over, or compared with. */
  readonly against: string
  readonly figure: Figure
  /** `×`, `µs`, `ns`, `%`, `KiB` */
  readonly unit: string
  /** Whether more is better, or less. */
  readonly better: 'more' | 'less'
  readonly floor?: number
  readonly goal?: number
  readonly verdict: Verdict
}

export interface Skipped {
  readonly what: string
  readonly why: string
  /** What to do to have it. */
  readonly remedy?: string | undefined
}

/** Data that went through the same binaries and was looked at, untimed. */
export interface Verified {
  readonly what: string
  readonly blocks: number
}

export interface Report {
  readonly vbdkit: string
  readonly startedAt: string
  readonly seconds: number
  /** Few, short rounds: good for seeing that all works, not for quoting. */
  readonly quick: boolean
  readonly groups: readonly Group[]
  readonly machine: Machine
  readonly rounds: number
  readonly roundMs: number
  readonly targets: readonly Target[]
  readonly rows: readonly Row[]
  readonly verified: readonly Verified[]
  readonly skipped: readonly Skipped[]
}

/** Which of floor and goal a figure reaches; without a floor the goal counts alone. */
export function verdictOf(target: Pick<Target, 'figure' | 'better' | 'floor' | 'goal'>): Verdict {
  const { figure, better, floor, goal } = target
  const reaches = (limit: number | undefined) =>
    limit !== undefined && (better === 'more' ? figure.median >= limit : figure.median <= limit)
  if (reaches(goal)) return 'goal'
  return reaches(floor) || floor === undefined ? 'floor' : 'missed'
}
