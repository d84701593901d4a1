/**
 * The ranges of what may be tuned, in one place for every entrance. Pure.
 */
import type { Tunables } from '../engine/engine.js'
import { VbdError } from '../errors.js'

interface Range {
  readonly least: number
  readonly most: number
  readonly unit: string
}

export const TUNABLE_RANGES: Readonly<Record<keyof Tunables, Range>> = {
  maxPersistentGrants: { least: 0, most: 1_000_000, unit: 'grants per ring' },
  persistentGrantIdleSeconds: { least: 0, most: 1_000_000, unit: 'seconds' },
  maxBufferPages: { least: 0, most: 16_777_216, unit: 'pages' },
  // One request of the largest size has to fit.
  maxInFlightBytes: { least: 1 << 20, most: 2 ** 40, unit: 'bytes' },
  pollUs: { least: 0, most: 1_000_000, unit: 'microseconds' },
}

/** A day. */
export const MAX_LOG_STATS_SECONDS = 86_400

const LOG_STATS: Range = { least: 0, most: MAX_LOG_STATS_SECONDS, unit: 'seconds' }

/** Those of them that are the engine's. */
export function engineTunables<T extends Tunables>(all: T & { logStats?: unknown }): Tunables {
  const { logStats: _logStats, ...tunables } = all
  return tunables
}

/**
 * The tunables without those that are undefined.
 *
 * @throws ERR_VBD_ARGUMENT naming the first that is unknown or out of range
 */
export function checkTunables<T extends object>(tunables: T): T {
  const checked: Record<string, unknown> = {}
  for (const [name, value] of Object.entries(tunables)) {
    if (value === undefined) continue
    if (name !== 'logStats' || typeof value !== 'boolean') check(name, value)
    checked[name] = value
  }
  return checked as T
}

function check(name: string, value: unknown): void {
  const range = rangeOf(name)
  if (range === undefined) {
    throw new VbdError('ERR_VBD_ARGUMENT', `there is no tunable '${name}'`, {
      remedy: `use one of ${Object.keys(TUNABLE_RANGES).join(', ')}, logStats`,
    })
  }
  const { least, most, unit } = range
  if (Number.isInteger(value) && Number(value) >= least && Number(value) <= most) return
  throw new VbdError('ERR_VBD_ARGUMENT', `${name} cannot be ${String(value)}`, {
    remedy: `give ${name} a whole number of ${unit}, ${least} to ${most}`,
  })
}

function rangeOf(name: string): Range | undefined {
  if (name === 'logStats') return LOG_STATS
  return Object.hasOwn(TUNABLE_RANGES, name) ? TUNABLE_RANGES[name as keyof Tunables] : undefined
}
