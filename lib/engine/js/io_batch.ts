/**
 * IoBatch: I/O that goes through the addon, one call for everything that the rings of this engine asked for in a pass,
 * in tables of numbers that are made once: no object per operation, on either side.
 *
 *   operations  file, kind, tag, offset, length, vectors    vectors  region, start, length    results  tag, errno
 */
import {
  IO,
  IO_OPERATION_NUMBERS,
  IO_RESULT_NUMBERS,
  IO_VECTOR_NUMBERS,
  type NativePrimitives,
} from '../primitives.js'
import { type DiskQueue, ERRNO } from './disk_queue.js'
import type { InFlight, Tags } from './in_flight.js'

const RESULTS = 1024

export class IoBatch {
  readonly #primitives: NativePrimitives
  readonly #tags: Tags
  #operations = new Float64Array(64 * IO_OPERATION_NUMBERS)
  #vectors = new Float64Array(256 * IO_VECTOR_NUMBERS)
  readonly #results = new Int32Array(RESULTS * IO_RESULT_NUMBERS)
  #operationCount = 0
  #vectorCount = 0
  /** Who asked, by tag. */
  readonly #askers: (DiskQueue | undefined)[] = []
  #inFlight = 0

  constructor(primitives: NativePrimitives, tags: Tags) {
    this.#primitives = primitives
    this.#tags = tags
  }

  /** Operations queued or handed over, and not told yet. */
  get inFlight(): number {
    return this.#inFlight
  }

  /** Queues what `item` asks for until the next turn(). */
  add(asker: DiskQueue, file: number, item: InFlight): void {
    const transfers = item.io === IO.read || item.io === IO.write || item.io === IO.durableWrite
    const pieces = transfers ? item.pieceCount : 0
    this.#reserve(pieces)
    const operation = this.#operations
    let at = this.#operationCount++ * IO_OPERATION_NUMBERS
    operation[at++] = file
    operation[at++] = item.io
    operation[at++] = item.tag
    operation[at++] = item.offset
    operation[at++] = item.length
    operation[at] = pieces
    const { regions, starts, lengths } = item.arrays
    const vector = this.#vectors
    at = this.#vectorCount * IO_VECTOR_NUMBERS
    for (let i = 0; i < pieces; i++) {
      vector[at++] = regions[i]!.number
      vector[at++] = starts[i]!
      vector[at++] = lengths[i]!
    }
    this.#vectorCount += pieces
    this.#askers[item.tag] = asker
    this.#inFlight++
  }

  /** Hands over what is queued and takes what has completed, in one call; how many those are. */
  turn(): number {
    const queued = this.#operationCount
    const vectors = this.#vectorCount
    this.#operationCount = 0
    this.#vectorCount = 0
    let told: number
    try {
      told = this.#primitives.turnIo(
        this.#operations,
        queued,
        this.#vectors,
        vectors,
        this.#results,
      )
    } catch {
      // Refused whole; what was handed over earlier is not concerned.
      for (let i = 0; i < queued; i++) {
        this.#complete(this.#operations[i * IO_OPERATION_NUMBERS + 2]!, ERRNO.io)
      }
      return queued
    }
    for (let i = 0; i < told; i++) {
      const at = i * IO_RESULT_NUMBERS
      this.#complete(this.#results[at]!, this.#results[at + 1]!)
    }
    return told
  }

  #complete(tag: number, errno: number): void {
    const item = this.#tags.find(tag)!
    this.#inFlight--
    this.#askers[tag]!.complete(item, errno)
  }

  #reserve(pieces: number): void {
    if ((this.#operationCount + 1) * IO_OPERATION_NUMBERS > this.#operations.length) {
      this.#operations = grown(this.#operations, this.#operations.length * 2)
    }
    const wanted = (this.#vectorCount + pieces) * IO_VECTOR_NUMBERS
    if (wanted > this.#vectors.length) this.#vectors = grown(this.#vectors, wanted * 2)
  }
}

function grown(from: Float64Array, length: number): Float64Array<ArrayBuffer> {
  const to = new Float64Array(length)
  to.set(from)
  return to
}
