/**
 * Trace: every request that a guest had answered, as it happened. The engine records while somebody listens; a Tracer
 * takes what it recorded at short intervals and gives it to every listener. A listener that is slow loses the oldest,
 * and is told how many. Nothing here is on the data path.
 */
import { TRACE_FIELDS, type TraceBatch } from '../engine/engine.js'
import type { TracedBatch, TracedRequest } from '../engine/traced.js'
import { VbdError } from '../errors.js'
import { SECTOR_BYTES } from './advertise.js'

export interface TraceOptions {
  /** Ends the iteration when it fires. */
  readonly signal?: AbortSignal
  /**
   * Told how many requests are missing from here on: they came faster than they were taken. Without it that is an
   * error.
   */
  readonly onDropped?: (requests: number) => void
}

/** Milliseconds between two looks; the engine keeps 16,384 requests a ring. */
const LOOK_MS = 10
/** Requests that wait for one listener, at most. */
const MAX_WAITING = 262_144

const FIELDS = TRACE_FIELDS.length
const OPERATIONS: readonly TracedRequest['operation'][] = [
  'read',
  'write',
  'barrier',
  'flush',
  'other',
  'discard',
]

/** What a Tracer traces. */
export interface TraceSource {
  trace(on: boolean): void
  takeTrace(): TraceBatch
}

interface TraceListener {
  readonly waiting: TracedRequest[]
  dropped: number
  wake(): void
}

/** Gives the requests of one vbd to whoever listens; costs nothing while nobody does. */
export class Tracer {
  readonly #source: () => TraceSource | undefined
  readonly #listeners = new Set<TraceListener>()
  #timer: NodeJS.Timeout | undefined
  #traced: TraceSource | undefined
  #dropped = 0
  /** Epoch milliseconds less monotonic milliseconds. */
  #epochMs = 0

  /** @param source the engine's vbd, while there is one */
  constructor(source: () => TraceSource | undefined) {
    this.#source = source
  }

  /** The requests answered from the first `next` on, until the signal fires or the vbd is closed. */
  async *listen(options: TraceOptions, closed: AbortSignal): AsyncGenerator<TracedRequest> {
    for await (const { requests, dropped } of this.batches(options.signal, closed)) {
      if (dropped > 0) tellDropped(dropped, options)
      yield* requests
    }
  }

  /** The same, as they come from the engine. */
  async *batches(
    signal: AbortSignal | undefined,
    closed: AbortSignal,
  ): AsyncGenerator<TracedBatch> {
    const listener: TraceListener = { waiting: [], dropped: 0, wake: () => {} }
    const signals = signal === undefined ? [closed] : [closed, signal]
    const onEnd = () => listener.wake()
    for (const each of signals) each.addEventListener('abort', onEnd)
    this.#add(listener)
    try {
      while (!signals.some(({ aborted }) => aborted)) {
        const { dropped } = listener
        const requests = listener.waiting.splice(0)
        listener.dropped = 0
        if (requests.length > 0 || dropped > 0) yield { requests, dropped }
        else await woken(listener)
      }
    } finally {
      for (const each of signals) each.removeEventListener('abort', onEnd)
      this.#remove(listener)
    }
  }

  #add(listener: TraceListener): void {
    this.#listeners.add(listener)
    if (this.#timer !== undefined) return
    this.#epochMs = Date.now() - Number(process.hrtime.bigint()) / 1e6
    this.#look()
    this.#timer = setInterval(() => this.#look(), LOOK_MS)
  }

  #remove(listener: TraceListener): void {
    this.#listeners.delete(listener)
    if (this.#listeners.size > 0) return
    clearInterval(this.#timer)
    this.#timer = undefined
    this.#traced?.trace(false)
    this.#traced = undefined
  }

  #look(): void {
    const source = this.#source()
    if (source !== this.#traced) this.#follow(source)
    if (source === undefined) return
    const { records, dropped } = source.takeTrace()
    const lost = dropped - this.#dropped
    this.#dropped = dropped
    if (records.length === 0 && lost === 0) return
    const requests = this.#decode(records)
    for (const listener of this.#listeners) deliver(listener, requests, lost)
  }

  /** What an engine's vbd recorded before we listened is not ours. */
  #follow(source: TraceSource | undefined): void {
    this.#traced?.trace(false)
    this.#traced = source
    if (source === undefined) return
    for (;;) {
      const { records, dropped } = source.takeTrace()
      this.#dropped = dropped
      if (records.length === 0) break
    }
    source.trace(true)
  }

  #decode(records: Float64Array): TracedRequest[] {
    const requests: TracedRequest[] = []
    for (let at = 0; at < records.length; at += FIELDS) {
      const [startedNs, queue, operation, status, sector, sectors, segments, latencyNs] =
        records.subarray(at, at + FIELDS) as unknown as [
          number,
          number,
          number,
          number,
          number,
          number,
          number,
          number,
        ]
      requests.push({
        timeMs: this.#epochMs + startedNs / 1e6,
        queue,
        operation: OPERATIONS[operation] ?? 'other',
        offset: sector * SECTOR_BYTES,
        length: sectors * SECTOR_BYTES,
        segments,
        status: status === 0 ? 'ok' : status === -2 ? 'unsupported' : 'error',
        latencyUs: latencyNs / 1000,
      })
    }
    // By queue so far.
    return requests.sort((a, b) => a.timeMs + a.latencyUs / 1000 - b.timeMs - b.latencyUs / 1000)
  }
}

function deliver(listener: TraceListener, requests: readonly TracedRequest[], lost: number): void {
  const { waiting } = listener
  for (const request of requests) waiting.push(request)
  const over = Math.max(0, waiting.length - MAX_WAITING)
  if (over > 0) waiting.splice(0, over)
  listener.dropped += lost + over
  listener.wake()
}

function tellDropped(dropped: number, { onDropped }: TraceOptions): void {
  if (onDropped === undefined) {
    throw new VbdError('ERR_VBD_STATE', `${dropped} requests came faster than they were taken`, {
      remedy: 'take them faster, or say with onDropped that some may be missing',
    })
  }
  onDropped(dropped)
}

function woken(listener: TraceListener): Promise<void> {
  return new Promise((resolve) => {
    listener.wake = resolve
  })
}
