/**
 * PersistentGrants: guest pages that stay mapped for one ring, found again by their grant reference. Owns every mapping
 * it made.
 *
 * Semantics of xen-blkback: at most `cap` pages; a purge every 100 ms drops pages idle for longer than the timeout and,
 * when the cache overflowed, at least 5 % of it, least recently used first; never one in use.
 *
 * The lookup is a flat table for references below 2^20 (a guest's grant table has 32,768 by default), which grows as
 * they come, and a seeded hash for wilder ones, so that a hostile guest cannot make it slow.
 */
import { randomBytes } from 'node:crypto'
import type { NativeGrants, NativeMapping } from '../primitives.js'
import { Region } from './region.js'

export const NO_ENTRY = -1

export const INSERT = { inserted: 0, full: 1, refused: 2 } as const

const FLAT_REFS = 1 << 20
/** Bounds one tick's scan, however large the cap. */
const SCAN_PER_PURGE = 16_384

/** References of 2^20 and more, in open addressing, at most half full. */
class WildRefs {
  readonly #seed = randomBytes(4).readUInt32LE()
  #refs = new Uint32Array(256)
  /** Entry + 1; 0 is empty. */
  #entries = new Int32Array(256)
  #count = 0

  find(ref: number): number {
    const mask = this.#refs.length - 1
    for (let i = this.#home(ref); this.#entries[i] !== 0; i = (i + 1) & mask) {
      if (this.#refs[i] === ref) return this.#entries[i]! - 1
    }
    return NO_ENTRY
  }

  add(ref: number, entry: number): void {
    if ((this.#count + 1) * 2 > this.#refs.length) this.#grow()
    const mask = this.#refs.length - 1
    let i = this.#home(ref)
    while (this.#entries[i] !== 0) i = (i + 1) & mask
    this.#refs[i] = ref
    this.#entries[i] = entry + 1
    this.#count++
  }

  remove(ref: number): void {
    const mask = this.#refs.length - 1
    let hole = this.#home(ref)
    while (this.#refs[hole] !== ref || this.#entries[hole] === 0) hole = (hole + 1) & mask
    // Backward shift keeps every probe sequence unbroken without tombstones.
    for (let i = (hole + 1) & mask; this.#entries[i] !== 0; i = (i + 1) & mask) {
      const home = this.#home(this.#refs[i]!)
      if (((i - home) & mask) >= ((i - hole) & mask)) {
        this.#refs[hole] = this.#refs[i]!
        this.#entries[hole] = this.#entries[i]!
        hole = i
      }
    }
    this.#entries[hole] = 0
    this.#count--
  }

  #home(ref: number): number {
    let x = Math.imul(ref ^ this.#seed, 0x9e3779b1)
    x = Math.imul(x ^ (x >>> 15), 0x85ebca77)
    return (x ^ (x >>> 13)) & (this.#refs.length - 1)
  }

  #grow(): void {
    const refs = this.#refs
    const entries = this.#entries
    this.#refs = new Uint32Array(refs.length * 2)
    this.#entries = new Int32Array(refs.length * 2)
    this.#count = 0
    for (let i = 0; i < refs.length; i++) {
      if (entries[i] !== 0) this.add(refs[i]!, entries[i]! - 1)
    }
  }
}

export class PersistentGrants {
  /** Takes effect at the next insert or purge. */
  cap: number
  readonly #grants: NativeGrants
  readonly #domid: number
  /** Reference → entry + 1. */
  #flat = new Int32Array(4096)
  readonly #wild = new WildRefs()
  // By entry.
  readonly #regions: (Region | undefined)[] = []
  #refs = new Uint32Array(64)
  /** Requests that hold it now. */
  #inUse = new Int32Array(64)
  #lastUsedMs = new Float64Array(64)
  readonly #free: number[] = []
  #size = 0
  #overflowed = false
  /** Where the next idle scan goes on. */
  #idleCursor = 0
  readonly #one = new Uint32Array(1)

  constructor(grants: NativeGrants, domid: number, cap: number) {
    this.#grants = grants
    this.#domid = domid
    this.cap = cap
  }

  get size(): number {
    return this.#size
  }

  /** Pins the page of `ref` if it is mapped: its entry, or NO_ENTRY. `nowMs` stamps its last use. */
  acquire(ref: number, nowMs: number): number {
    const flat = this.#flat
    const entry =
      ref < flat.length ? flat[ref]! - 1 : ref < FLAT_REFS ? NO_ENTRY : this.#wild.find(ref)
    if (entry === NO_ENTRY) return NO_ENTRY
    this.#inUse[entry]!++
    this.#lastUsedMs[entry] = nowMs
    return entry
  }

  release(entry: number): void {
    this.#inUse[entry]!--
  }

  region(entry: number): Region {
    return this.#regions[entry]!
  }

  /** Maps `ref` read-write and pins it: acquire() finds it then, and has pinned it once more. */
  insert(ref: number): number {
    if (this.#size >= this.cap) {
      this.#overflowed = true
      return INSERT.full
    }
    let mapping: NativeMapping
    this.#one[0] = ref
    try {
      mapping = this.#grants.map(this.#domid, this.#one, 1, true)
    } catch {
      return INSERT.refused
    }
    const entry = this.#free.pop() ?? this.#regions.length
    if (entry >= this.#refs.length) this.#grow()
    this.#regions[entry] = new Region(mapping.region, mapping.buffer)
    this.#refs[entry] = ref
    this.#inUse[entry] = 0
    this.#link(ref, entry)
    this.#size++
    return INSERT.inserted
  }

  /** Every 100 ms. `idleMs` 0: pages never expire. Returns how many were unmapped. */
  purge(nowMs: number, idleMs: number): number {
    const dropped = idleMs > 0 ? this.#purgeIdle(nowMs, idleMs) : 0
    return dropped + this.#purgeOverflow()
  }

  /** Unmaps everything; nothing is pinned. Returns how many it were. */
  clear(): number {
    const before = this.#size
    for (let entry = 0; entry < this.#regions.length; entry++) {
      if (this.#regions[entry] !== undefined) this.#drop(entry)
    }
    return before
  }

  #purgeIdle(nowMs: number, idleMs: number): number {
    let dropped = 0
    const used = this.#regions.length
    for (let i = Math.min(used, SCAN_PER_PURGE); i > 0; i--) {
      if (this.#idleCursor >= used) this.#idleCursor = 0
      const entry = this.#idleCursor++
      if (!this.#isFreeToGo(entry) || nowMs - this.#lastUsedMs[entry]! < idleMs) continue
      this.#drop(entry)
      dropped++
    }
    return dropped
  }

  #purgeOverflow(): number {
    const { cap } = this
    if (this.#size < cap || (this.#size === cap && !this.#overflowed)) return 0
    this.#overflowed = false
    // At least 5 % of the cap, and whatever a lowered cap leaves above it.
    const wanted = Math.min(this.#size, Math.max(1, Math.floor(cap / 20)) + (this.#size - cap))
    const candidates: number[] = []
    for (let entry = 0; entry < this.#regions.length; entry++) {
      if (this.#isFreeToGo(entry)) candidates.push(entry)
    }
    candidates.sort((a, b) => this.#lastUsedMs[a]! - this.#lastUsedMs[b]!)
    const oldest = candidates.slice(0, wanted)
    for (const entry of oldest) this.#drop(entry)
    return oldest.length
  }

  #isFreeToGo(entry: number): boolean {
    return this.#regions[entry] !== undefined && this.#inUse[entry] === 0
  }

  #drop(entry: number): void {
    const ref = this.#refs[entry]!
    if (ref < FLAT_REFS) this.#flat[ref] = 0
    else this.#wild.remove(ref)
    // A refused unmap leaves nothing to retry: closing the handle releases the page.
    this.#grants.unmap(this.#regions[entry]!.number)
    this.#regions[entry] = undefined
    this.#free.push(entry)
    this.#size--
  }

  #link(ref: number, entry: number): void {
    if (ref >= FLAT_REFS) {
      this.#wild.add(ref, entry)
      return
    }
    if (ref >= this.#flat.length) {
      const larger = new Int32Array(2 ** (32 - Math.clz32(ref)))
      larger.set(this.#flat)
      this.#flat = larger
    }
    this.#flat[ref] = entry + 1
  }

  #grow(): void {
    const twice = this.#refs.length * 2
    const refs = new Uint32Array(twice)
    const inUse = new Int32Array(twice)
    const lastUsedMs = new Float64Array(twice)
    refs.set(this.#refs)
    inUse.set(this.#inUse)
    lastUsedMs.set(this.#lastUsedMs)
    this.#refs = refs
    this.#inUse = inUse
    this.#lastUsedMs = lastUsedMs
  }
}
