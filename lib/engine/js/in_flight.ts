/**
 * InFlight: one consumed request from its slot to its response, with the guest pages it reaches. One per ring entry,
 * made at connect and used over and over; only the arrays of indirect requests come later, when the first are used.
 *
 *   slot ──parse──► Request ──Transfer.prepare──► pieces ──disk──► Transfer.finish ──► response
 */
import { IO } from '../primitives.js'
import type { MapGroup } from './map_groups.js'
import type { Region } from './region.js'
import { REJECT, type Reject, Request } from './request.js'
import { MAX_SEGMENTS, OPERATION, SECTOR_BYTES } from './wire.js'

export const OUTCOME = {
  ready: 0,
  /** `reject` says why. */
  rejected: 1,
  /** A page could not be reached. */
  grantFailed: 2,
} as const

/** Where a request with a flush in it stands. A barrier goes through all three. */
export const STAGE = { preFlush: 0, data: 1, postFlush: 2 } as const

/** Arrays for so many segments. A piece is memory that lies together, of one segment or of neighbours. */
export class SegmentArrays {
  readonly capacity: number
  /** Two words each: a private copy of what the guest wrote. */
  readonly segments: Uint32Array
  /** Whose page each segment's is: a persistent grant's entry, or below zero -1 - a page of the pool. */
  readonly owners: Int32Array
  readonly regions: Region[]
  readonly starts: Uint32Array
  readonly lengths: Uint32Array

  constructor(capacity: number, placeholder: Region) {
    this.capacity = capacity
    this.segments = new Uint32Array(2 * capacity)
    this.owners = new Int32Array(capacity)
    this.regions = new Array<Region>(capacity).fill(placeholder)
    this.starts = new Uint32Array(capacity)
    this.lengths = new Uint32Array(capacity)
  }
}

export class InFlight {
  /** Its number in the engine, by which I/O is told apart. */
  readonly tag: number
  readonly request: Request
  arrays: SegmentArrays
  readonly #direct: SegmentArrays

  /** Of `arrays.owners`: how many are filled. */
  pageCount = 0
  pieceCount = 0
  /** With `map` only: the pages that one call mapped, and where this request's begin in them, in bytes. */
  group: MapGroup | undefined = undefined
  groupOffset = 0
  outcome: number = OUTCOME.ready
  reject: Reject = REJECT.none
  stage: number = STAGE.data
  /** The disk or a grant failed it: answer ERROR. */
  failed = false
  unsupported = false
  /** A flush that failed: its pages go, but it is never answered. */
  held = false
  /** What it counts against the budget of bytes in flight. */
  budgetBytes = 0
  startedNs = 0
  next: InFlight | undefined = undefined

  // What the disk is asked, and its answer.
  /** IO of primitives.ts. */
  io = 0
  /** Bytes, like `length`. */
  offset = 0
  length = 0
  /** 0, or a positive errno. */
  errno = 0
  /** The disk's own: bytes moved so far, and tries of the present step. */
  done = 0
  tries = 0

  constructor(tag: number, placeholder: Region) {
    this.tag = tag
    this.#direct = new SegmentArrays(MAX_SEGMENTS, placeholder)
    this.arrays = this.#direct
    this.request = new Request(this.arrays.segments)
  }

  /** What the disk is asked next, for the stage that this is in. `hasFlush`: of the guest. */
  askDisk(hasFlush: boolean): void {
    const { request } = this
    this.offset = request.sector * SECTOR_BYTES
    this.length = request.sectors * SECTOR_BYTES
    if (this.stage !== STAGE.data) {
      this.io = IO.flush
      this.offset = 0
      this.length = 0
    } else if (request.operation === OPERATION.read) {
      this.io = IO.read
    } else if (request.operation === OPERATION.discard) {
      this.io = request.secure ? IO.secureDiscard : IO.discard
    } else {
      // A guest without flushes has no other way to durability.
      this.io = hasFlush ? IO.write : IO.durableWrite
    }
  }

  /** Borrows larger arrays, for an indirect request. */
  attach(arrays: SegmentArrays): void {
    this.arrays = arrays
    this.request.segments = arrays.segments
  }

  /** Returns the arrays that were borrowed, if any were. */
  detach(): SegmentArrays | undefined {
    const { arrays } = this
    if (arrays === this.#direct) return undefined
    this.attach(this.#direct)
    return arrays
  }
}

/** A FIFO through InFlight.next. */
export class InFlightList {
  #head: InFlight | undefined = undefined
  #tail: InFlight | undefined = undefined

  get empty(): boolean {
    return this.#head === undefined
  }

  push(item: InFlight): void {
    item.next = undefined
    if (this.#head === undefined) this.#head = item
    else this.#tail!.next = item
    this.#tail = item
  }

  pop(): InFlight | undefined {
    const item = this.#head
    if (item !== undefined) this.#head = item.next
    return item
  }
}

/** Numbers for entries, so that an answer of the addon's finds its request. */
export class Tags {
  readonly #items: (InFlight | undefined)[] = []
  readonly #free: number[] = []

  make(placeholder: Region): InFlight {
    const tag = this.#free.pop() ?? this.#items.length
    const item = new InFlight(tag, placeholder)
    this.#items[tag] = item
    return item
  }

  find(tag: number): InFlight | undefined {
    return this.#items[tag]
  }

  drop(item: InFlight): void {
    this.#items[item.tag] = undefined
    this.#free.push(item.tag)
  }
}

/** The entries of one ring. */
export class InFlightTable {
  readonly #tags: Tags
  readonly #all: InFlight[] = []
  readonly #placeholder: Region
  readonly #indirectCapacity: number
  readonly #indirect: SegmentArrays[] = []
  #free: InFlight | undefined = undefined

  constructor(tags: Tags, entries: number, maxIndirectSegments: number, placeholder: Region) {
    this.#tags = tags
    this.#placeholder = placeholder
    this.#indirectCapacity = maxIndirectSegments
    for (let i = 0; i < entries; i++) {
      const item = tags.make(placeholder)
      this.#all.push(item)
      this.giveBack(item)
    }
  }

  /** undefined when all are taken, which the ring's own length rules out. */
  take(): InFlight | undefined {
    const item = this.#free
    if (item !== undefined) this.#free = item.next
    return item
  }

  giveBack(item: InFlight): void {
    const borrowed = item.detach()
    if (borrowed !== undefined) this.#indirect.push(borrowed)
    // Last in, first out: the warm entry goes next.
    item.next = this.#free
    this.#free = item
  }

  /** Arrays for an indirect request's segments, kept for the next one afterwards. */
  attachIndirect(item: InFlight): void {
    item.attach(
      this.#indirect.pop() ?? new SegmentArrays(this.#indirectCapacity, this.#placeholder),
    )
  }

  /** The ring is closed; entries that a failed flush holds go, too. */
  close(): void {
    for (const item of this.#all.splice(0)) this.#tags.drop(item)
  }
}
