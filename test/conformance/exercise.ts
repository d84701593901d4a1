/**
 * Exercise: random requests on a guest's disk, many at a time, each answer compared with a shadow of the disk.
 *
 * Requests that are in flight together share no sector, but where the result is defined all the same: reads with reads,
 * and what a write barrier on the same ring keeps apart. Deterministic for a seed, but for the order of answers.
 */
import { Random } from '../differential/random.js'
import type { DataKind, Part, RawDisk } from './raw_disk.js'
import { type Expectation, firstWrong, type Range, type Shadow } from './shadow.js'

const SECTOR = 512
const SECTORS_PER_PAGE = 8
const DIRECT_SEGMENTS = 11

/** What may be expected of a disk. */
export interface Conduct {
  /** What a discard leaves. */
  readonly discards: 'zeroes' | 'anything'
  /** Whether requests of this kind may fail, and then leave their range unknown. */
  readonly mayFail: (kind: Kind) => boolean
}

export type Kind = DataKind | 'discard'

/** What was done, for those who have to find out what went wrong. */
interface Done extends Range {
  readonly number: number
  readonly kind: Kind
  readonly ring: number
  readonly segments: number
  /** Barriers sent on its ring before it. */
  readonly epoch: number
  answer?: 'ok' | 'error'
}

/** What a run did, for tests that want to have seen it. */
export interface Tally {
  requests: number
  failed: number
  refused: number
  overlapped: number
  most: number
  readonly kinds: Partial<Record<Kind, number>>
}

/** A request that is still to be sent. */
interface Draft extends Range {
  readonly kind: Kind
  readonly parts: readonly Part[]
}

export class Exercise {
  readonly tally: Tally = {
    requests: 0,
    failed: 0,
    refused: 0,
    overlapped: 0,
    most: 0,
    kinds: {},
  }
  readonly #disk: RawDisk
  readonly #shadow: Shadow
  readonly #conduct: Conduct
  readonly #random: Random
  readonly #freePages: number[]
  readonly #epochs: number[]
  readonly #active = new Map<Done, Promise<void>>()
  readonly #history: Done[] = []
  readonly #pool: Buffer
  readonly #unit: number

  constructor(disk: RawDisk, shadow: Shadow, conduct: Conduct, seed: number) {
    this.#disk = disk
    this.#shadow = shadow
    this.#conduct = conduct
    this.#random = new Random(seed)
    this.#freePages = Array.from({ length: disk.pages }, (_, i) => i)
    this.#epochs = disk.inFlight.map(() => 0)
    this.#pool = Buffer.alloc(1 << 16)
    this.#random.fill(this.#pool)
    this.#unit = disk.frontend.properties.sectorSize / SECTOR
  }

  /** Requests that are not answered. */
  get active(): readonly unknown[] {
    return [...this.#active.keys()]
  }

  /** Sends `count` requests, then reads the whole disk. Rejects with the first thing that was wrong. */
  async run(count: number): Promise<void> {
    const end = this.tally.requests + count
    while (this.tally.requests < end) {
      // Now and then everything is answered before the next is sent.
      const depth = this.#random.pick([1, 4, 16, 48])
      const pause = Math.min(end, this.tally.requests + 1 + this.#random.below(60))
      while (this.tally.requests < pause) {
        if (this.#active.size < depth && this.#sendOne()) continue
        if (this.#active.size > 0) await Promise.race(this.#active.values())
      }
      if (this.#random.chance(30)) await Promise.all(this.#active.values())
    }
    await Promise.all(this.#active.values())
    await this.readAll()
  }

  /** Compares every sector with the shadow. */
  async readAll(): Promise<void> {
    const step = DIRECT_SEGMENTS * SECTORS_PER_PAGE
    for (let from = 0; from < this.#shadow.sectors; from += step) {
      const to = Math.min(this.#shadow.sectors, from + step)
      while (!this.#send(0, { kind: 'read', from, to, parts: this.#packed(to - from) })) {
        await Promise.race(this.#active.values())
      }
    }
    await Promise.all(this.#active.values())
  }

  /** What is sent next; false when there is no room for it now. */
  #sendOne(): boolean {
    const random = this.#random
    const ring = random.below(this.#epochs.length)
    if (!this.#disk.hasRoom(ring)) return false
    const kind = this.#kind()
    const draft = kind === 'discard' ? this.#discard() : this.#transfer(kind)
    if (draft === undefined || !this.#send(ring, draft)) return false
    if (kind === 'write' && random.chance(15)) this.#sendBehindBarrier(ring, draft)
    return true
  }

  /** A barrier, with or without data for the same place, and another request for it: all of them in flight at once. */
  #sendBehindBarrier(ring: number, { from, to, parts }: Draft): void {
    if (!this.#disk.frontend.properties.barrier) return
    const again = () => parts.map((part, i) => ({ ...part, page: this.#freePages.at(-1 - i)! }))
    const room = () => this.#freePages.length > parts.length
    const data = parts.length <= DIRECT_SEGMENTS && room() && this.#random.chance(50)
    const barrier = data ? { from, to, parts: again() } : { from: 0, to: 0, parts: [] }
    if (!this.#send(ring, { kind: 'barrier', ...barrier }) || !room()) return
    const kind = this.#random.chance(50) ? 'read' : 'write'
    this.#send(ring, { kind, from, to, parts: again() })
  }

  #kind(): Kind {
    const { readOnly, flush, barrier, discard } = this.#disk.frontend.properties
    const dice = this.#random.below(100)
    if (dice < 42) return 'read'
    if (readOnly) return dice < 92 ? 'read' : 'write'
    if (dice < 82) return 'write'
    if (dice < 87) return flush ? 'flush' : 'write'
    if (dice < 92) return barrier ? 'barrier' : 'write'
    return discard ? 'discard' : 'read'
  }

  /** Where so many sectors begin: at places that were used before, next to them, and anywhere. */
  #place(sectors: number): number | undefined {
    const random = this.#random
    const room = this.#shadow.sectors - sectors
    if (room < 0) return undefined
    const last = this.#history.at(-1 - random.below(20))
    const near = last !== undefined && random.chance(40)
    const end = random.chance(5) ? room : random.below(room + 1)
    const from = near ? (random.chance(50) ? last.from : last.to) : end
    const aligned = from - (from % this.#unit)
    return aligned > room ? room - (room % this.#unit) : aligned
  }

  #discard(): Draft | undefined {
    const most = this.#random.chance(5) ? this.#shadow.sectors : 64
    const length = 1 + this.#random.below(Math.ceil(most / this.#unit))
    const sectors = Math.min(length * this.#unit, this.#shadow.sectors)
    const from = this.#place(sectors)
    return from === undefined ? undefined : { kind: 'discard', from, to: from + sectors, parts: [] }
  }

  #transfer(kind: DataKind): Draft | undefined {
    const random = this.#random
    // Neither of them needs data.
    if ((kind === 'flush' || kind === 'barrier') && random.chance(50)) {
      return { kind, from: 0, to: 0, parts: [] }
    }
    const indirect = kind === 'read' || kind === 'write'
    const most = indirect ? this.#disk.maxSegments : DIRECT_SEGMENTS
    // Long ones fit best where nothing else is under way.
    const long = random.chance(this.#active.size === 0 ? 60 : 20) ? most : 8
    const count = 1 + random.below(random.pick([1, 2, 4, DIRECT_SEGMENTS, long]))
    if (count + 1 > this.#freePages.length) return undefined
    const parts = Array.from({ length: count }, (_, i) => this.#part(i))
    const sectors = parts.reduce((sum, { first, last }) => sum + last + 1 - first, 0)
    const from = this.#place(sectors)
    return from === undefined ? undefined : { kind, from, to: from + sectors, parts }
  }

  /** A part of the i-th of the free pages. */
  #part(i: number): Part {
    const random = this.#random
    const page = this.#freePages.at(-1 - i)!
    const units = SECTORS_PER_PAGE / this.#unit
    if (random.chance(60)) return { page, first: 0, last: SECTORS_PER_PAGE - 1 }
    const first = random.below(units)
    const length = 1 + random.below(units - first)
    return { page, first: first * this.#unit, last: (first + length) * this.#unit - 1 }
  }

  /** Whole pages, the last one in part. */
  #packed(sectors: number): Part[] {
    return Array.from({ length: Math.ceil(sectors / SECTORS_PER_PAGE) }, (_, i) => ({
      page: this.#freePages.at(-1 - i)!,
      first: 0,
      last: Math.min(SECTORS_PER_PAGE, sectors - i * SECTORS_PER_PAGE) - 1,
    }))
  }

  /** Whether the result is defined although `done` is not answered yet. */
  #agrees(draft: Draft, ring: number, done: Done): boolean {
    if (done.to <= draft.from || draft.to <= done.from) return true
    if (draft.kind === 'read' && done.kind === 'read') return true
    const unordered = done.ring !== ring || this.#conduct.mayFail(done.kind)
    if (unordered) return false
    return draft.kind === 'barrier' || this.#epochs[ring]! > done.epoch || done.kind === 'barrier'
  }

  #send(ring: number, draft: Draft): boolean {
    const active = [...this.#active.keys()]
    if (!this.#disk.hasRoom(ring)) return false
    if (draft.parts.length + 1 > this.#freePages.length) return false
    if (!active.every((done) => this.#agrees(draft, ring, done))) return false
    const overlaps = (done: Done) => done.from < draft.to && draft.from < done.to
    if (draft.kind !== 'read' && active.some(overlaps)) this.tally.overlapped++
    const { kind, from, to, parts } = draft
    const number = this.tally.requests++
    if (kind === 'barrier') this.#epochs[ring]!++
    const done: Done = {
      number,
      kind,
      ring,
      from,
      to,
      segments: parts.length,
      epoch: this.#epochs[ring]!,
    }
    this.tally.kinds[kind] = (this.tally.kinds[kind] ?? 0) + 1
    this.#history.push(done)
    this.#active.set(done, this.#perform(done, parts))
    this.tally.most = Math.max(this.tally.most, this.#active.size)
    return true
  }

  async #perform(done: Done, parts: readonly Part[]): Promise<void> {
    const pages = this.#freePages.splice(this.#freePages.length - parts.length, parts.length)
    const isData = done.kind === 'read' || done.kind === 'write'
    const indirect = parts.length > DIRECT_SEGMENTS || (isData && this.#random.chance(20))
    const canIndirect = this.#disk.frontend.properties.indirectSegments >= parts.length
    const table = indirect && canIndirect ? this.#freePages.pop() : undefined
    try {
      if (done.kind === 'read') await this.#read(done, parts, table)
      else if (done.kind === 'discard') await this.#change(done, undefined, () => this.#drop(done))
      else await this.#write(done, parts, table)
    } finally {
      this.#active.delete(done)
      this.#freePages.push(...pages, ...(table === undefined ? [] : [table]))
    }
  }

  #drop({ ring, from, to }: Done): Promise<boolean> {
    return this.#disk.discard(ring, from, to - from)
  }

  async #read(done: Done, parts: readonly Part[], table: number | undefined): Promise<void> {
    const expected = this.#shadow.expect(done)
    const before = parts.map(({ page }) => this.#fill(page, done, 0))
    const ok = await this.#disk.transfer(done.ring, 'read', done.from, parts, table)
    this.#answered(done, ok)
    for (const [i, { page, first, last }] of parts.entries()) {
      const now = this.#disk.bytes(page)
      const [begin, end] = [first * SECTOR, (last + 1) * SECTOR]
      const kept = now.subarray(0, begin).equals(before[i]!.subarray(0, begin))
      if (kept && now.subarray(end).equals(before[i]!.subarray(end))) continue
      throw this.#complaint(done, `wrote beyond sectors ${first} to ${last} of segment ${i}'s page`)
    }
    if (ok) this.#compare(done, expected, this.#gather(parts))
  }

  #compare(done: Done, expected: Expectation, found: Buffer): void {
    const wrong = firstWrong(expected, found)
    if (wrong === undefined) return
    const hex = (bytes: Buffer) =>
      bytes.subarray(wrong * SECTOR, wrong * SECTOR + 24).toString('hex')
    const sector = done.from + wrong
    const what = `sector ${sector} is ${hex(found)}..., not ${hex(expected.bytes)}...`
    throw this.#complaint(done, what, sector)
  }

  async #write(done: Done, parts: readonly Part[], table: number | undefined): Promise<void> {
    if (done.kind !== 'write' && done.kind !== 'flush' && done.kind !== 'barrier') return
    const { kind } = done
    const before = parts.map(({ page }, i) => this.#fill(page, done, i))
    if (this.#shadow.nature === 'compares' && this.#random.chance(50)) this.#repeat(done, parts)
    const data = this.#gather(parts)
    for (const [i, { page }] of parts.entries()) before[i] = Buffer.from(this.#disk.bytes(page))
    await this.#change(done, data, () =>
      this.#disk.transfer(done.ring, kind, done.from, parts, table),
    )
    for (const [i, { page }] of parts.entries()) {
      if (this.#disk.bytes(page).equals(before[i]!)) continue
      throw this.#complaint(done, `changed the page that segment ${i} was written from`)
    }
  }

  /** A change of the disk: in the shadow from the moment that it is sent. */
  async #change(done: Done, data: Buffer | undefined, send: () => Promise<boolean>): Promise<void> {
    const { readOnly } = this.#disk.frontend.properties
    const accepted = !readOnly && (data === undefined || this.#shadow.accepts(done, data))
    if (accepted && data !== undefined) this.#shadow.write(done, data)
    else if (accepted) this.#shadow.discard(done, this.#conduct.discards)
    const ok = await send()
    this.#answered(done, ok, accepted)
    if (!ok && accepted) this.#shadow.forget(done)
  }

  #answered(done: Done, ok: boolean, accepted = true): void {
    done.answer = ok ? 'ok' : 'error'
    if (!accepted && !ok) this.tally.refused++
    else if (!accepted)
      throw this.#complaint(done, 'was answered well, and should have been refused')
    else if (!ok && this.#conduct.mayFail(done.kind)) this.tally.failed++
    else if (!ok) throw this.#complaint(done, 'failed')
  }

  /** Makes a page's bytes new; a copy. What is written says which request it is of. */
  #fill(page: number, { number, from }: Done, segment: number): Buffer {
    const bytes = this.#disk.bytes(page)
    if (this.#random.chance(6)) bytes.fill(0)
    else {
      const at = this.#random.below(this.#pool.length - bytes.length)
      this.#pool.copy(bytes, 0, at, at + bytes.length)
      for (let i = 0; i < bytes.length; i += SECTOR) {
        bytes.writeUInt32LE(number, i)
        bytes.writeUInt32LE(from, i + 4)
        bytes.writeUInt32LE(segment, i + 8)
      }
    }
    return Buffer.from(bytes)
  }

  /** Has a write repeat what the disk holds. */
  #repeat({ from }: Done, parts: readonly Part[]): void {
    let at = from * SECTOR
    for (const { page, first, last } of parts) {
      const length = (last + 1 - first) * SECTOR
      this.#shadow.bytes.copy(this.#disk.bytes(page), first * SECTOR, at, at + length)
      at += length
    }
  }

  #gather(parts: readonly Part[]): Buffer {
    return Buffer.concat(
      parts.map(({ page, first, last }) =>
        this.#disk.bytes(page).subarray(first * SECTOR, (last + 1) * SECTOR),
      ),
    )
  }

  #complaint(done: Done, what: string, sector?: number): Error {
    const one = ({ number, kind, ring, from, to, segments, answer }: Done) =>
      `#${number} ${kind} of sectors ${from} to ${to} in ${segments} segments on ring ${ring}, ${answer ?? 'in flight'}`
    const touched = (other: Done) =>
      sector === undefined ? other === done : other.from <= sector && sector < other.to
    const earlier = this.#history.filter(touched).slice(-12).map(one)
    return new Error(`${one(done)}: ${what}\n  ${earlier.join('\n  ')}`)
  }
}
