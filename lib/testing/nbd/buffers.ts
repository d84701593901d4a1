/**
 * ByteQueue and BufferPool: bytes that come in pieces, and buffers that are used again. No I/O.
 */

/** Chunks as they came from a socket, read in the lengths that the protocol has. */
export class ByteQueue {
  readonly #chunks: Buffer[] = []
  #length = 0

  get length(): number {
    return this.#length
  }

  push(chunk: Buffer): void {
    if (chunk.length === 0) return
    this.#chunks.push(chunk)
    this.#length += chunk.length
  }

  /** The next `count` bytes; not copied where they came in one piece. Only while `length` >= count. */
  take(count: number): Buffer {
    const head = this.#chunks[0]
    if (head !== undefined && head.length >= count) {
      this.#drop(count)
      return head.subarray(0, count)
    }
    const bytes = Buffer.alloc(count)
    this.copyTo(bytes)
    return bytes
  }

  /** Moves as many bytes as there are, and fit, to the front of `target`; how many. */
  copyTo(target: Buffer): number {
    let done = 0
    while (done < target.length && this.#length > 0) {
      const part = this.#chunks[0]!.copy(target, done)
      done += part
      this.#drop(part)
    }
    return done
  }

  /** Drops up to `count` bytes; how many. */
  skip(count: number): number {
    let done = 0
    while (done < count && this.#length > 0) {
      const part = Math.min(this.#chunks[0]!.length, count - done)
      done += part
      this.#drop(part)
    }
    return done
  }

  /** Drops bytes of the first chunk. */
  #drop(count: number): void {
    const head = this.#chunks[0]
    this.#length -= count
    if (head === undefined || count === 0) return
    if (head.length === count) this.#chunks.shift()
    else this.#chunks[0] = head.subarray(count)
  }

  clear(): void {
    this.#chunks.length = 0
    this.#length = 0
  }
}

const SMALLEST = 4096

/** Buffers by power of two. What it lends holds old bytes: the user overwrites all of it. */
export class BufferPool {
  readonly #free = new Map<number, Buffer[]>()
  readonly #keep: number
  #kept = 0

  /** @param keep bytes of unused buffers that are kept */
  constructor(keep: number) {
    this.#keep = keep
  }

  /** A buffer of at least `length` bytes. */
  take(length: number): Buffer {
    const size = Math.max(SMALLEST, 2 ** Math.ceil(Math.log2(Math.max(1, length))))
    const buffer = this.#free.get(size)?.pop()
    if (buffer === undefined) return Buffer.allocUnsafeSlow(size)
    this.#kept -= size
    return buffer
  }

  /** Takes back what take() gave. */
  give(buffer: Buffer): void {
    const size = buffer.length
    if (this.#kept + size > this.#keep) return
    this.#kept += size
    const free = this.#free.get(size)
    if (free === undefined) this.#free.set(size, [buffer])
    else free.push(buffer)
  }
}
