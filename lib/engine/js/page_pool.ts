/**
 * PagePool: the pages through which grant copies go. One for the engine; it hands out page numbers of the arena, whose
 * memory the primitives own.
 *
 *   arena   | scratch | warm (resident, free) | in use | cold (given back to the system, or never touched) |
 *
 * Free pages are kept warm up to `maxFree`; beyond that they are given back in batches, as blkback's max_buffer_pages
 * does. A page holds whatever its last user left: it reaches a guest only after a disk or a grant copy wrote every byte
 * that the guest will see.
 */
import { VbdError } from '../../errors.js'
import type { NativePrimitives } from '../primitives.js'
import { Region } from './region.js'
import { PAGE_BYTES } from './wire.js'

/** Slack above maxFree before pages go back, so that a steady load does not pay for that over and over. */
const SHRINK_BATCH = 64

/** A stack of page numbers that grows as it is used. */
class PageStack {
  #pages = new Uint32Array(256)
  count = 0

  push(page: number): void {
    if (this.count === this.#pages.length) {
      const larger = new Uint32Array(this.#pages.length * 2)
      larger.set(this.#pages)
      this.#pages = larger
    }
    this.#pages[this.count++] = page
  }

  pop(): number {
    return this.#pages[--this.count]!
  }

  /** Those from `keep` on, in descending order; they leave the stack. */
  cut(keep: number): Uint32Array {
    const cut = this.#pages.slice(keep, this.count).sort().reverse()
    this.count = keep
    return cut
  }
}

export class PagePool {
  readonly region: Region
  /** Pages that the pool keeps free and warm. */
  maxFree: number
  readonly #primitives: NativePrimitives
  readonly #capacity: number
  readonly #warm = new PageStack()
  readonly #cold = new PageStack()
  /** Pages from here on were never used. */
  #untouched: number
  #inUse = 0

  /** @param scratchPages the first pages of the arena, which are somebody else's */
  constructor(primitives: NativePrimitives, scratchPages: number, maxFree: number) {
    this.#primitives = primitives
    this.region = new Region(0, primitives.arena)
    this.#capacity = primitives.arena.byteLength / PAGE_BYTES - scratchPages
    this.#untouched = scratchPages
    this.maxFree = maxFree
  }

  get inUse(): number {
    return this.#inUse
  }

  get available(): number {
    return this.#capacity - this.#inUse
  }

  get warm(): number {
    return this.#warm.count
  }

  /** A free page's number. Whoever asks for many gets adjacent ones in ascending order, where it can be. */
  acquire(): number {
    // The queue reserved room before it consumed the request.
    if (this.#inUse === this.#capacity) throw new VbdError('ERR_VBD_INTERNAL', 'no page is left')
    this.#inUse++
    if (this.#warm.count > 0) return this.#warm.pop()
    return this.#cold.count > 0 ? this.#cold.pop() : this.#untouched++
  }

  /** Gives a page back. The last one that was acquired goes first, so that runs stay runs. */
  release(page: number): void {
    this.#warm.push(page)
    this.#inUse--
    if (this.#warm.count > this.maxFree + SHRINK_BATCH) this.shrink()
  }

  /** Returns warm pages beyond maxFree to the system. Cheap when there are none. */
  shrink(): void {
    if (this.#warm.count <= this.maxFree) return
    const pages = this.#warm.cut(this.maxFree)
    for (let first = 0; first < pages.length; ) {
      let end = first + 1
      while (end < pages.length && pages[end]! + 1 === pages[end - 1]) end++
      this.#primitives.giveBack(pages[end - 1]! * PAGE_BYTES, (end - first) * PAGE_BYTES)
      first = end
    }
    for (const page of pages) this.#cold.push(page)
  }
}
