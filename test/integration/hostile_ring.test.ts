/**
 * Hostile guests on their rings: indices that jump, requests that lie, pages that are not theirs, events for nothing,
 * death in the middle. Each request gets its one right answer and is counted, each ring that breaks is given up with one
 * line, the process lives, and the neighbour's verified I/O notices nothing.
 */
import { readFileSync } from 'node:fs'
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { file, memory } from '../../lib/disk/drivers.js'
import type { Protocol, Transfer } from '../../lib/engine/engine.js'
import { VbdError } from '../../lib/errors.js'
import type { WireRequest } from '../../lib/testing/wire.js'
import { Neighbour, reactorSeconds, VICTIM_SECTORS, Victim } from '../support/product_hostile.js'
import { Random } from '../support/product_verify.js'
import { MIB, World } from '../support/product_world.js'

const OKAY = 0
const ERROR = -1
const UNSUPPORTED = -2

let world: World
let neighbour: Neighbour
let victim: Victim

beforeAll(async () => {
  world = await World.open({ reactors: 2 })
  neighbour = await Neighbour.movesIn(world)
})
afterEach(async () => {
  await victim.leaves()
  await neighbour.goesOn()
  // A guest's mistakes are no line at all, or few of them.
  expect(world.said.warnings.splice(0).length).toBeLessThanOrEqual(10)
  expect(world.said.errors.splice(0).length).toBeLessThanOrEqual(1)
})
afterAll(async () => {
  await neighbour.movesOut()
  await world.close()
})

/** Bends one byte of a request. */
function put(at: number, value: number): (slot: Uint8Array) => void {
  return (slot) => {
    slot[at] = value
  }
}

describe('ring indices', () => {
  beforeEach(async () => {
    victim = await Victim.connected(world)
  })

  it.each([
    ['one too many', 33],
    ['twice as many', 64],
    ['half of all numbers', 0x8000_0000],
    ['one backwards', 0xffff_ffff],
    ['a ring backwards', 0xffff_ffe0],
  ])('a producer that is %s ahead stops the ring for good, in one line', async (_, by) => {
    await victim.works()
    const ring = victim.hostile.ring()
    const { requests } = victim.vbd.stats().read
    victim.hostile.jump(by)
    for (let i = 0; i < 200 && victim.frontend.queues.length > 0; i++) {
      victim.hostile.jump(i)
      await turn()
    }
    await victim.expectGivenUp()
    expect(world.said.errors).toEqual([expect.stringContaining('ring 0 is corrupt')])
    const start = reactorSeconds()
    for (let i = 0; i < 1000; i++) ring.overwrite({ reqProd: i * 7 })
    await sleep(200)
    expect(reactorSeconds() - start, 'a broken ring must not be spun on').toBeLessThan(0.19)
    expect(victim.vbd.stats().read.requests).toBe(requests)
  })

  it('indices that are the backend’s own are never believed', async () => {
    const random = new Random(5)
    const segment = victim.segment()
    for (let i = 1; i <= 200; i++) {
      const wild = () => random.below(2) * random.below(2 ** 31)
      victim.hostile.overwrite({ rspProd: wild(), reqEvent: wild() })
      victim.hostile.send(victim.request('read', [segment]))
      victim.hostile.notify()
      await vi.waitFor(() => expect(victim.hostile.ring().indices().rspProd).toBe(i), {
        timeout: 10_000,
        interval: 0,
      })
      victim.hostile.ring().take()
    }
    expect(victim.vbd.stats().read.requests).toBe(200)
    expect(victim.vbd.state).toBe('Connected')
  })

  it('a ring that nobody reads the answers of is full, and waits', async () => {
    const segment = victim.segment()
    const { entries } = victim.hostile.ring()
    for (let i = 0; i < entries; i++) victim.hostile.send(victim.request('read', [segment]))
    await vi.waitFor(() => expect(victim.hostile.ring().indices().rspProd).toBe(entries), {
      timeout: 10_000,
    })
    const start = reactorSeconds()
    await sleep(200)
    expect(reactorSeconds() - start).toBeLessThan(0.19)
    expect((await victim.hostile.responses(entries)).every(({ status }) => status === OKAY)).toBe(
      true,
    )
    await victim.works()
  })
})

describe.each<[Protocol, Transfer]>([
  ['x86_64-abi', 'persistent'],
  ['x86_32-abi', 'copy'],
  ['x86_64-abi', 'map'],
])('requests, %s, %s', (protocol, transfer) => {
  beforeEach(async () => {
    victim = await Victim.connected(world, { serve: { transfer }, front: { protocol } })
  })

  async function indirect(change: (slot: Uint8Array) => void, segmentCount = 12, refs?: number[]) {
    const table = victim.hostile.grant()
    const data = victim.segment()
    const view = new DataView(victim.hostile.page(table.page).buffer, table.page * 4096, 4096)
    for (let i = 0; i < 512; i++) {
      view.setUint32(8 * i, data.ref, true)
      view.setUint8(8 * i + 5, 7)
    }
    const request: WireRequest = {
      operation: 'indirect',
      indirectOperation: 'read',
      handle: 0,
      id: victim.nextId(),
      sector: 0,
      segmentCount,
      indirectRefs: refs ?? [table.ref],
    }
    return await victim.answer(request, change)
  }

  it('indirect: counts and operations that cannot be', async () => {
    const nothing = () => {}
    expect(await indirect(nothing)).toBe(OKAY)
    for (const count of [0, 257, 512, 4097, 65535])
      expect(await indirect(nothing, count), `${count} segments`).toBe(ERROR)
    for (const inner of [2, 3, 5, 6, 7, 255]) {
      expect(await indirect(put(1, inner)), `inner operation ${inner}`).toBe(ERROR)
    }
    expect(victim.rejected('segment-count')).toBe(5)
    expect(victim.rejected('indirect-operation')).toBe(6)
    for (const { ref, why } of victim.hostile.badRefs())
      expect(await indirect(nothing, 12, [ref]), why).toBe(ERROR)
    await victim.works()
  })

  it('indirect: descriptors that change while they are read', async () => {
    const table = victim.hostile.grant()
    const data = victim.hostile.grant()
    const bytes = victim.hostile.page(table.page)
    const view = new DataView(bytes.buffer, bytes.byteOffset, 4096)
    const seen = new Set<number>()
    for (let round = 0; round < 100; round++) {
      for (let i = 0; i < 256; i++) {
        view.setUint32(8 * i, data.ref, true)
        view.setUint16(8 * i + 4, 0x0700, true)
      }
      victim.hostile.send({
        operation: 'indirect',
        indirectOperation: round % 2 === 0 ? 'read' : 'write',
        handle: 0,
        id: victim.nextId(),
        sector: 0,
        segmentCount: 256,
        indirectRefs: [table.ref],
      })
      for (let i = 0; i < 2000; i++) {
        const at = 8 * (255 - (i % 256))
        view.setUint16(at + 4, i % 3 === 0 ? 0x0700 : 0xff00 + (i & 0xff), true)
        view.setUint32(at, i % 5 === 0 ? 0xffff_ffff : data.ref, true)
      }
      const [response] = await victim.hostile.responses(1)
      expect([OKAY, ERROR]).toContain(response!.status)
      seen.add(response!.status)
    }
    expect(seen.size).toBeGreaterThan(0)
    await victim.works()
  })

  it('more segments than a slot has, and sectors beyond the page', async () => {
    const segment = victim.segment()
    for (const count of [0, 12, 13, 128, 255]) {
      const request = victim.request('write', [segment])
      expect(await victim.answer(request, put(1, count)), `${count} segments`).toBe(ERROR)
    }
    expect(victim.rejected('segment-count')).toBe(5)
    let wrong = 0
    for (let first = 0; first < 256; first += first < 8 ? 1 : 31) {
      for (let last = 0; last < 256; last += last < 8 ? 1 : 31) {
        const status = await victim.answer(victim.request('read', [{ ...segment, first, last }]))
        const right = first <= last && last <= 7
        expect(status, `sectors ${first} to ${last}`).toBe(right ? OKAY : ERROR)
        if (!right) wrong++
      }
    }
    expect(victim.rejected('segment-bounds')).toBe(wrong)
    await victim.works()
  })

  it('sectors that wrap around', async () => {
    const segment = victim.segment()
    const sectors = [
      VICTIM_SECTORS,
      VICTIM_SECTORS - 7,
      2n ** 32n,
      2n ** 55n - 8n,
      2n ** 55n,
      2n ** 63n,
      2n ** 64n - 8n,
      2n ** 64n - 1n,
    ]
    for (const sector of sectors) {
      for (const operation of ['read', 'write', 'barrier', 'flush'] as const) {
        expect(
          await victim.answer(victim.request(operation, [segment], sector)),
          `${operation} at ${sector}`,
        ).toBe(ERROR)
      }
      const discard: WireRequest = {
        operation: 'discard',
        handle: 0,
        id: victim.nextId(),
        sector,
        sectors: 8,
      }
      expect(await victim.answer(discard), `discard at ${sector}`).toBe(ERROR)
    }
    expect(victim.rejected('range')).toBe(sectors.length * 5)
    expect(await victim.answer(victim.request('read', [segment], VICTIM_SECTORS - 8))).toBe(OKAY)
    await victim.works()
  })

  it('operations that do not exist', async () => {
    const segment = victim.segment()
    for (const operation of [4, 7, 8, 64, 128, 255]) {
      const request = victim.request('read', [segment])
      expect(await victim.answer(request, put(0, operation))).toBe(UNSUPPORTED)
    }
    expect(victim.rejected('unknown-operation')).toBe(6)
    await victim.works()
  })

  it('pages that are not the guest’s to give, one among many', async () => {
    const good = victim.segment()
    for (const { ref, why } of victim.hostile.badRefs()) {
      for (const at of [0, 5, 10]) {
        const segments = Array.from({ length: 11 }, (_, i) => (i === at ? { ...good, ref } : good))
        expect(await victim.answer(victim.request('write', segments)), why).toBe(ERROR)
        expect(await victim.answer(victim.request('read', segments)), why).toBe(ERROR)
      }
    }
    const readOnly = victim.segment({ readOnly: true })
    expect(await victim.answer(victim.request('read', [readOnly])), 'read-only').toBe(ERROR)
    expect(victim.counters.grantErrors).toBeGreaterThan(0)
    await victim.works()
  })

  it('one page for everything, the ring itself among it', async () => {
    const segment = victim.segment()
    // Xen counts 255 mappings of one grant and no more.
    const seven = Array.from({ length: 7 }, () => segment)
    const { entries } = victim.hostile.ring()
    const same = { lo: 0xffff_ffff, hi: 0x7ff8_0000 }
    for (let i = 0; i < entries; i++) {
      victim.hostile.send({
        ...victim.request(i % 2 === 0 ? 'read' : 'write', seven),
        id: same,
        handle: 0xffff,
      })
    }
    const answers = await victim.hostile.responses(entries)
    expect(
      answers.every(({ id, status }) => id.lo === same.lo && id.hi === same.hi && status === OKAY),
    ).toBe(true)
    await victim.works()
    const ringRef = Number(await victim.guest.xenstore.read(`${victim.frontend.path}/ring-ref`))
    expect(
      await victim.answer(victim.request('write', [{ ref: ringRef, first: 0, last: 7 }])),
    ).toBe(OKAY)
    expect(victim.guest.native.endAccess(ringRef), 'it is mapped').toBe(false)
    // Reading the disk's zeroes over the ring breaks it, and that is the guest's own loss.
    victim.hostile.send(victim.request('read', [{ ref: ringRef, first: 0, last: 7 }], 4096))
    await victim.expectGivenUp()
  })

  it('a slot that changes while it is read', async () => {
    const segment = victim.segment()
    const first = victim.request('read', [segment])
    const second = victim.bytes({ ...victim.request('write', [segment], 2n ** 63n), id: first.id })
    const third = new Uint8Array(second.length).fill(0xff)
    for (let i = 0; i < 300; i++) {
      victim.hostile.flicker(victim.bytes(first), i % 2 === 0 ? second : third, 200)
      // The answer stands in the slot that is written over: all that is left of it is its number.
      expect(await victim.hostile.responses(1)).toHaveLength(1)
    }
    await victim.works()
  })

  it('random bytes', async () => {
    const random = new Random(77)
    const segment = victim.segment()
    const { entries } = victim.hostile.ring()
    for (let round = 0; round < 30; round++) {
      for (let i = 0; i < entries; i++) {
        const slot = victim.bytes(
          victim.request(random.pick(['read', 'write', 'flush', 'barrier']), [segment]),
        )
        for (let n = random.below(20); n > 0; n--)
          slot[random.below(slot.length)] = random.below(256)
        slot[0] = random.below(8)
        victim.hostile.send(slot)
      }
      const answers = await victim.hostile.responses(entries)
      for (const { status } of answers) expect([OKAY, ERROR, UNSUPPORTED]).toContain(status)
    }
    await victim.works()
    const { read, write, flush, discard, rejected } = victim.vbd.stats()
    const answered = [read, write, flush, discard].reduce(
      (sum, one) => sum + one.requests + one.errors,
      rejected,
    )
    expect(answered).toBe(30 * entries + 2)
  })
})

describe('disks that refuse', () => {
  it('4096-byte sectors: whole ones only', async () => {
    victim = await Victim.connected(world, { disk: memory('4MiB', { sectorSize: 4096 }) })
    const segment = victim.segment()
    expect(await victim.answer(victim.request('read', [segment], 8))).toBe(OKAY)
    expect(await victim.answer(victim.request('read', [segment], 1))).toBe(ERROR)
    expect(await victim.answer(victim.request('write', [{ ...segment, first: 1, last: 7 }]))).toBe(
      ERROR,
    )
    expect(await victim.answer(victim.request('write', [{ ...segment, first: 0, last: 3 }]))).toBe(
      ERROR,
    )
    expect(victim.rejected('alignment')).toBe(3)
  })

  it.each(['a read-only vbd', 'a read-only image'])(
    '%s: no write, barrier or discard, whatever is asked',
    async (how) => {
      const path = world.image(4 * MIB)
      const before = readFileSync(path)
      victim = await Victim.connected(world, {
        disk: file(path, { readOnly: how === 'a read-only image' }),
        serve: { readOnly: how === 'a read-only vbd' },
      })
      const segment = victim.segment()
      victim.hostile.page(1).fill(0xee)
      expect(await victim.answer(victim.request('read', [segment]))).toBe(OKAY)
      for (const operation of ['write', 'barrier', 'flush'] as const) {
        expect(await victim.answer(victim.request(operation, [segment]))).not.toBe(OKAY)
      }
      const discard: WireRequest = {
        operation: 'discard',
        handle: 0,
        id: victim.nextId(),
        sector: 0,
        sectors: 64,
      }
      expect(await victim.answer(discard)).not.toBe(OKAY)
      expect(readFileSync(path).equals(before)).toBe(true)
    },
  )

  it('discards of everything, of nothing, and of pieces', async () => {
    const path = world.image(4 * MIB)
    victim = await Victim.connected(world, { disk: file(path) })
    const { entries } = victim.hostile.ring()
    const discard = (sector: number, sectors: number | bigint, secure = false): WireRequest => ({
      operation: 'discard',
      handle: 0,
      id: victim.nextId(),
      sector,
      sectors,
      secure,
    })
    for (let i = 0; i < entries; i++) victim.hostile.send(discard(0, VICTIM_SECTORS))
    expect((await victim.hostile.responses(entries)).every(({ status }) => status === OKAY)).toBe(
      true,
    )
    expect(await victim.answer(discard(0, 0))).toBe(ERROR)
    expect(await victim.answer(discard(0, 2n ** 64n - 1n))).toBe(ERROR)
    expect(await victim.answer(discard(1, VICTIM_SECTORS))).toBe(ERROR)
    expect([OKAY, UNSUPPORTED]).toContain(await victim.answer(discard(1, 3)))
    await victim.works()
  })

  it('an image that looks like another format stays what it is', async () => {
    const path = world.image(4 * MIB)
    victim = await Victim.connected(world, { disk: file(path) })
    const { page, ref } = victim.hostile.grant()
    victim.hostile
      .page(page)
      .set(Buffer.from('514649fb0000000300000000000000080000000f2f6574632f706173737764', 'hex'))
    expect(await victim.answer(victim.request('write', [{ ref, first: 0, last: 7 }]))).toBe(OKAY)
    const written = Buffer.from(victim.hostile.page(page))
    await victim.leaves()
    victim = await Victim.connected(world, { disk: file(path) })
    expect(victim.vbd.disk.sizeBytes).toBe(4 * MIB)
    const again = victim.hostile.grant()
    expect(
      await victim.answer(victim.request('read', [{ ref: again.ref, first: 0, last: 7 }])),
    ).toBe(OKAY)
    expect(Buffer.from(victim.hostile.page(again.page)).equals(written)).toBe(true)
  })
})

describe('events and ends', () => {
  it('a storm of events for nothing costs its sender, and nobody else', async () => {
    victim = await Victim.connected(world)
    const before = victim.counters
    const start = { cpu: reactorSeconds(), time: Date.now() }
    let sent = 0
    while (Date.now() - start.time < 1500) {
      victim.hostile.storm(200)
      sent += 200
      await turn()
    }
    const after = victim.counters
    expect(sent).toBeGreaterThan(1000)
    expect(after.eventsReceived - before.eventsReceived).toBeLessThan(40)
    expect(after.spuriousEvents).toBeGreaterThan(before.spuriousEvents)
    await victim.works()
  })

  it('a port that is closed with requests in flight', async () => {
    victim = await Victim.connected(world)
    const segment = victim.segment()
    for (let i = 0; i < 16; i++) victim.hostile.send(victim.request('read', [segment]))
    const { guest } = victim
    guest.closePort(victim.frontend.queues[0]!.port)
    vi.spyOn(guest, 'closePort').mockReturnValue(undefined)
    await vi.waitFor(() => expect(victim.hostile.ring().indices().rspProd).toBe(16), {
      timeout: 10_000,
    })
  })

  it.each(['persistent', 'copy', 'map'] as const)(
    'death with the longest rings full of the largest requests, %s',
    async (transfer) => {
      victim = await Victim.connected(world, {
        serve: { transfer, ringOrder: 4, queues: 4 },
        front: { queues: 4, ringOrder: 4, indirectSegments: 256 },
        memoryBytes: 32 * MIB,
      })
      const table = victim.hostile.grant()
      const data = victim.hostile.grant()
      const view = new DataView(victim.guest.memory.buffer, table.page * 4096, 4096)
      for (let i = 0; i < 512; i++) {
        view.setUint32(8 * i, data.ref, true)
        view.setUint8(8 * i + 5, 7)
      }
      for (let queue = 0; queue < 4; queue++) {
        for (let i = 0; i < 512; i++) {
          victim.hostile.send(
            {
              operation: 'indirect',
              indirectOperation: 'read',
              handle: 0,
              id: victim.nextId(),
              sector: 0,
              segmentCount: 256,
              indirectRefs: [table.ref],
            },
            queue,
          )
        }
      }
      await neighbour.goesOn()
      victim.guest.fail(new VbdError('ERR_VBD_STATE', 'dies on purpose'))
      await world.expectReleased(victim.guest.domid)
    },
  )
})
