/** Waiting before another try. */
import { setTimeout as sleep } from 'node:timers/promises'

/**
 * Doubles from `firstMs` up to `mostMs`, with half of it left to chance so that competitors part ways.
 * @param attempt 0 for the first wait
 */
export function backoffMs(
  attempt: number,
  firstMs: number,
  mostMs: number,
  random = Math.random,
): number {
  const full = Math.min(mostMs, firstMs * 2 ** Math.min(attempt, 30))
  return full * (0.5 + random() / 2)
}

/** Resolves after `ms`, or at once when `signal` fires: the caller looks at the signal. */
export async function pause(ms: number, signal?: AbortSignal): Promise<void> {
  await sleep(ms, undefined, signal === undefined ? {} : { signal }).catch(() => {})
}
