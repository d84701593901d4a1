/**
 * Twins: both engines side by side on one mock, each with a guest and a disk of its own. They are asked the same,
 * step by step, and compared after each: responses, the guests' memory, grants held, what the engines tell of the
 * disk; at the end also statistics and the bytes on the disks. A difference is thrown as a Disagreement.
 */
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import type { DiskSpec } from '../../lib/disk/spec.js'
import {
  DEFAULT_TUNABLES,
  type Engine,
  type EngineDisk,
  type EngineEvent,
  type EngineVbd,
  type XenConnection,
} from '../../lib/engine/engine.js'
import { createJsEngine } from '../../lib/engine/js/engine.js'
import { loadAddon } from '../../lib/engine/load_addon.js'
import { createNativeEngine, openMockXen } from '../../lib/engine/native.js'
import { MockHost } from '../../lib/mock/mock_host.js'
import { LAYOUTS, PAGE_BYTES, type WireResponse } from '../../lib/testing/wire.js'
import { diskFolder, tmpfsFolder } from '../support/product_world.js'
import { comparable } from './comparable.js'
import { Random } from './random.js'
import { expand, type Place, type Share } from './requests.js'
import type { Setting, Step, Stream, Way } from './stream.js'
import { DATA, DATA_PAGES, isReadOnly, refOf, TABLES, TwinGuest } from './twin_guest.js'

const PATIENCE_MS = 60_000
/** Requests in flight together, at most, by the way they are; a ring may hold fewer. */
const TOGETHER: Readonly<Record<Way, number>> = {
  alone: 1,
  barriers: 8,
  apart8: 8,
  apart32: 32,
  apart64: 64,
  sources: 64,
  range: 64,
}
/** A part of the disk or of the pages that is all of it. */
const WHOLE: Share = { index: 0, of: 1 }
const FIRST_SECTORS = 128 * 8

/** The engines did not do the same. */
export class Disagreement extends Error {}

interface Side {
  readonly name: 'native' | 'js'
  readonly engine: Engine
}

/** One engine's part in a stream. */
interface Half {
  readonly side: Side
  readonly guest: TwinGuest
  readonly disk: EngineDisk
  readonly vbd: EngineVbd
  readonly events: EngineEvent[]
  readonly path: string | undefined
}

export class Twins {
  /** Requests that both engines were asked so far. */
  requests = 0
  readonly #mock: MockHost
  readonly #xens: XenConnection[]
  readonly #sides: readonly [Side, Side]
  readonly #folders: Record<'disk' | 'tmpfs', string>
  #nextDomid = 1

  static async open(): Promise<Twins> {
    const addon = loadAddon()
    const mock = await MockHost.start({ broker: addon.startMockBroker.bind(addon) })
    const tunables = { ...DEFAULT_TUNABLES, pollUs: 200 }
    const xens = [openMockXen(mock.paths.xen), openMockXen(mock.paths.xen)] as const
    const native = createNativeEngine({ xen: xens[0], reactors: 1, tunables, name: 'twin' })
    const js = createJsEngine({ xen: xens[1], tunables, io: 'fs' })
    return new Twins(
      mock,
      [...xens],
      [
        { name: 'native', engine: native },
        { name: 'js', engine: js },
      ],
    )
  }

  private constructor(mock: MockHost, xens: XenConnection[], sides: readonly [Side, Side]) {
    this.#mock = mock
    this.#xens = xens
    this.#sides = sides
    this.#folders = {
      disk: mkdtempSync(join(diskFolder(), 'vbdkit-twins-')),
      tmpfs: mkdtempSync(join(tmpfsFolder(), 'vbdkit-twins-')),
    }
  }

  async close(): Promise<void> {
    for (const { engine } of this.#sides) await engine.close()
    for (const xen of this.#xens) xen.close()
    await this.#mock.close()
    for (const folder of Object.values(this.#folders)) rmSync(folder, { recursive: true })
  }

  /**
   * Runs a stream on both.
   *
   * @throws Disagreement
   */
  async run({ setting, steps }: Stream): Promise<void> {
    const halves = [
      await this.#begin(this.#sides[0], setting),
      await this.#begin(this.#sides[1], setting),
    ] as const
    const run = new Run(halves, setting, this.#mock)
    try {
      await run.connect()
      for (const step of steps) await run.step(step)
      await run.finish()
    } finally {
      this.requests += run.requests
      for (const half of halves) {
        await half.vbd.close()
        await half.disk.close()
        half.guest.close()
        if (half.path !== undefined) rmSync(half.path)
      }
    }
  }

  async #begin(side: Side, setting: Setting): Promise<Half> {
    const domid = this.#nextDomid
    this.#nextDomid = (this.#nextDomid % 30_000) + 1
    const guest = new TwinGuest(loadAddon(), this.#mock.paths.xen, domid)
    const path = this.#pathFor(side, setting)
    const disk = await side.engine.openDisk(specOf(setting, path))
    const events: EngineEvent[] = []
    const { info } = disk
    const vbd = side.engine.createVbd({
      name: `${domid}:51712`,
      disk,
      features: {
        transfer: setting.transfer,
        maxIndirectSegments: setting.maxIndirectSegments,
        flush: setting.flush && info.canFlush,
        barrier: setting.barrier,
        discard: setting.discard && info.canDiscard,
        secureDiscard: info.canSecureDiscard,
        readOnly: setting.readOnly,
        onFlushFailure: 'hold',
      },
      tunables: {
        ...DEFAULT_TUNABLES,
        pollUs: 200,
        maxPersistentGrants: setting.maxPersistentGrants,
        maxInFlightBytes: setting.maxInFlightBytes,
      },
      onEvent: (event) => void events.push(event),
    })
    return { side, guest, disk, vbd, events, path }
  }

  #pathFor({ name }: Side, { disk }: Setting): string | undefined {
    if (disk === 'memory' || disk === 'null') return undefined
    const path = join(this.#folders[disk === 'tmpfs' ? 'tmpfs' : 'disk'], name)
    writeFileSync(path, '')
    truncateSync(path, FIRST_SECTORS * 512)
    return path
  }
}

function specOf({ disk, sectorSize }: Setting, path: string | undefined): DiskSpec {
  const sizeBytes = FIRST_SECTORS * 512
  if (path === undefined) return { driver: disk as 'memory' | 'null', sizeBytes, sectorSize }
  const io = disk === 'file-uring' ? 'uring' : 'sync'
  return { driver: 'file', path, io, direct: false, sectorSize }
}

/** One stream under way. */
class Run {
  requests = 0
  readonly #halves: readonly [Half, Half]
  readonly #setting: Setting
  readonly #mock: MockHost
  #sectors = FIRST_SECTORS

  constructor(halves: readonly [Half, Half], setting: Setting, mock: MockHost) {
    this.#halves = halves
    this.#setting = setting
    this.#mock = mock
  }

  async connect(): Promise<void> {
    const { protocol, persistent } = this.#setting
    await this.#both('the transfer', async ({ vbd, guest }) => {
      const rings = guest.layOut(this.#setting)
      return await vbd.connect({ domid: guest.domid, protocol, rings, persistent })
    })
  }

  async step(step: Step): Promise<void> {
    switch (step.kind) {
      case 'requests':
        await this.#ask(step.ring % this.#setting.rings, step.way, step.seeds)
        break
      case 'regrant':
        await this.#regrant(step.seed)
        break
      case 'resize':
        await this.#resize(step.sectors)
        break
      case 'reconnect':
        await this.#disconnect()
        await this.connect()
        break
      case 'jump':
        await this.#jump(step.by)
    }
    await this.#compareState()
  }

  /** Reads the whole disk through each guest, then compares what is left to compare. */
  async finish(): Promise<void> {
    for (let sector = 0; sector < this.#sectors; sector += 11 * 8) await this.#readBack(sector)
    await this.#compareState()
    await this.#disconnect()
    await this.#both('the bytes on the disk', ({ path }) =>
      path === undefined ? '' : readFileSync(path).toString('latin1'),
    )
    await this.#both('the statistics', ({ vbd }) => comparable(vbd.counters(), this.#setting))
    await this.#both('the events', ({ events }) => events)
  }

  async #ask(ring: number, asked: Way, seeds: readonly number[]): Promise<void> {
    const { barrier, readOnly, ringPages } = this.#setting
    // One that is refused puts nothing in order.
    const way = asked === 'barriers' && (!barrier || readOnly) ? 'alone' : asked
    const slots = way === 'barriers' ? 2 : 1
    const room = Math.min(TOGETHER[way], (ringPages === 1 ? 32 : 32 * ringPages) / slots)
    for (let first = 0; first < seeds.length; first += room) {
      await this.#publish(ring, way, seeds.slice(first, first + room))
    }
  }

  async #publish(ring: number, way: Way, seeds: readonly number[]): Promise<void> {
    let table = 0
    for (const [i, seed] of seeds.entries()) {
      const { slot, tables } = expand(seed, this.#place(way, i), table)
      for (const { guest } of this.#halves) {
        for (const [page, bytes] of tables.entries()) {
          guest.bytes.set(bytes, (TABLES + table + page) * PAGE_BYTES)
        }
        guest.bytes.set(slot, guest.rings[ring]!.reserve())
        if (way === 'barriers') guest.bytes.set(this.#barrier(), guest.rings[ring]!.reserve())
      }
      table += tables.length
    }
    await this.#answers(ring, way === 'barriers' ? 2 * seeds.length : seeds.length)
  }

  #place(way: Way, index: number): Place {
    const { protocol, sectorSize, maxIndirectSegments } = this.#setting
    const own = { index, of: TOGETHER[way] }
    const shared = way === 'alone' || way === 'barriers'
    return {
      layout: LAYOUTS[protocol],
      diskSectors: this.#sectors,
      sectorSize,
      maxIndirectSegments,
      disk: shared || way === 'range' ? WHOLE : own,
      pages: shared || way === 'sources' ? WHOLE : own,
      ...(way === 'range' ? { only: 'reads' } : way === 'sources' ? { only: 'writes' } : {}),
      wildRefs: this.#timeless,
    }
  }

  /** Of nothing: what was published before it is done before what comes after it begins. */
  #barrier(): Uint8Array {
    const slot = new Uint8Array(LAYOUTS[this.#setting.protocol].stride)
    slot[0] = 2
    return slot
  }

  async #answers(ring: number, count: number): Promise<void> {
    this.requests += count
    for (const { guest } of this.#halves) guest.publish(ring)
    const taken: WireResponse[][] = [[], []]
    const deadline = Date.now() + PATIENCE_MS
    for (;;) {
      for (const [i, { guest }] of this.#halves.entries()) guest.take(ring, taken[i]!)
      if (taken.every((responses) => responses.length >= count)) break
      if (Date.now() > deadline) {
        const counts = taken.map((responses) => responses.length)
        throw new Disagreement(`of ${count} requests native answered ${counts[0]}, js ${counts[1]}`)
      }
      await new Promise((resolve) => setImmediate(resolve))
    }
    const [native, js] = taken.map((responses) => responses.map(responseText).sort())
    this.#same('the responses', native, js)
  }

  async #readBack(sector: number): Promise<void> {
    const pages = Math.min(11, (this.#sectors - sector) / 8)
    const { protocol } = this.#setting
    const layout = LAYOUTS[protocol]
    for (const { guest } of this.#halves) {
      const at = guest.rings[0]!.reserve()
      guest.view.setUint8(at + 1, pages)
      guest.view.setBigUint64(at + layout.sector, BigInt(sector), true)
      let page = DATA
      for (let i = 0; i < pages; i++, page++) {
        while (isReadOnly(page)) page++
        guest.view.setUint32(at + layout.segments + 8 * i, refOf(page), true)
        guest.view.setUint8(at + layout.segments + 8 * i + 5, 7)
      }
    }
    await this.#answers(0, 1)
    await this.#compareState()
  }

  async #regrant(seed: number): Promise<void> {
    const ended = this.#halves.map(({ guest }) => regrant(guest, seed))
    if (this.#timeless) this.#same('ending a grant', ended[0], ended[1])
  }

  /** With a small cache of grants, which page is held when is a matter of the clock. */
  get #timeless(): boolean {
    const { maxPersistentGrants: cap } = this.#setting
    return cap === 0 || cap >= DATA_PAGES * 2
  }

  async #resize(sectors: number): Promise<void> {
    this.#sectors = sectors
    await this.#both('the disk after a resize', async ({ disk }) => {
      const { description: _ours, ...info } = await disk.resize(sectors * 512)
      return info
    })
  }

  async #disconnect(): Promise<void> {
    await this.#both('whether everything was answered', ({ vbd }) => vbd.disconnect())
    await this.#both('what is left after a disconnect', ({ guest }) => this.#held(guest))
  }

  async #jump(by: number): Promise<void> {
    const before = this.#halves.map(({ events }) => events.length)
    for (const { guest } of this.#halves) {
      const ring = guest.rings[0]!
      ring.overwrite({ reqProd: (ring.indices().reqProd + by) >>> 0 })
      guest.native.notify(guest.ports[0]!)
    }
    const deadline = Date.now() + PATIENCE_MS
    while (this.#halves.some(({ events }, i) => events.length === before[i])) {
      if (Date.now() > deadline) throw new Disagreement('a ring was not found corrupt')
      await new Promise((resolve) => setImmediate(resolve))
    }
    await this.#disconnect()
    await this.connect()
  }

  async #compareState(): Promise<void> {
    const [native, js] = this.#halves
    if (Buffer.compare(native.guest.data(), js.guest.data()) !== 0) {
      throw new Disagreement(`the guests' memory differs: ${firstDifference(native, js)}`)
    }
    if (!this.#timeless) return
    await this.#both('the grants held', ({ guest }) => this.#held(guest))
  }

  #held(guest: TwinGuest): unknown {
    const domain = this.#mock.domains().find(({ domid }) => domid === guest.domid)
    return { mapped: domain?.grantsMapped, bound: domain?.portsBound }
  }

  async #both(what: string, ask: (half: Half) => unknown): Promise<void> {
    const [native, js] = await Promise.all(this.#halves.map(async (half) => await ask(half)))
    this.#same(what, native, js)
  }

  #same(what: string, native: unknown, js: unknown): void {
    if (isDeepStrictEqual(native, js)) return
    const text = (value: unknown) => JSON.stringify(value)?.slice(0, 1500)
    throw new Disagreement(`${what}: native ${text(native)}, js ${text(js)}`)
  }
}

/** Ends a grant, and gives the reference to the same page again, to be read only or not as before. */
function regrant(guest: TwinGuest, seed: number): boolean {
  const page = DATA + new Random(seed).below(DATA_PAGES)
  const ended = guest.native.endAccess(refOf(page))
  if (ended) guest.native.grant(refOf(page), page, 0, isReadOnly(page))
  return ended
}

function responseText({ id, operation, status }: WireResponse): string {
  return `${id.hi.toString(16)}:${id.lo.toString(16)} operation ${operation} status ${status}`
}

function firstDifference({ guest: a }: Half, { guest: b }: Half): string {
  const ours = a.data()
  const theirs = b.data()
  const at = ours.findIndex((byte, i) => byte !== theirs[i])
  return `page ${DATA + Math.floor(at / PAGE_BYTES)}, byte ${at % PAGE_BYTES}: native ${ours[at]}, js ${theirs[at]}`
}
