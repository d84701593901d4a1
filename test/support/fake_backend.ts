/**
 * FakeBackend: a small, independent blkif backend that serves a Buffer to a FakeGuest, written from the protocol's
 * header and not from vbdkit's own. It plays the toolstack too. Deliberately plain: one request at a time, everything
 * synchronous but for the order of answers, which is shuffled on wish.
 */
import type { FakeGuest } from './fake_guest.js'
import type { FakeStore } from './fake_store.js'

const HEADER = 64

export interface FakeBackendOptions {
  readonly devid?: number
  /** Keys beside or instead of the usual ones; undefined takes one away. */
  readonly keys?: Record<string, string | undefined>
  readonly sectors?: number
  readonly sectorSize?: number
  readonly readOnly?: boolean
  /** Answer in another order than asked. */
  readonly shuffle?: boolean
  /** Changes an answer before it is written; undefined: the request is never answered. */
  readonly answer?: (answer: Answer) => Answer | Answer[] | undefined
  /** Told of every request that is consumed. */
  readonly onRequest?: (request: SeenRequest) => void
}

export interface Answer {
  id: bigint
  operation: number
  status: number
}

export interface SeenRequest {
  readonly queue: number
  readonly operation: number
  readonly innerOperation: number
  readonly id: bigint
  readonly sector: bigint
  readonly segments: number
  readonly bytes: number
}

interface Ring {
  readonly index: number
  readonly refs: number[]
  readonly port: number
  readonly base: number[]
  readonly entries: number
  reqCons: number
  rspProd: number
}

/** Persistent grants that this backend keeps mapped: reference → offset. */
type Kept = Map<number, number>

export class FakeBackend {
  readonly guest: FakeGuest
  readonly store: FakeStore
  readonly backendPath: string
  readonly frontendPath: string
  readonly options: FakeBackendOptions
  data: Buffer
  state = 0
  requests = 0
  flushes = 0
  discards: [number, number, boolean][] = []
  #rings: Ring[] = []
  #kept: Kept = new Map()
  #persistent = false
  #is32 = false
  #dead = false
  #held: (() => void)[] | undefined
  #busy: Promise<void> = Promise.resolve()
  #watch: { close(): Promise<void> } | undefined

  constructor(guest: FakeGuest, store: FakeStore, options: FakeBackendOptions = {}) {
    this.guest = guest
    this.store = store
    this.options = options
    const devid = options.devid ?? 51712
    this.backendPath = `/local/domain/0/backend/vbd/${guest.domid}/${devid}`
    this.frontendPath = `/local/domain/${guest.domid}/device/vbd/${devid}`
    this.data = Buffer.alloc((options.sectors ?? 2048) * 512)
  }

  /** The toolstack's part. */
  async attach(): Promise<void> {
    await this.#writeAll(this.backendPath, {
      frontend: this.frontendPath,
      'frontend-id': String(this.guest.domid),
      online: '1',
      state: '1',
      mode: this.options.readOnly ? 'r' : 'w',
    })
    await this.#writeAll(this.frontendPath, {
      backend: this.backendPath,
      'backend-id': '0',
      state: '1',
      'virtual-device': String(this.options.devid ?? 51712),
    })
  }

  /** The toolstack's end of it. */
  async detach(): Promise<void> {
    await this.store.remove(this.frontendPath)
    await this.store.remove(this.backendPath)
  }

  async start(): Promise<void> {
    await this.advertise()
    this.#watch = await this.store.watch(`${this.frontendPath}/state`, () => {
      this.#busy = this.#busy.then(() => this.#frontChanged()).catch((error) => this.#fail(error))
    })
  }

  failure: unknown

  #fail(error: unknown): void {
    this.failure = error
    throw error
  }

  async #writeAll(path: string, keys: Record<string, string | undefined>): Promise<void> {
    for (const [name, value] of Object.entries(keys)) {
      if (value !== undefined) await this.store.write(`${path}/${name}`, value)
    }
  }

  async advertise(): Promise<void> {
    await this.#writeAll(this.backendPath, this.keys())
    await this.setState(2)
  }

  keys(): Record<string, string | undefined> {
    const { sectorSize = 512, readOnly = false } = this.options
    return {
      sectors: String(this.data.length / 512),
      'sector-size': String(sectorSize),
      info: readOnly ? '4' : '0',
      'feature-flush-cache': '1',
      'feature-barrier': '1',
      'feature-discard': '1',
      'discard-granularity': '512',
      'discard-secure': '1',
      'feature-persistent': '1',
      'feature-max-indirect-segments': '256',
      'max-ring-page-order': '4',
      'multi-queue-max-queues': '4',
      ...this.options.keys,
    }
  }

  async setState(state: number): Promise<void> {
    this.state = state
    if ((await this.store.tryRead(`${this.backendPath}/state`)) === undefined) return
    await this.store.write(`${this.backendPath}/state`, String(state))
  }

  async #front(key: string): Promise<string | undefined> {
    return await this.store.tryRead(`${this.frontendPath}/${key}`)
  }

  async #frontChanged(): Promise<void> {
    if (this.#dead) return
    const front = Number((await this.#front('state')) ?? '0')
    const online = (await this.store.tryRead(`${this.backendPath}/online`)) === '1'
    if ((front === 3 || front === 4) && this.state === 2) {
      await this.#connect()
      await this.setState(4)
    } else if (front === 5 && this.state !== 5) await this.setState(5)
    else if ((front === 6 || front === 0) && this.state !== 6) {
      this.#disconnect()
      await this.setState(6)
    } else if (front !== 0 && front < 5 && this.state === 6 && online) {
      await this.advertise()
      if (front !== 1) await this.#frontChanged()
    }
  }

  async #connect(): Promise<void> {
    this.#is32 = (await this.#front('protocol')) === 'x86_32-abi'
    const wants = (await this.#front('feature-persistent')) === '1'
    this.#persistent = wants && this.keys()['feature-persistent'] === '1'
    const order = Number((await this.#front('ring-page-order')) ?? '0')
    const queues = Number((await this.#front('multi-queue-num-queues')) ?? '1')
    for (let q = 0; q < queues; q++) {
      const dir = queues > 1 ? `queue-${q}/` : ''
      const refs: number[] = []
      for (let k = 0; k < 1 << order; k++) {
        const key = order === 0 ? 'ring-ref' : `ring-ref${k}`
        refs.push(Number(await this.#front(dir + key)))
      }
      const port = Number(await this.#front(`${dir}event-channel`))
      const base = refs.map((ref) => this.guest.map(ref, true))
      const entries = 32 << order
      const ring: Ring = { index: q, refs, port, base, entries, reqCons: 0, rspProd: 0 }
      this.#rings.push(ring)
      this.guest.bind(port, () => this.#serve(ring))
    }
  }

  #disconnect(): void {
    for (const ring of this.#rings) {
      for (const ref of ring.refs) this.guest.unmap(ref)
      this.guest.unbind(ring.port)
    }
    for (const ref of this.#kept.keys()) this.guest.unmap(ref)
    this.#kept.clear()
    this.#rings = []
  }

  /** As `kill -9`: the store is left as it is, the hypervisor takes the mappings away. */
  async die(): Promise<void> {
    this.#dead = true
    this.#disconnect()
    await this.#watch?.close()
  }

  /** Closes from the backend's side, as a stopping daemon does. */
  async close(online = true): Promise<void> {
    if (!online) await this.store.write(`${this.backendPath}/online`, '0')
    await this.setState(5)
  }

  async resize(sectors: number): Promise<void> {
    const data = Buffer.alloc(sectors * 512)
    this.data.copy(data)
    this.data = data
    await this.store.write(`${this.backendPath}/sectors`, String(sectors))
    await this.store.write(`${this.backendPath}/state`, '4')
  }

  /** Keeps answers back until release(). */
  hold(): void {
    this.#held = []
  }

  release(): void {
    const held = this.#held ?? []
    this.#held = undefined
    for (const answer of held) answer()
  }

  get mem(): DataView {
    return new DataView(this.guest.native.memory)
  }

  /** Ring pages need not be adjacent for a backend: every byte is found through its page. */
  #at(ring: Ring, offset: number): number {
    return ring.base[Math.floor(offset / 4096)]! + (offset % 4096)
  }

  #word(ring: Ring, index: number): Int32Array {
    return new Int32Array(this.guest.native.memory, ring.base[0]! + 4 * index, 1)
  }

  #slot(ring: Ring, index: number): Buffer {
    const stride = this.#is32 ? 108 : 112
    const start = HEADER + (index & (ring.entries - 1)) * stride
    const copy = Buffer.alloc(stride)
    const memory = new Uint8Array(this.guest.native.memory)
    for (let i = 0; i < stride; i++) copy[i] = memory[this.#at(ring, start + i)]!
    return copy
  }

  #serve(ring: Ring): void {
    if (this.#dead || !this.#rings.includes(ring)) return
    const answers: (() => void)[] = []
    for (;;) {
      const prod = Atomics.load(this.#word(ring, 0), 0) >>> 0
      if ((prod - ring.rspProd) >>> 0 > ring.entries) {
        this.failure = new Error('request overflow')
        return
      }
      while (ring.reqCons !== prod) {
        const slot = this.#slot(ring, ring.reqCons)
        ring.reqCons = (ring.reqCons + 1) >>> 0
        answers.push(this.#execute(ring, slot))
      }
      Atomics.store(this.#word(ring, 1), 0, (ring.reqCons + 1) | 0)
      if (Atomics.load(this.#word(ring, 0), 0) >>> 0 === ring.reqCons) break
    }
    if (this.options.shuffle) answers.sort(() => Math.random() - 0.5)
    if (answers.length === 0) return
    const flush = () => {
      if (this.#dead || !this.#rings.includes(ring)) return
      for (const answer of answers) answer()
      this.#push(ring)
    }
    if (this.#held !== undefined) this.#held.push(flush)
    else setImmediate(flush)
  }

  #execute(ring: Ring, slot: Buffer): () => void {
    this.requests++
    const wide = !this.#is32
    const operation = slot[0]!
    const id = slot.readBigUInt64LE(wide ? 8 : 4)
    const sector = slot.readBigUInt64LE(wide ? 16 : 12)
    const rest = wide ? 24 : 20
    const indirect = operation === 6
    const inner = indirect ? slot[1]! : operation
    const segments = this.#segments(slot, operation, rest, wide)
    const bytes = segments.reduce((sum, [, first, last]) => sum + (last - first + 1) * 512, 0)
    const count = segments.length
    this.options.onRequest?.({
      queue: ring.index,
      operation,
      innerOperation: inner,
      id,
      sector,
      segments: count,
      bytes,
    })
    let status = 0
    if (operation === 5) {
      const sectors = Number(slot.readBigUInt64LE(rest))
      this.discards.push([Number(sector), sectors, (slot[1]! & 1) === 1])
      this.data.fill(0, Number(sector) * 512, (Number(sector) + sectors) * 512)
    } else if (operation > 6 || operation === 4) status = -2
    else status = this.#transfer(inner, Number(sector) * 512, segments)
    if (inner === 3 || inner === 2) this.flushes++
    return () => this.#respond(ring, { id, operation: inner, status })
  }

  #segments(slot: Buffer, operation: number, rest: number, wide: boolean) {
    const found: [number, number, number][] = []
    if (operation === 6) {
      const count = slot.readUInt16LE(2)
      for (let i = 0; i < count; i++) {
        const ref = slot.readUInt32LE((wide ? 28 : 24) + 4 * Math.floor(i / 512))
        const at = this.guest.map(ref, false) + 8 * (i % 512)
        found.push([
          this.mem.getUint32(at, true),
          this.mem.getUint8(at + 4),
          this.mem.getUint8(at + 5),
        ])
        this.#letGo(ref)
      }
    } else if (operation <= 3) {
      for (let i = 0; i < slot[1]!; i++) {
        const at = rest + 8 * i
        found.push([slot.readUInt32LE(at), slot[at + 4]!, slot[at + 5]!])
      }
    }
    return found
  }

  /** With persistent grants a reference stays mapped, as the protocol promises the guest. */
  #letGo(ref: number): void {
    if (!this.#persistent) this.guest.unmap(ref)
    else if (this.#kept.has(ref)) this.guest.unmap(ref)
    else this.#kept.set(ref, 0)
  }

  #transfer(operation: number, offset: number, segments: [number, number, number][]): number {
    let at = offset
    const memory = Buffer.from(this.guest.native.memory)
    for (const [ref, first, last] of segments) {
      if (first > last || last > 7) return -1
      const length = (last - first + 1) * 512
      if (at + length > this.data.length) return -1
      const read = operation === 0
      const page = this.guest.map(ref, read || this.#persistent)
      const start = page + first * 512
      if (read) this.data.copy(memory, start, at, at + length)
      else memory.copy(this.data, at, start, start + length)
      this.#letGo(ref)
      at += length
    }
    return 0
  }

  #respond(ring: Ring, plain: Answer): void {
    const changed = this.options.answer ? this.options.answer(plain) : plain
    for (const { id, operation, status } of changed === undefined ? [] : [changed].flat()) {
      const stride = this.#is32 ? 108 : 112
      const start = HEADER + (ring.rspProd & (ring.entries - 1)) * stride
      const at = this.#at(ring, start)
      this.mem.setBigUint64(at, id, true)
      this.mem.setUint8(at + 8, operation)
      this.mem.setInt16(at + 10, status, true)
      ring.rspProd = (ring.rspProd + 1) >>> 0
    }
  }

  #push(ring: Ring): void {
    const old = Atomics.load(this.#word(ring, 2), 0) >>> 0
    Atomics.store(this.#word(ring, 2), 0, ring.rspProd | 0)
    const event = Atomics.load(this.#word(ring, 3), 0) >>> 0
    if ((ring.rspProd - event) >>> 0 < (ring.rspProd - old) >>> 0) this.guest.notifyGuest(ring.port)
  }

  /** Moves `rsp_prod` of a ring to where no request is. */
  overrun(queue: number, by: number): void {
    const ring = this.#rings[queue]!
    ring.rspProd = (ring.rspProd + by) >>> 0
    this.#push(ring)
  }
}
