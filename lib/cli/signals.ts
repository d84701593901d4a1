/**
 * Signals: Ctrl-C and SIGTERM ask a command to stop in order. A second one, or ten seconds, end it at once.
 */
import { constants } from 'node:os'
import { exitAtOnce } from '../engine/load_addon.js'
import type { Terminal } from './terminal.js'

/** How long an orderly stop may take. */
export const GRACE_MS = 10_000
/** One Ctrl-C may arrive twice: from the terminal, and passed on by npm. */
const SAME_MS = 1000

const STOP_SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

/** The exit code of a command that was interrupted (128 + SIGINT). */
export const EXIT_INTERRUPTED = 130

/**
 * Runs `body` with an AbortSignal that fires on the first SIGINT, SIGTERM or SIGHUP; its reason is the signal's name.
 * Resolves to what `body` resolves to, and to 130 instead of 0 after SIGINT.
 */
export async function stoppable(
  terminal: Terminal,
  body: (signal: AbortSignal) => Promise<number>,
): Promise<number> {
  const stop = new AbortController()
  let overdue: NodeJS.Timeout | undefined
  let firstMs = 0
  const onSignal = (name: NodeJS.Signals) => {
    if (stop.signal.aborted) {
      if (performance.now() - firstMs < SAME_MS) return
      terminal.warn(`${name} again: ending at once`)
      exitAtOnce(128 + constants.signals[name])
    }
    firstMs = performance.now()
    overdue = setTimeout(() => {
      terminal.warn(`did not stop within ${GRACE_MS / 1000} s of ${name}: ending at once`)
      exitAtOnce(1)
    }, GRACE_MS)
    overdue.unref()
    stop.abort(name)
  }
  for (const name of STOP_SIGNALS) process.on(name, onSignal)
  const tied = process.env.VBDKIT_STOP_ON_STDIN_END === '1'
  if (tied) {
    // Whoever started us holds the other end, and takes us with it when it dies.
    process.stdin.once('close', () => stop.abort('SIGTERM')).resume()
  }
  try {
    const code = await body(stop.signal)
    return code === 0 && stop.signal.reason === 'SIGINT' ? EXIT_INTERRUPTED : code
  } finally {
    clearTimeout(overdue)
    if (tied) process.stdin.destroy()
    for (const name of STOP_SIGNALS) process.off(name, onSignal)
  }
}

/** Resolves when the signal fires; at once when it has. */
export function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve()
    else signal.addEventListener('abort', () => resolve(), { once: true })
  })
}
