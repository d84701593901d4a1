/**
 * Replay: a traced load once more, on another disk or another engine. What a request waited for when it was traced it
 * waits for again: one that began after the answer of another is sent after the answer of that one, so that two
 * replays of one trace write the same bytes, however fast each is. Traces have no data: what is written follows from
 * the place and the number of the request.
 */

import type { TracedRequest } from '../engine/traced.js'
import { VbdError } from '../errors.js'
import type { DiskIo } from './disk_io.js'

export interface ReplayOptions {
  /** As fast as the disk allows (`max`, the default), or with the trace's own pauses, so many times as fast. */
  readonly speed?: 'max' | number
  readonly signal?: AbortSignal
  readonly onProgress?: (requests: number) => void
}

/** What a replay does to a disk. */
export type ReplayTarget = Pick<DiskIo, 'read' | 'write' | 'flush' | 'discard' | 'has'> & {
  readonly properties: { readonly sizeBytes: number; readonly readOnly: boolean }
}

export type ReplayedOperation = Exclude<TracedRequest['operation'], 'other'>

/** Microseconds of each request that was answered, as traced and as replayed. */
export interface ReplayedLatencies {
  readonly traced: number[]
  readonly replayed: number[]
}

export interface ReplayResult {
  /** Sent and answered. */
  readonly requests: number
  readonly bytes: number
  /** Answered OK in the trace, and not now. */
  readonly errors: number
  /** Not sent: refused when traced, beyond the end of this disk, or nothing that it offers. */
  readonly skipped: number
  readonly elapsedMs: number
  readonly latencies: ReadonlyMap<ReplayedOperation, ReplayedLatencies>
}

/** Requests whose order of beginning is looked for at a time; the trace is in the order of answers. */
const WINDOW = 4096

interface UnderWay {
  readonly endMs: number
  readonly done: Promise<void>
}

/**
 * Replays a trace.
 *
 * @throws ERR_VBD_ABORTED when the signal fires; what the trace's reader throws
 */
export async function replay(
  disk: ReplayTarget,
  requests: AsyncIterable<TracedRequest>,
  options: ReplayOptions = {},
): Promise<ReplayResult> {
  const run = new Run(disk, options)
  const window: TracedRequest[] = []
  for await (const request of requests) {
    insert(window, request)
    if (window.length > WINDOW) await run.start(window.shift()!)
  }
  for (const request of window) await run.start(request)
  return run.finish()
}

/** Sorted by beginning; nearly so already. */
function insert(window: TracedRequest[], request: TracedRequest): void {
  let at = window.length
  while (at > 0 && window[at - 1]!.timeMs > request.timeMs) at--
  window.splice(at, 0, request)
}

class Run {
  readonly #disk: ReplayTarget
  readonly #o: ReplayOptions
  readonly #latencies = new Map<ReplayedOperation, ReplayedLatencies>()
  readonly #startedMs = performance.now()
  #underWay: UnderWay[] = []
  #firstMs: number | undefined
  #number = 0
  #requests = 0
  #bytes = 0
  #errors = 0
  #skipped = 0

  constructor(disk: ReplayTarget, options: ReplayOptions) {
    this.#disk = disk
    this.#o = options
  }

  async start(request: TracedRequest): Promise<void> {
    if (this.#o.signal?.aborted) throw new VbdError('ERR_VBD_ABORTED', 'the replay was interrupted')
    const number = this.#number++
    const act = this.#action(request, number)
    if (act === undefined) {
      this.#skipped++
      return
    }
    await this.#answeredBefore(request.timeMs)
    await this.#due(request.timeMs)
    const endMs = request.timeMs + request.latencyUs / 1000
    this.#underWay.push({ endMs, done: this.#perform(request, act) })
  }

  async finish(): Promise<ReplayResult> {
    await Promise.all(this.#underWay.map(({ done }) => done))
    return {
      requests: this.#requests,
      bytes: this.#bytes,
      errors: this.#errors,
      skipped: this.#skipped,
      elapsedMs: performance.now() - this.#startedMs,
      latencies: this.#latencies,
    }
  }

  /** Everything that had been answered when the request began is answered now. */
  async #answeredBefore(timeMs: number): Promise<void> {
    const waits = this.#underWay.filter(({ endMs }) => endMs <= timeMs)
    if (waits.length === 0) return
    this.#underWay = this.#underWay.filter(({ endMs }) => endMs > timeMs)
    await Promise.all(waits.map(({ done }) => done))
  }

  async #due(timeMs: number): Promise<void> {
    this.#firstMs ??= timeMs
    const { speed = 'max' } = this.#o
    if (speed === 'max') return
    const dueMs = this.#startedMs + (timeMs - this.#firstMs) / speed
    const leftMs = dueMs - performance.now()
    if (leftMs > 1) await new Promise((resolve) => setTimeout(resolve, leftMs))
  }

  /** Undefined: cannot be sent. */
  #action(request: TracedRequest, number: number): (() => Promise<unknown>) | undefined {
    const { operation, offset, length, status } = request
    const disk = this.#disk
    const { sizeBytes, readOnly } = disk.properties
    if (status !== 'ok' || offset + length > sizeBytes) return undefined
    if (readOnly && operation !== 'read') return undefined
    switch (operation) {
      case 'read':
        return length > 0 ? () => disk.read(offset, length) : undefined
      case 'write':
        return length > 0 ? () => disk.write(offset, content(number, length)) : undefined
      case 'barrier':
        return length > 0
          ? () => disk.write(offset, content(number, length), { fua: true })
          : () => disk.flush()
      case 'flush':
        return () => disk.flush()
      case 'discard':
        return disk.has('discard') ? () => disk.discard(offset, length) : undefined
      default:
        return undefined
    }
  }

  async #perform(request: TracedRequest, act: () => Promise<unknown>): Promise<void> {
    const began = performance.now()
    try {
      await act()
    } catch {
      this.#errors++
      return
    }
    const operation = request.operation as ReplayedOperation
    let latencies = this.#latencies.get(operation)
    if (latencies === undefined) {
      latencies = { traced: [], replayed: [] }
      this.#latencies.set(operation, latencies)
    }
    latencies.traced.push(request.latencyUs)
    latencies.replayed.push((performance.now() - began) * 1000)
    this.#requests++
    if (operation !== 'discard') this.#bytes += request.length
    this.#o.onProgress?.(this.#requests)
  }
}

function content(number: number, length: number): Buffer {
  const data = Buffer.allocUnsafe(length)
  for (let at = 0; at + 8 <= length; at += 8) {
    data.writeUInt32LE(number >>> 0, at)
    data.writeUInt32LE(at, at + 4)
  }
  return data
}
