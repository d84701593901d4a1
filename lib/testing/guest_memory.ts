/**
 * GuestMemory: who uses which page and which grant reference of one guest.
 *
 * The event loop's thread only. One object per guest, shared by its frontends. It hands out page numbers and grant
 * references; a page that a peer still maps when its grant should end is kept apart (quarantined) and never handed
 * out again until the peer lets go, so that a slow backend cannot write into somebody else's data.
 */
import type { NativeMockGuest } from '../engine/addon.js'
import { VbdError } from '../errors.js'
import { PAGE_BYTES } from './wire.js'

/** References 0 to 7 are reserved by Xen's ABI; the mock's table has 64 frames of 512 entries. */
export const FIRST_GRANT_REF = 8
export const GRANT_REFS = 32768

/** What GuestMemory needs of a guest. */
export type GrantHost = Pick<NativeMockGuest, 'memory' | 'grant' | 'endAccess'>

/** Numbers lowest .. limit-1, handed out singly (last freed first) or as runs of neighbours. */
export class NumberPool {
  readonly #lowest: number
  readonly #used: Uint8Array
  /** Candidates for singles; may hold numbers that a run took meanwhile. */
  readonly #stack: number[] = []
  readonly #stacked: Uint8Array
  #free: number

  /** @param limit one more than the highest number */
  constructor(lowest: number, limit: number) {
    const count = Math.max(0, limit - lowest)
    this.#lowest = lowest
    this.#used = new Uint8Array(count)
    this.#stacked = new Uint8Array(count).fill(1)
    this.#free = count
    for (let i = count - 1; i >= 0; i--) this.#stack.push(i)
  }

  get free(): number {
    return this.#free
  }

  get used(): number {
    return this.#used.length - this.#free
  }

  take(): number | undefined {
    for (;;) {
      const i = this.#stack.pop()
      if (i === undefined) return undefined
      this.#stacked[i] = 0
      if (this.#used[i] === 1) continue
      this.#used[i] = 1
      this.#free--
      return i + this.#lowest
    }
  }

  /** `count` neighbours, from the high end; the first of them, or undefined. */
  takeRun(count: number): number | undefined {
    let length = 0
    for (let i = this.#used.length - 1; i >= 0; i--) {
      length = this.#used[i] === 0 ? length + 1 : 0
      if (length < count) continue
      this.#used.fill(1, i, i + count)
      this.#free -= count
      return i + this.#lowest
    }
    return undefined
  }

  release(first: number, count = 1): void {
    for (let n = first; n < first + count; n++) {
      const i = n - this.#lowest
      if (this.#used[i] !== 1) throw new RangeError(`number ${n} was not taken`)
      this.#used[i] = 0
      this.#free++
      if (this.#stacked[i] === 1) continue
      this.#stacked[i] = 1
      this.#stack.push(i)
    }
  }
}

export interface GuestMemoryUse {
  readonly pages: number
  readonly grants: number
  /** Of these pages: kept apart, because a peer still maps them. */
  readonly quarantined: number
}

export class GuestMemory {
  readonly buffer: ArrayBuffer
  readonly bytes: Uint8Array
  readonly view: DataView
  readonly #host: GrantHost
  readonly #pages: NumberPool
  readonly #refs = new NumberPool(FIRST_GRANT_REF, GRANT_REFS)
  /** Reference → page. */
  readonly #quarantine = new Map<number, number>()

  constructor(host: GrantHost) {
    this.#host = host
    this.buffer = host.memory
    this.bytes = new Uint8Array(host.memory)
    this.view = new DataView(host.memory)
    // Page 0 stays unused: a forgotten page number is then visible instead of someone's data.
    this.#pages = new NumberPool(1, Math.floor(host.memory.byteLength / PAGE_BYTES))
  }

  /** Pages and references that could be handed out now, whichever is scarcer. */
  get available(): number {
    return Math.min(this.#pages.free, this.#refs.free)
  }

  get use(): GuestMemoryUse {
    return {
      pages: this.#pages.used,
      grants: this.#refs.used,
      quarantined: this.#quarantine.size,
    }
  }

  takePage(): number | undefined {
    return this.#pages.take()
  }

  /** `count` adjacent pages; the first of them. Throws ERR_VBD_STATE when the guest has no such run. */
  takePages(count: number): number {
    const first = this.#pages.takeRun(count)
    if (first === undefined) throw outOfMemory(`${count} adjacent pages`)
    return first
  }

  releasePages(first: number, count = 1): void {
    this.#pages.release(first, count)
  }

  /** Grants one page; undefined when no reference is free. */
  grant(page: number, domid: number, readOnly: boolean): number | undefined {
    const ref = this.#refs.take()
    if (ref === undefined) return undefined
    try {
      this.#host.grant(ref, page, domid, readOnly)
    } catch (error) {
      this.#refs.release(ref)
      throw error
    }
    return ref
  }

  /** Grants these pages under adjacent references, in their order; the first reference. */
  grantRun(pages: readonly number[], domid: number, readOnly: boolean): number {
    const first = this.#refs.takeRun(pages.length)
    if (first === undefined) throw outOfMemory(`${pages.length} adjacent grant references`)
    for (const [i, page] of pages.entries()) this.#host.grant(first + i, page, domid, readOnly)
    return first
  }

  /** Ends a grant and frees its reference. False: a peer still maps it, nothing was changed. */
  endAccess(ref: number): boolean {
    if (!this.#host.endAccess(ref)) return false
    this.#refs.release(ref)
    return true
  }

  /** Gives up a granted page: both are free afterwards, or quarantined (false) while a peer maps it. */
  retire(page: number, ref: number): boolean {
    if (this.endAccess(ref)) {
      this.#pages.release(page)
      return true
    }
    this.#quarantine.set(ref, page)
    return false
  }

  /** Tries again to free what is quarantined; how many pages remain so. */
  sweep(): number {
    for (const [ref, page] of this.#quarantine) {
      if (!this.endAccess(ref)) continue
      this.#quarantine.delete(ref)
      this.#pages.release(page)
    }
    return this.#quarantine.size
  }

  /** The error of whoever cannot go on without a page. */
  outOfPages(): VbdError {
    return outOfMemory('page or grant reference')
  }
}

function outOfMemory(what: string): VbdError {
  return new VbdError('ERR_VBD_STATE', `the guest has no ${what} left`, {
    remedy: 'give the guest more memory, or its frontend fewer queues, ring pages or segments',
  })
}
