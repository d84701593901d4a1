/**
 * `readAhead` as a script, for chains in which a script lies below it: the same as native/stages/read_ahead.h.
 */
import type { ForwardedIo, MakeFilter, OpenDisk } from './script.js'

/** What `readAhead` is told. */
export interface ReadAheadStage {
  readonly memoryBytes: number
  readonly windowBytes: number
}

const SEGMENT = 128 * 1024
const STREAMS = 16
/** Reads in a row before anything is read ahead. */
const ENOUGH = 2
/** What was read ahead this long ago and not asked for makes room for others. */
const OLD_MS = 1000

/** What is being read ahead, or was. */
interface Segment {
  readonly offset: number
  readonly end: number
  /** Undefined where that failed. */
  readonly data: Promise<Buffer | undefined>
  readonly began: number
  loading: boolean
  /** Somebody has changed the disk there since: nobody reads it. */
  spoiled: boolean
}

/** Somebody who reads in a row. */
interface Stream {
  next: number
  ahead: number
  window: number
  reads: number
}

interface Range {
  readonly begin: number
  readonly end: number
}

/** Notices who reads in a row, and reads on. */
export function readAheadStage(stage: ReadAheadStage): MakeFilter<unknown> {
  return (next) => {
    const ahead = new ScriptReadAhead(next, stage)
    const { write, discard, zero, resize } = next
    return {
      ...next,
      read: (buf, offset, io) => ahead.read(buf, offset, io),
      ...(write && {
        write: (buf, offset, io) => ahead.change(offset, buf.length, () => write(buf, offset, io)),
      }),
      ...(discard && {
        discard: (offset, length, io) =>
          ahead.change(offset, length, () => discard(offset, length, io)),
      }),
      ...(zero && {
        zero: (offset, length, io) => ahead.change(offset, length, () => zero(offset, length, io)),
      }),
      ...(resize && {
        resize: (size) => ahead.change(0, Number.POSITIVE_INFINITY, () => resize(size)),
      }),
      close: () => ahead.close(),
    }
  }
}

class ScriptReadAhead {
  readonly #next: OpenDisk
  readonly #windowBytes: number
  readonly #most: number
  readonly #segments = new Set<Segment>()
  /** Spoiled before they were there: their memory is in use until then. */
  readonly #coming = new Set<Segment>()
  /** Those that read last at the end. */
  readonly #streams: Stream[] = []
  /** Under way. */
  readonly #changes = new Set<Range>()
  #closed = false

  constructor(next: OpenDisk, { memoryBytes, windowBytes }: ReadAheadStage) {
    this.#next = next
    this.#windowBytes = windowBytes
    this.#most = Math.floor(memoryBytes / SEGMENT)
  }

  async read(buf: Uint8Array, offset: number, io: ForwardedIo): Promise<void> {
    const stream = this.#note(offset, buf.length)
    const reading = this.#read(buf, offset, io)
    if (stream !== undefined) this.#readOn(stream)
    await reading
  }

  /** What overlaps it is spoiled, and nothing is read ahead there until it has ended. */
  async change(offset: number, length: number, go: () => Promise<void>): Promise<void> {
    const range = { begin: offset, end: offset + length }
    this.#changes.add(range)
    for (const segment of this.#segments) {
      if (overlaps(range, segment.offset, segment.end)) this.#spoil(segment)
    }
    try {
      await go()
    } finally {
      this.#changes.delete(range)
    }
  }

  /** Waits for what is under way: the disk below is closed after it. */
  async close(): Promise<void> {
    this.#closed = true
    await Promise.all([...this.#segments, ...this.#coming].map(({ data }) => data))
  }

  async #read(buf: Uint8Array, offset: number, io: ForwardedIo): Promise<void> {
    for (let at = offset; at < offset + buf.length; ) {
      const [found, until] = this.#find(at, offset + buf.length)
      const part = buf.subarray(at - offset, until - offset)
      const data = await found?.data
      if (found === undefined || data === undefined || found.spoiled) {
        await this.#next.read(part, at, io)
      } else {
        part.set(data.subarray(at - found.offset, until - found.offset))
        // Whoever reads in a row does not come back.
        if (until === found.end) this.#segments.delete(found)
      }
      at = until
    }
  }

  /** The segment that has this place, if any has, and how far that goes. */
  #find(at: number, end: number): [Segment | undefined, number] {
    let until = end
    for (const segment of this.#segments) {
      if (segment.offset <= at && at < segment.end) return [segment, Math.min(end, segment.end)]
      if (segment.offset > at) until = Math.min(until, segment.offset)
    }
    return [undefined, until]
  }

  /** The stream that a read belongs to, once there is enough of it. */
  #note(offset: number, length: number): Stream | undefined {
    const place = this.#streams.findIndex(({ next }) => next === offset)
    const [found] = place < 0 ? [] : this.#streams.splice(place, 1)
    const stream = found ?? { next: 0, ahead: 0, window: 0, reads: 0 }
    stream.next = offset + length
    stream.reads++
    this.#streams.push(stream)
    if (this.#streams.length > STREAMS) this.#streams.shift()
    return stream.reads >= ENOUGH ? stream : undefined
  }

  #readOn(stream: Stream): void {
    stream.window = Math.min(Math.max(stream.window * 2, SEGMENT), this.#windowBytes)
    stream.ahead = Math.max(stream.ahead, stream.next)
    const end = Math.min(stream.next + stream.window, this.#next.size)
    while (stream.ahead < end && !this.#closed) {
      const stop = Math.min(stream.ahead + SEGMENT, this.#next.size)
      const [found, until] = this.#find(stream.ahead, stop)
      if (found === undefined && !this.#load(stream.ahead, until)) return
      stream.ahead = until
    }
  }

  #load(offset: number, end: number): boolean {
    for (const range of this.#changes) if (overlaps(range, offset, end)) return false
    if (this.#segments.size + this.#coming.size >= this.#most && !this.#makeRoom()) return false
    const data = Buffer.allocUnsafeSlow(end - offset)
    const segment: Segment = {
      offset,
      end,
      began: performance.now(),
      loading: true,
      spoiled: false,
      data: this.#next.read(data, offset).then(
        () => this.#loaded(segment, data),
        () => {
          // An error that nobody has asked for.
          this.#spoil(segment)
          return this.#loaded(segment, undefined)
        },
      ),
    }
    this.#segments.add(segment)
    return true
  }

  #loaded(segment: Segment, data: Buffer | undefined): Buffer | undefined {
    segment.loading = false
    this.#coming.delete(segment)
    return data
  }

  #spoil(segment: Segment): void {
    segment.spoiled = true
    this.#segments.delete(segment)
    if (segment.loading) this.#coming.add(segment)
  }

  #makeRoom(): boolean {
    const now = performance.now()
    for (const segment of this.#segments) {
      if (segment.loading || now - segment.began < OLD_MS) continue
      this.#segments.delete(segment)
      return true
    }
    return false
  }
}

function overlaps({ begin, end }: Range, from: number, to: number): boolean {
  return begin < to && from < end
}
