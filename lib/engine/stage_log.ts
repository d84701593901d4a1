/**
 * StageLog: writes what `log` stages of an open disk have kept to their files, ten times a second and at the end. The
 * data path only fills a ring; this takes from it. Owned by the engine's disk.
 */
import { closeSync, openSync, writeSync } from 'node:fs'
import { getSystemErrorName } from 'node:util'
import { VbdError } from '../errors.js'
import type { NativeDisk } from './addon.js'

const EVERY_MS = 100
const OPERATIONS = ['read', 'write', 'flush', 'discard', 'discard']
/** Numbers of a record; see `NativeDisk.takeRecords`. */
const FIELDS = 7

/** One log file, from one stage of one disk. */
export class StageLog {
  readonly #disk: NativeDisk
  readonly #stage: number
  readonly #fd: number
  readonly #timer: NodeJS.Timeout
  /** Wall clock of the monotonic clock's zero, in milliseconds. */
  readonly #epochMs = Date.now() - Number(process.hrtime.bigint()) / 1e6

  /** @throws ERR_VBD_BACKING when the file cannot be opened */
  constructor(disk: NativeDisk, stage: number, path: string) {
    this.#disk = disk
    this.#stage = stage
    try {
      this.#fd = openSync(path, 'a', 0o600)
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException
      throw new VbdError('ERR_VBD_BACKING', `the log ${path} cannot be written (${code})`, {
        path,
        remedy: 'check the path and its permissions',
        cause,
      })
    }
    this.#timer = setInterval(() => this.#drain(), EVERY_MS)
    this.#timer.unref()
  }

  /** Writes the rest. */
  close(): void {
    clearInterval(this.#timer)
    this.#drain()
    closeSync(this.#fd)
  }

  #drain(): void {
    const { records, lost } = this.#disk.takeRecords(this.#stage)
    const lines: string[] = []
    for (let at = 0; at < records.length; at += FIELDS) {
      lines.push(this.#line(records.subarray(at, at + FIELDS)))
    }
    if (lost > 0) lines.push(JSON.stringify({ lost }))
    if (lines.length === 0) return
    try {
      writeSync(this.#fd, `${lines.join('\n')}\n`)
    } catch {
      // A log that cannot be written (a full file system) stops nobody's disk.
    }
  }

  #line(record: Float64Array): string {
    const [started, latencyNs, op, offset, bytes, error, fua] = record as unknown as number[]
    return JSON.stringify({
      time: new Date(this.#epochMs + started! / 1e6).toISOString(),
      op: OPERATIONS[op!],
      offset,
      bytes,
      latencyNs,
      ...(fua === 1 ? { fua: true } : {}),
      ...(error === 0 ? {} : { error: getSystemErrorName(-error!) }),
    })
  }
}
