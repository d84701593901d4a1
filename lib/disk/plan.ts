/**
 * Plan: which part of a disk runs where. The longest chain from the storage outwards that C++ knows runs there, on the
 * reactors or on a client's thread; the first stage that is a script takes the rest, for everything above it is reached
 * through it. Pure.
 */
import type { DiskSpec } from './spec.js'
import { partsOf } from './spec.js'

/** `native`: in C++. `script`: functions in this thread. `thread`: functions on a thread of their own. */
export type RunsIn = 'native' | 'script' | 'thread'

/** One stage, and those directly below it. */
export interface PlannedStage {
  /** `file`, `throttle`; a script's own name. */
  readonly name: string
  readonly runsIn: RunsIn
  readonly below: readonly PlannedStage[]
}

/** The plan of a disk. */
export function planOf(spec: DiskSpec): PlannedStage {
  const below = partsOf(spec).map(planOf)
  if (spec.driver === 'script') {
    return { name: spec.name, runsIn: 'module' in spec.source ? 'thread' : 'script', below }
  }
  if (spec.driver === 'script-filter') return { name: spec.name, runsIn: 'script', below }
  const scripted = below.some(({ runsIn }) => runsIn !== 'native')
  return { name: spec.driver, runsIn: scripted ? 'script' : 'native', below }
}

/** The chain in one line, the storage first: `file → throttle → upper (script)`. */
export function describePlan({ name, runsIn, below }: PlannedStage): string {
  const where = { native: '', script: ' (script)', thread: ' (own thread)' }[runsIn]
  const own = `${name}${where}`
  return below.length === 0 ? own : `${below.map(describePlan).join(' + ')} → ${own}`
}
