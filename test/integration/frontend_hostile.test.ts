/** A guest that breaks the rules, on the real backend: each request gets its one answer, and the next guest is served. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Backend } from '../../lib/backend.js'
import { memory } from '../../lib/disk/drivers.js'
import type { Frontend } from '../../lib/testing/frontend.js'
import type { FrontendOptions } from '../../lib/testing/frontend_options.js'
import { MockGuest } from '../../lib/testing/guest.js'
import { HostileGuest, JUNK_VALUES } from '../../lib/testing/hostile.js'
import type { Segment, WireRequest } from '../../lib/testing/wire.js'
import { ENGINE } from '../support/engines.js'

let backend: Backend
let guest: MockGuest
let frontend: Frontend
let hostile: HostileGuest

async function take(options: FrontendOptions = {}): Promise<void> {
  frontend = await guest.disk('xvda', { closeTimeoutMs: 5000, ...options })
  hostile = new HostileGuest(guest, frontend)
}

beforeEach(async () => {
  backend = await Backend.open({ xen: 'mock', engine: ENGINE, reactors: 1 })
  await backend.serve('1:xvda', memory('4M'))
  guest = await MockGuest.join({ dir: backend.mock!.dir, domid: 1, memoryBytes: 16 << 20 })
})

/** Whatever was done: a well-behaved disk works afterwards, and nothing is left mapped. */
afterEach(async () => {
  await frontend.close({ drain: false })
  hostile.cleanUp()
  const disk = await guest.disk('xvda')
  await disk.write(512, Buffer.alloc(512, 0x42))
  expect((await disk.read(512, 512))[0]).toBe(0x42)
  await disk.close()
  expect(guest.memory.use).toEqual({ pages: 0, grants: 0, quarantined: 0 })
  const [domain] = backend.mock!.domains()
  expect(domain).toMatchObject({ grantsMapped: 0, portsBound: 0 })
  await guest.close()
  await backend.close()
})

let lastId = 0
const id = () => ({ lo: ++lastId, hi: 0xdeadbeef })

function rw(
  operation: 'read' | 'write' | 'barrier' | 'flush',
  segments: Segment[],
  sector: number | bigint = 0,
) {
  return { operation, handle: 0, id: id(), sector, segments } satisfies WireRequest
}

async function answer(request: WireRequest): Promise<number> {
  hostile.send(request)
  const [response] = await hostile.responses(1)
  expect(response!.id).toEqual(request.id)
  return response!.status
}

describe.each([true, false])('requests, persistent %s', (persistent) => {
  beforeEach(() => take({ persistent }))

  it('a right one is answered right', async () => {
    const { page, ref } = hostile.grant()
    hostile.page(page).fill(0x77)
    expect(await answer(rw('write', [{ ref, first: 0, last: 7 }], 8))).toBe(0)
    hostile.page(page).fill(0)
    expect(await answer(rw('read', [{ ref, first: 2, last: 2 }], 9))).toBe(0)
    expect([...hostile.page(page).subarray(1023, 1026)]).toEqual([0, 0x77, 0x77])
    expect(hostile.page(page)[1536]).toBe(0)
  })

  it('bad references', async () => {
    for (const { ref, why } of hostile.badRefs()) {
      expect(await answer(rw('read', [{ ref, first: 0, last: 7 }])), why).toBe(-1)
      const indirect = { operation: 'indirect', indirectOperation: 'read' } as const
      const request = { ...indirect, handle: 0, id: id(), sector: 0, segmentCount: 12 }
      expect(await answer({ ...request, indirectRefs: [ref] }), why).toBe(-1)
    }
  })

  it('a read into a page that may only be read', async () => {
    const { ref } = hostile.grant({ readOnly: true })
    expect(await answer(rw('read', [{ ref, first: 0, last: 7 }]))).toBe(-1)
  })

  it('bad segments and ranges', async () => {
    const { ref } = hostile.grant()
    const good = { ref, first: 0, last: 7 }
    const bad: WireRequest[] = [
      rw('read', []),
      rw('read', [{ ref, first: 5, last: 4 }]),
      rw('read', [{ ref, first: 0, last: 8 }]),
      rw('write', [{ ref, first: 255, last: 255 }]),
      rw('read', [good], 8192),
      rw('read', [good], 8185),
      rw('write', [good], 2n ** 64n - 1n),
      rw('write', [good], 2n ** 55n),
      { operation: 'discard', handle: 0, id: id(), sector: 0, sectors: 8193 },
      { operation: 'discard', handle: 0, id: id(), sector: 2n ** 64n - 8n, sectors: 16 },
    ]
    for (const request of bad)
      expect(await answer(request), JSON.stringify(request.operation)).toBe(-1)
  })

  it('operations that do not exist', async () => {
    for (const operation of [4, 7, 99, 255]) {
      const slot = new Uint8Array(112)
      slot[0] = operation
      slot[8] = operation
      hostile.send(slot)
      const [response] = await hostile.responses(1)
      expect(response).toEqual({ id: { lo: operation, hi: 0 }, operation, status: -2 })
    }
  })

  it('random bytes for requests', async () => {
    for (let i = 0; i < 500; i++) {
      const slot = Uint8Array.from({ length: 112 }, () => Math.random() * 256)
      // No writes or discards that might be right by chance: the disk is checked afterwards.
      if (slot[0] !== undefined && slot[0] < 7) slot[1] = 200
      hostile.send(slot)
      if (i % 20 === 19) expect(await hostile.responses(20)).toHaveLength(20)
    }
  })

  it('a slot that changes while it is read', async () => {
    const { ref } = hostile.grant()
    const first = new Uint8Array(112)
    const view = new DataView(first.buffer)
    first[1] = 1
    view.setUint32(24, ref, true)
    first[29] = 7
    const second = first.slice()
    second[1] = 255
    second[29] = 255
    for (let i = 0; i < 100; i++) {
      hostile.flicker(first, second, 50)
      const [response] = await hostile.responses(1)
      expect([0, -1]).toContain(response!.status)
    }
  })

  it('events for nothing', async () => {
    hostile.storm(10_000)
    const { ref } = hostile.grant()
    expect(await answer(rw('read', [{ ref, first: 0, last: 7 }]))).toBe(0)
  })
})

it.each([33, 0x8000_0000, 0xffff_ffff])(
  'req_prod jumps by %i: the ring is stopped, and only that',
  async (by) => {
    await take()
    const closing = new Promise<void>((resolve) => {
      frontend.on('state', ({ side, state }) => side === 'backend' && state === 5 && resolve())
    })
    hostile.jump(by)
    await closing
  },
)

it('junk in xenstore, connected and not', async () => {
  await take()
  for (const value of JUNK_VALUES) {
    for (const key of [
      'ring-ref',
      'event-channel',
      'protocol',
      'feature-persistent',
      'queue-0/ring-ref',
    ]) {
      await hostile.writeKey(key, value)
    }
  }
  await hostile.removeKeys(['queue-0'])
  const { ref } = hostile.grant()
  expect(await answer(rw('read', [{ ref, first: 0, last: 7 }]))).toBe(0)
})

it.each(['ring-ref', 'event-channel', 'protocol'])(
  'junk in %s at the handshake is refused',
  async (key) => {
    for (const value of ['-1', '4294967296', 'x', '7', '']) {
      const junk = await guest
        .disk('xvda', {
          editKeys: (keys) => void keys.set(key, value),
          connectTimeoutMs: 10_000,
          closeTimeoutMs: 10_000,
        })
        .catch((error: unknown) => error)
      expect(junk).toMatchObject({ code: 'ERR_VBD_STATE' })
    }
    await take()
  },
)

it('states in any order', async () => {
  await take()
  await hostile.flipState([7, 1, 4, 5, 3, 'x', 2, 8, 6], 10)
  await frontend.close({ drain: false })
})
