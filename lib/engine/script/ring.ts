/**
 * The script's end of a channel: takes submissions off their ring and puts answers on theirs. The layout is that of
 * native/block/script_ring.h; the memory is native, and this thread's alone but for the two rings' other ends.
 *
 * Atomics order the rings' contents: an index is read before what it says is there, and written after it.
 */
import type { NativeDiskClient, NativeScriptEnd } from '../addon.js'

/** Of 32-bit words; each index has a cache line of its own. */
const SUBMITTED = 0
const TAKEN = 16
const ANSWERED = 32
const ARMED = 64
const RINGS = 80

const DESCRIPTOR_BYTES = 64
const ABORT = 0x8000_0000
const FUA = 1

/** IoOp of native/block/device.h. */
export const Op = { read: 0, write: 1, flush: 2, discard: 3 } as const

/** Both rings and the requests' descriptors. */
export class ScriptRing {
  readonly #words: Int32Array
  readonly #descriptors: Uint32Array
  readonly #doubles: Float64Array
  readonly #submissionMask: number
  readonly #answerMask: number
  readonly #answers: number
  #taken = 0
  #answered = 0

  constructor(
    end: Pick<NativeScriptEnd, 'control' | 'submissionEntries' | 'answerEntries' | 'slots'>,
  ) {
    const { control, submissionEntries, answerEntries, slots } = end
    this.#words = new Int32Array(control)
    this.#submissionMask = submissionEntries - 1
    this.#answerMask = answerEntries - 1
    this.#answers = RINGS + Math.ceil(submissionEntries / 2) * 2
    const after = (this.#answers + 2 * answerEntries) * 4
    const descriptors = Math.ceil(after / DESCRIPTOR_BYTES) * DESCRIPTOR_BYTES
    this.#descriptors = new Uint32Array(control, descriptors, (slots * DESCRIPTOR_BYTES) / 4)
    this.#doubles = new Float64Array(control, descriptors, (slots * DESCRIPTOR_BYTES) / 8)
  }

  /** How many submissions there are to take. */
  pending(): number {
    return (Atomics.load(this.#words, SUBMITTED) - this.#taken) | 0
  }

  /** The next submission; only while some are pending. A slot, or with `isAbort` the one nobody waits for any more. */
  take(): number {
    const entry = this.#words[RINGS + (this.#taken & this.#submissionMask)]!
    this.#taken = (this.#taken + 1) | 0
    Atomics.store(this.#words, TAKEN, this.#taken)
    return entry >>> 0
  }

  static isAbort(entry: number): boolean {
    return entry >= ABORT
  }

  static slotOf(entry: number): number {
    return entry & ~ABORT
  }

  op(slot: number): number {
    return this.#descriptors[slot * 16]!
  }

  fua(slot: number): boolean {
    return (this.#descriptors[slot * 16 + 1]! & FUA) !== 0
  }

  offset(slot: number): number {
    return this.#doubles[slot * 8 + 1]!
  }

  length(slot: number): number {
    return this.#doubles[slot * 8 + 2]!
  }

  client(slot: number): number {
    return this.#descriptors[slot * 16 + 6]!
  }

  tag(slot: number): number {
    return this.#descriptors[slot * 16 + 7]!
  }

  /** Puts an answer where the next kick finds it. There is always room: a slot is answered once. */
  answer(slot: number, error: number): void {
    const at = this.#answers + 2 * (this.#answered & this.#answerMask)
    this.#words[at] = slot
    this.#words[at + 1] = error
    this.#answered = (this.#answered + 1) | 0
    Atomics.store(this.#words, ANSWERED, this.#answered)
  }

  /** Asks for a bell at the next submission. False: there is one already, and none will ring for it. */
  arm(): boolean {
    Atomics.store(this.#words, ARMED, 1)
    if (this.pending() === 0) return true
    Atomics.store(this.#words, ARMED, 0)
    return false
  }
}

/** Of 32-bit words, in ClientIndices; the four before are as above, with the ends changed over. */
const CONSUMED = 48
const SCRIPT_ARMED = 64
const CLIENT_RINGS = 96

/** The same rings, where this thread is the one that submits. */
export class ClientRing {
  readonly #words: Int32Array
  readonly #descriptors: Uint32Array
  readonly #doubles: Float64Array
  readonly #mask: number
  readonly #answers: number
  #submitted = 0
  #consumed = 0

  constructor({ control, entries, slots }: NativeDiskClient) {
    this.#words = new Int32Array(control)
    this.#mask = entries - 1
    this.#answers = CLIENT_RINGS + Math.ceil(entries / 2) * 2
    const after = (this.#answers + 2 * entries) * 4
    const descriptors = Math.ceil(after / DESCRIPTOR_BYTES) * DESCRIPTOR_BYTES
    this.#descriptors = new Uint32Array(control, descriptors, (slots * DESCRIPTOR_BYTES) / 4)
    this.#doubles = new Float64Array(control, descriptors, (slots * DESCRIPTOR_BYTES) / 8)
  }

  /** Puts a request where the next kick finds it. There is always room: a slot has one at a time. */
  submit(slot: number, op: number, fua: boolean, offset: number, length: number): void {
    this.#descriptors[slot * 16] = op
    this.#descriptors[slot * 16 + 1] = fua ? FUA : 0
    this.#doubles[slot * 8 + 1] = offset
    this.#doubles[slot * 8 + 2] = length
    this.#words[CLIENT_RINGS + (this.#submitted & this.#mask)] = slot
    this.#submitted = (this.#submitted + 1) | 0
    Atomics.store(this.#words, SUBMITTED, this.#submitted)
  }

  /** How many answers there are to take. */
  answered(): number {
    return (Atomics.load(this.#words, ANSWERED) - this.#consumed) | 0
  }

  /** The next answer; only while there is one. A slot, and 0 or an errno. */
  takeAnswer(): [slot: number, error: number] {
    const at = this.#answers + 2 * (this.#consumed & this.#mask)
    const answer: [number, number] = [this.#words[at]!, this.#words[at + 1]!]
    this.#consumed = (this.#consumed + 1) | 0
    Atomics.store(this.#words, CONSUMED, this.#consumed)
    return answer
  }

  /** Asks for a bell at the next answer. False: there is one already, and none will ring for it. */
  arm(): boolean {
    Atomics.store(this.#words, SCRIPT_ARMED, 1)
    if (this.answered() === 0) return true
    Atomics.store(this.#words, SCRIPT_ARMED, 0)
    return false
  }
}
