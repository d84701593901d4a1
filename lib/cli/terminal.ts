/**
 * Terminal: all that a command prints. For people: lines on stdout, colour only on a terminal. For
 * programs (--json): one JSON document, or JSON lines where a command goes on. Errors are one line
 * and a remedy on stderr, never a stack trace (VBDKIT_DEBUG=1 adds it); with --json they are also
 * the last line of stdout.
 */
import { inspect } from 'node:util'
import type { VbdError } from '../errors.js'

export interface Stream {
  write(text: string): unknown
  readonly isTTY?: boolean
  readonly columns?: number
}

type Style = 'bold' | 'dim' | 'red' | 'green' | 'yellow' | 'cyan'

/** Prints in one of the two ways; one per process. */
export class Terminal {
  readonly out: Stream
  readonly err: Stream
  json = false

  constructor(out: Stream = process.stdout, err: Stream = process.stderr) {
    this.out = out
    this.err = err
  }

  /** Whether a moving progress bar makes sense. */
  get interactive(): boolean {
    return !this.json && this.out.isTTY === true
  }

  get columns(): number {
    return this.out.columns ?? 100
  }

  /** A line for people only. */
  line(text = ''): void {
    if (!this.json) this.out.write(`${text}\n`)
  }

  /** A result: `human` for people (left out when undefined), `value` for programs. */
  result(value: unknown, human?: string): void {
    if (this.json) this.out.write(`${JSON.stringify(value)}\n`)
    else if (human !== undefined) this.out.write(human.endsWith('\n') ? human : `${human}\n`)
  }

  /** Something that happened: a line for people, a JSON line `{event, time, ...fields}` for programs. */
  event(name: string, fields: Record<string, unknown>, human: string | undefined): void {
    this.result({ event: name, time: new Date().toISOString(), ...fields }, human)
  }

  /** Advice and complaints, for people, on stderr. */
  warn(text: string): void {
    this.err.write(`vbdkit: ${oneLine(text)}\n`)
  }

  error(error: VbdError): void {
    this.warn(error.message)
    if (error.remedy !== undefined) this.warn(error.remedy)
    if (process.env.VBDKIT_DEBUG === '1') this.err.write(`${inspect(error)}\n`)
    if (this.json) this.result(error.toJSON())
  }

  style(style: Style, text: string): string {
    if (this.out.isTTY !== true || this.json || process.env.NO_COLOR) return text
    const code = { bold: 1, dim: 2, red: 31, green: 32, yellow: 33, cyan: 36 }[style]
    return `\u001b[${code}m${text}\u001b[0m`
  }
}

/** What others wrote (a guest, a file name) may not break out of its line, nor drive the terminal. */
export function oneLine(text: string): string {
  return text.replace(/[\u0000-\u001f\u007f-\u009f]+/g, ' ').trim()
}
