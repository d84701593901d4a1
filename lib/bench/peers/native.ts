/**
 * vbdkit-bench, the native program that measures this machine's limits, the parts of the engine, and vhost-user
 * servers: one process for each thing, which sets up once and answers a sample for each line.
 */
import { type ChildProcessByStdio, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { createInterface } from 'node:readline'
import type { Readable, Writable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import type { HistogramCounters } from '../../engine/engine.js'
import { VbdError } from '../../errors.js'
import { type Contender, latenciesOf, type Sample } from '../sample.js'

/** What to do where the program is missing. */
export const BENCH_REMEDY = 'build it: npm run bench does, in a checkout'

/** Where scripts/bench.sh builds it. Two places: this file runs from lib/ and from dist/lib/. */
const PLACES = ['../../../build/bench/vbdkit-bench', '../../../../build/bench/vbdkit-bench']

/** Where the program is; undefined where it was not built. */
export function nativeProgram(): string | undefined {
  const paths = PLACES.map((place) => fileURLToPath(new URL(place, import.meta.url)))
  return paths.find((path) => existsSync(path))
}

interface Line {
  readonly ready?: true
  readonly operations: number
  readonly errors: number
  readonly elapsedNs: number
  readonly cpuNs: number
  readonly latencyNs: HistogramCounters
}

/** One running measurement; stop it when done. */
export class NativeContender implements Contender {
  readonly series: string
  readonly #process: ChildProcessByStdio<Writable, Readable, Readable>
  readonly #lines: AsyncIterator<string>
  readonly #exited: Promise<unknown>
  #complaint = ''

  /**
   * Starts it and waits until it has set up.
   *
   * @param values `key=value` for the program
   * @throws ERR_VBD_STATE with what it complained about
   */
  static async start(
    series: string,
    name: string,
    values: Readonly<Record<string, string | number>>,
  ): Promise<NativeContender> {
    const contender = new NativeContender(series, name, values)
    await contender.#next()
    return contender
  }

  private constructor(series: string, name: string, values: Readonly<Record<string, unknown>>) {
    this.series = series
    const words = Object.entries(values).map(([key, value]) => `${key}=${value}`)
    this.#process = spawn(nativeProgram() ?? 'vbdkit-bench', [name, ...words], { stdio: 'pipe' })
    this.#process.stdin.on('error', () => {})
    this.#process.stderr.on('data', (chunk: Buffer) => {
      this.#complaint = (this.#complaint + chunk.toString()).slice(-4096)
    })
    this.#exited = new Promise((resolve) => {
      this.#process.once('error', resolve)
      this.#process.once('close', resolve)
    })
    this.#lines = createInterface({ input: this.#process.stdout })[Symbol.asyncIterator]()
  }

  async measure(milliseconds: number): Promise<Sample> {
    this.#process.stdin.write(`${Math.max(1, Math.round(milliseconds))}\n`)
    const { latencyNs, ...sample } = await this.#next()
    return { ...sample, latencyNs: latenciesOf(latencyNs) }
  }

  /** Idempotent, never rejects. */
  async stop(): Promise<void> {
    this.#process.stdin.end()
    await this.#exited
  }

  async #next(): Promise<Line> {
    const { value, done } = await this.#lines.next()
    if (!done) return JSON.parse(value) as Line
    await this.#exited
    const said = this.#complaint.trim().split('\n')[0] || 'it ended early'
    throw new VbdError('ERR_VBD_STATE', said)
  }
}
