/**
 * GrantPool: the data pages of one queue, and their grants.
 *
 * Two habits, as in Linux's blkfront. Persistent: a page is granted once, read-write, and used again and again, last
 * used first, so that few grants stay hot in the backend. Transient: the page stays ours, but every request grants it
 * anew and ends the grant when the response is there; a refused end means that the backend answered before it let go.
 *
 * The event loop's thread only. Holds at most `budget` pages; gives all of them back in close().
 */
import type { GuestMemory } from './guest_memory.js'

export interface GrantPoolOptions {
  readonly memory: GuestMemory
  /** The domain that the pages are granted to. */
  readonly domid: number
  readonly persistent: boolean
  /** Most pages held at a time. */
  readonly budget: number
}

export class GrantPool {
  readonly persistent: boolean
  readonly budget: number
  readonly #memory: GuestMemory
  readonly #domid: number
  /** Pages without a grant. */
  readonly #bare: number[] = []
  /** Persistent: idle pages with their grants, two parallel stacks. */
  readonly #grantedPages: number[] = []
  readonly #grantedRefs: number[] = []
  #held = 0

  constructor(options: GrantPoolOptions) {
    this.#memory = options.memory
    this.#domid = options.domid
    this.persistent = options.persistent
    this.budget = options.budget
  }

  /** Pages held, in use or idle. */
  get held(): number {
    return this.#held
  }

  /** Makes sure that `count` pages are there, so that a request of that size can always be sent. */
  reserve(count: number): boolean {
    while (this.#held < count) {
      const page = this.#memory.takePage()
      if (page === undefined) return false
      this.#held++
      this.#bare.push(page)
    }
    return true
  }

  /**
   * Takes `count` granted pages into `pages` and `refs`, from index `at`. False: not that many now, nothing was
   * taken.
   * @param readOnly the backend will only read them; a persistent grant is read-write nevertheless
   */
  take(at: number, count: number, readOnly: boolean, pages: Int32Array, refs: Int32Array): boolean {
    for (let i = at; i < at + count; i++) {
      if (this.#takeOne(i, readOnly, pages, refs)) continue
      this.release(at, i - at, pages, refs)
      return false
    }
    return true
  }

  #takeOne(i: number, readOnly: boolean, pages: Int32Array, refs: Int32Array): boolean {
    const page = this.#grantedPages.pop()
    if (page !== undefined) {
      pages[i] = page
      refs[i] = this.#grantedRefs.pop()!
      return true
    }
    const bare = this.#bare.pop() ?? this.#grow()
    if (bare === undefined) return false
    let ref: number | undefined
    try {
      ref = this.#memory.grant(bare, this.#domid, readOnly && !this.persistent)
    } finally {
      if (ref === undefined) this.#bare.push(bare)
    }
    if (ref === undefined) return false
    pages[i] = bare
    refs[i] = ref
    return true
  }

  #grow(): number | undefined {
    if (this.#held >= this.budget) return undefined
    const page = this.#memory.takePage()
    if (page !== undefined) this.#held++
    return page
  }

  /** Takes back pages of an answered request. Returns how many the backend still maps (transient only). */
  release(at: number, count: number, pages: Int32Array, refs: Int32Array): number {
    let stillMapped = 0
    for (let i = at; i < at + count; i++) {
      const page = pages[i]!
      const ref = refs[i]!
      if (this.persistent) {
        this.#grantedPages.push(page)
        this.#grantedRefs.push(ref)
      } else if (this.#memory.endAccess(ref)) {
        this.#bare.push(page)
      } else {
        this.#memory.retire(page, ref)
        this.#held--
        stillMapped++
      }
    }
    return stillMapped
  }

  /** Ends the idle persistent grants that the backend no longer maps, as Linux does every 10 s. Returns how many. */
  purge(): number {
    const idle = this.#grantedPages.length
    let kept = 0
    for (let i = 0; i < idle; i++) {
      const page = this.#grantedPages[i]!
      const ref = this.#grantedRefs[i]!
      if (this.#memory.endAccess(ref)) {
        this.#bare.push(page)
        continue
      }
      this.#grantedPages[kept] = page
      this.#grantedRefs[kept] = ref
      kept++
    }
    this.#grantedPages.length = kept
    this.#grantedRefs.length = kept
    return idle - kept
  }

  /** Gives up the pages of requests that will never be answered; the backend may still map them. */
  abandon(count: number, pages: Int32Array, refs: Int32Array): void {
    for (let i = 0; i < count; i++) this.#memory.retire(pages[i]!, refs[i]!)
    this.#held -= count
  }

  /**
   * Ends all grants and gives all idle pages back. Returns how many the backend still maps; those
   * are quarantined.
   */
  close(): number {
    let stillMapped = 0
    for (let i = 0; i < this.#grantedPages.length; i++) {
      if (!this.#memory.retire(this.#grantedPages[i]!, this.#grantedRefs[i]!)) stillMapped++
    }
    for (const page of this.#bare) this.#memory.releasePages(page)
    this.#held -= this.#grantedPages.length + this.#bare.length
    this.#grantedPages.length = 0
    this.#grantedRefs.length = 0
    this.#bare.length = 0
    return stillMapped
  }
}
