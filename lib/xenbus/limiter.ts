/**
 * Limiter: a guest may make us speak, but only so often. Pure but for its clock.
 */

/** Lines that one vbd may cause per minute. */
export const LINES_PER_MINUTE = 10

/** Allows `limit` events per sliding window of `windowMs`, and counts what it holds back. */
export class Limiter {
  readonly #limit: number
  readonly #windowMs: number
  readonly #now: () => number
  #times: number[] = []
  #suppressed = 0

  constructor(limit = LINES_PER_MINUTE, windowMs = 60_000, now: () => number = Date.now) {
    this.#limit = limit
    this.#windowMs = windowMs
    this.#now = now
  }

  /** The number of events held back since the last allowed one when this one may pass, else undefined. */
  allow(): number | undefined {
    const now = this.#now()
    this.#times = this.#times.filter((time) => now - time < this.#windowMs)
    if (this.#times.length >= this.#limit) {
      this.#suppressed++
      return undefined
    }
    this.#times.push(now)
    const suppressed = this.#suppressed
    this.#suppressed = 0
    return suppressed
  }
}

/** Text of unknown origin made fit for a terminal or a log: printable ASCII, at most 40 characters, quoted. */
export function printable(text: string): string {
  const shown = text.length > 40 ? `${text.slice(0, 37)}...` : text
  const escaped = Array.from(shown, (character) => {
    const code = character.charCodeAt(0)
    if (character === '\\' || character === "'") return `\\${character}`
    return code >= 32 && code < 127
      ? character
      : `\\x${(code & 0xff).toString(16).padStart(2, '0')}`
  })
  return `'${escaped.join('')}'`
}
