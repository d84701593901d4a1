import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { afterEach, describe, expect, it } from 'vitest'
import { VbdError } from '../../../lib/errors.js'
import { Frontend } from '../../../lib/testing/frontend.js'
import type { FrontendOptions } from '../../../lib/testing/frontend_options.js'
import { MANNERS, type MannersName } from '../../../lib/testing/manners.js'
import { XenstoreError } from '../../../lib/xenstore/xenstore.js'
import { FakeBackend, type FakeBackendOptions } from '../../support/fake_backend.js'
import { FakeGuest } from '../../support/fake_guest.js'
import { FakeStore } from '../../support/fake_store.js'

interface World {
  readonly store: FakeStore
  readonly guest: FakeGuest
  readonly backend: FakeBackend
  readonly frontend: Frontend
}

const worlds: World[] = []

async function makeWorld(
  options: FrontendOptions = {},
  backendOptions: FakeBackendOptions = {},
  pages = 4096,
): Promise<World> {
  const store = new FakeStore()
  const guest = new FakeGuest(1, store, pages)
  const backend = new FakeBackend(guest, store, backendOptions)
  await backend.attach()
  await backend.start()
  const frontend = new Frontend(guest, 51712, {
    connectTimeoutMs: 5000,
    closeTimeoutMs: 1000,
    ...options,
  })
  const world = { store, guest, backend, frontend }
  worlds.push(world)
  return world
}

async function connect(
  options: FrontendOptions = {},
  backendOptions: FakeBackendOptions = {},
): Promise<World> {
  const world = await makeWorld(options, backendOptions)
  await world.frontend.connect()
  return world
}

/** After every test: whatever happened, a closed frontend holds nothing. */
afterEach(async () => {
  for (const { frontend, guest, backend, store } of worlds.splice(0)) {
    await frontend.close()
    await backend.die()
    guest.memory.sweep()
    expect(guest.memory.use).toEqual({ pages: 0, grants: 0, quarantined: 0 })
    expect(guest.grants.size).toBe(0)
    expect(guest.ports.size).toBe(0)
    expect(store.watches).toBe(0)
    expect(frontend.load).toEqual({ requests: 0, operations: 0 })
  }
})

const code = (expected: string) => expect.objectContaining({ code: expected })

describe.each(Object.keys(MANNERS) as MannersName[])('with the manners of %s', (manners) => {
  it('connects, moves data, closes, and opens again', async () => {
    const { frontend, backend } = await connect({ manners, queues: 2, ringOrder: 1 })
    const data = randomBytes(300 * 512)
    await frontend.write(3 * 512, data)
    expect(backend.data.subarray(3 * 512, 303 * 512).equals(data)).toBe(true)
    expect((await frontend.read(3 * 512, data.length)).equals(data)).toBe(true)
    await frontend.flush()
    await frontend.close()
    expect(frontend.state).toBe('closed')
    expect(frontend.failure).toBeUndefined()
    expect(backend.guest.grants.size).toBe(0)
    await frontend.connect()
    expect((await frontend.read(512, 512 * 3)).subarray(1024).equals(data.subarray(0, 512))).toBe(
      true,
    )
    expect(frontend.violations).toEqual([])
    expect(backend.failure).toBeUndefined()
  })
})

describe('handshake', () => {
  it('tells every step in order', async () => {
    const { frontend } = await makeWorld()
    const steps: string[] = []
    frontend.on('state', ({ side, state }) => steps.push(`${side} ${state}`))
    frontend.on('key', ({ path, value }) => steps.push(`${path.split('/').pop()}=${value}`))
    const summary = await frontend.connect()
    await frontend.close()
    expect(steps).toEqual([
      'backend 2',
      'ring-ref=8',
      'event-channel=1',
      'protocol=x86_64-abi',
      'feature-persistent=1',
      'frontend 3',
      'backend 4',
      'frontend 4',
      'frontend 5',
      'backend 5',
      'frontend 6',
      'backend 6',
    ])
    expect(summary).toMatchObject({
      queues: 1,
      ringEntries: 32,
      persistent: true,
      reconnected: false,
    })
  })

  it('mini-os goes to 4 at once, and through 1 to 2 when it closes', async () => {
    const { frontend } = await makeWorld({ manners: 'mini-os' })
    const states: string[] = []
    frontend.on('state', ({ side, state }) => states.push(`${side[0]}${state}`))
    await frontend.connect()
    expect(states.filter((state) => state.startsWith('f'))).toEqual(['f4'])
    await frontend.close()
    expect(states.slice(-6)).toEqual(['f5', 'b5', 'f6', 'b6', 'f1', 'b2'])
  })

  it('grub closes without Closing', async () => {
    const { frontend } = await connect({ manners: 'grub' })
    const states: string[] = []
    frontend.on('state', ({ side, state }) => states.push(`${side[0]}${state}`))
    await frontend.close()
    expect(states).toEqual(['f6', 'b6', 'f1', 'b2'])
  })

  it('windows begins with a close', async () => {
    const { frontend } = await makeWorld({ manners: 'windows' })
    const states: string[] = []
    frontend.on('state', ({ side, state }) => states.push(`${side[0]}${state}`))
    await frontend.connect()
    expect(states).toEqual(['b2', 'f5', 'b5', 'f6', 'b6', 'f1', 'b2', 'f3', 'b4', 'f4'])
  })

  it('waits for nodes that come later, and gives up in time', async () => {
    const store = new FakeStore()
    const guest = new FakeGuest(1, store)
    const late = new Frontend(guest, 51712, { connectTimeoutMs: 20 })
    await expect(late.connect()).rejects.toEqual(code('ERR_VBD_TIMEOUT'))
    expect(late.state).toBe('closed')
    const backend = new FakeBackend(guest, store)
    const frontend = new Frontend(guest, 51712, { connectTimeoutMs: 5000 })
    const connecting = frontend.connect()
    await backend.attach()
    await backend.start()
    await connecting
    worlds.push({ store, guest, backend, frontend })
  })

  it('gives up when its signal says so, and when the backend never gets to Connected', async () => {
    const { frontend, backend } = await makeWorld({ connectTimeoutMs: 30 })
    await backend.die()
    const abort = new AbortController()
    const connecting = frontend.connect({ signal: abort.signal })
    abort.abort()
    await expect(connecting).rejects.toEqual(code('ERR_VBD_ABORTED'))
    await expect(frontend.connect()).rejects.toEqual(code('ERR_VBD_TIMEOUT'))
  })

  it('refuses a backend whose keys are unusable', async () => {
    const { frontend } = await makeWorld({}, { keys: { 'sector-size': '500' } })
    await expect(frontend.connect()).rejects.toEqual(code('ERR_VBD_PROTOCOL'))
  })

  it('is refused by a guest that is too small, and leaves nothing', async () => {
    const { frontend } = await makeWorld({ indirectSegments: 64 }, {}, 40)
    await expect(frontend.connect()).rejects.toEqual(code('ERR_VBD_STATE'))
  })

  it('is refused by a backend that closes before it has seen the rings', async () => {
    const { frontend, backend, store } = await makeWorld()
    await backend.die()
    frontend.on('key', () => void store.write(`${backend.backendPath}/state`, '6'))
    await expect(frontend.connect()).rejects.toEqual(code('ERR_VBD_STATE'))
  })

  it('closes while it connects', async () => {
    const { frontend, backend } = await makeWorld()
    await backend.die()
    const connecting = frontend.connect()
    await once(frontend, 'state')
    await Promise.all([expect(connecting).rejects.toEqual(code('ERR_VBD_STATE')), frontend.close()])
  })
})

describe('requests', () => {
  const combinations = (['x86_64-abi', 'x86_32-abi'] as const).flatMap((protocol) =>
    [true, false].flatMap((persistent) =>
      [0, 64].map((indirectSegments) => ({ protocol, persistent, indirectSegments })),
    ),
  )

  it.each(combinations)('random writes read back: %o', async (options) => {
    const shape = { queues: 3, ringOrder: 1, ids: 'wild' as const }
    const { frontend, backend } = await connect({ ...options, ...shape }, { shuffle: true })
    const expected = Buffer.alloc(backend.data.length)
    const round = async () => {
      const writes = Array.from({ length: 40 }, (_, i) => {
        // Ranges of one round do not overlap: their order is nobody's promise.
        const offset = (i * 51 + Math.floor(Math.random() * 20)) * 512
        const data = randomBytes((1 + Math.floor(Math.random() * 30)) * 512)
        data.copy(expected, offset)
        return frontend.write(offset, data)
      })
      await Promise.all(writes)
      const whole = await frontend.read(0, expected.length)
      expect(whole.equals(expected)).toBe(true)
    }
    for (let i = 0; i < 3; i++) await round()
    expect(backend.data.equals(expected)).toBe(true)
    expect(frontend.violations).toEqual([])
  })

  it('cuts at page borders of the disk and at the largest request', async () => {
    const seen: string[] = []
    const { frontend } = await connect(
      { indirectSegments: 0 },
      {
        onRequest: ({ sector, segments, bytes }) =>
          seen.push(`${sector}+${bytes / 512}/${segments}`),
      },
    )
    await frontend.read(3 * 512, 100 * 512)
    expect(seen).toEqual(['3+85/11', '88+15/2'])
  })

  it('uses indirect requests only where it must', async () => {
    const seen: number[] = []
    const { frontend } = await connect(
      { indirectSegments: 64 },
      { onRequest: ({ operation }) => seen.push(operation) },
    )
    await frontend.read(0, 11 * 4096)
    await frontend.read(0, 12 * 4096)
    expect(seen).toEqual([0, 6])
  })

  it('publishes what one turn of the event loop submits with one notification', async () => {
    const { frontend, guest } = await connect({ ringOrder: 2 })
    await frontend.read(0, 512)
    const before = guest.notifications
    await Promise.all(Array.from({ length: 100 }, (_, i) => frontend.read(i * 512, 512)))
    expect(guest.notifications - before).toBe(1)
  })

  it('waits when the ring is full, in order, and refuses beyond its bound', async () => {
    const { frontend, backend } = await connect({ maxOperations: 50 })
    backend.hold()
    const reads = Array.from({ length: 50 }, (_, i) => frontend.read(i * 512, 512))
    await expect(frontend.read(0, 512)).rejects.toEqual(code('ERR_VBD_BUSY'))
    expect(frontend.load).toEqual({ requests: 32, operations: 50 })
    backend.release()
    await Promise.all(reads)
  })

  it('keeps within its memory', async () => {
    const { frontend, guest } = await connect({ memoryBytes: 64 * 4096, ringOrder: 4 })
    await Promise.all(Array.from({ length: 200 }, (_, i) => frontend.read(i * 4096, 4096)))
    expect(guest.memory.use.pages).toBeLessThanOrEqual(64 + 16)
  })

  it('fails what the guest has no grant reference for, instead of waiting for ever', async () => {
    const { frontend, guest } = await connect({ persistent: false })
    const spare = guest.memory.takePages(1)
    const taken: number[] = []
    for (;;) {
      const ref = guest.memory.grant(spare, 0, true)
      if (ref === undefined) break
      taken.push(ref)
    }
    await expect(frontend.read(0, 512)).rejects.toEqual(code('ERR_VBD_STATE'))
    for (const ref of taken) guest.memory.endAccess(ref)
    guest.memory.releasePages(spare)
    expect(await frontend.read(0, 512)).toHaveLength(512)
  })

  it('turns answers into errors', async () => {
    let status = -1
    const { frontend } = await connect({}, { answer: (answer) => ({ ...answer, status }) })
    await expect(frontend.read(0, 512)).rejects.toEqual(code('ERR_VBD_IO'))
    await expect(frontend.write(0, Buffer.alloc(512))).rejects.toEqual(code('ERR_VBD_IO'))
    status = -2
    await expect(frontend.discard(0, 512)).rejects.toEqual(code('ERR_VBD_UNSUPPORTED'))
    expect(frontend.has('discard')).toBe(false)
    expect(frontend.has('secure-discard')).toBe(true)
  })

  it('checks ranges before anything is sent', async () => {
    const { frontend, backend } = await connect()
    const end = backend.data.length
    for (const [offset, length] of [
      [1, 512],
      [0, 100],
      [-512, 512],
      [end, 512],
      [end - 512, 1024],
      [Number.NaN, 512],
      [2 ** 60, 512],
    ] as const) {
      await expect(frontend.write(offset, Buffer.alloc(length))).rejects.toEqual(
        code('ERR_VBD_ARGUMENT'),
      )
    }
    expect(await frontend.read(end, 0)).toHaveLength(0)
    expect(backend.requests).toBe(0)
  })

  it('never writes to a read-only disk', async () => {
    const { frontend, backend } = await connect({}, { readOnly: true })
    for (const attempt of [frontend.write(0, Buffer.alloc(512)), frontend.discard(0, 512)]) {
      await expect(attempt).rejects.toEqual(code('ERR_VBD_UNSUPPORTED'))
    }
    expect((await frontend.read(0, 512)).length).toBe(512)
    expect(backend.requests).toBe(1)
  })

  it('discards, and cuts what is longer than a request can say', async () => {
    const { frontend, backend } = await connect()
    await frontend.discard(1024, 4096, { secure: true })
    await frontend.discard(0, backend.data.length)
    expect(backend.discards).toEqual([
      [2, 8, true],
      [0, 2048, false],
    ])
  })

  it('makes FUA a barrier where it fits one, else a write and a flush', async () => {
    const seen: number[] = []
    const { frontend } = await connect({}, { onRequest: ({ operation }) => seen.push(operation) })
    await frontend.write(0, Buffer.alloc(4096), { fua: true })
    await frontend.write(0, Buffer.alloc(20 * 4096), { fua: true })
    await frontend.flush({ offset: 0, data: Buffer.alloc(512) })
    await frontend.barrier()
    expect(seen).toEqual([2, 6, 3, 3, 2])
    await expect(frontend.barrier({ data: Buffer.alloc(20 * 4096) })).rejects.toEqual(
      code('ERR_VBD_ARGUMENT'),
    )
  })

  it('flushes with what there is', async () => {
    const seen: number[] = []
    const onRequest = ({ operation }: { operation: number }) => seen.push(operation)
    const { frontend } = await connect({}, { onRequest, keys: { 'feature-flush-cache': '0' } })
    await frontend.flush()
    const none = { 'feature-flush-cache': undefined, 'feature-barrier': undefined }
    const other = await connect({}, { onRequest, keys: none })
    await other.frontend.flush()
    await expect(other.frontend.barrier()).rejects.toEqual(code('ERR_VBD_UNSUPPORTED'))
    expect(seen).toEqual([2])
  })

  it.each([-1, -2])(
    'linux takes a flush answered %i for done, and others do not',
    async (status) => {
      const answer = (plain: { id: bigint; operation: number }) => ({ ...plain, status })
      const linux = await connect({}, { answer })
      const lost: string[] = []
      linux.frontend.on('feature-lost', (feature) => lost.push(feature))
      await linux.frontend.flush()
      expect(lost).toEqual(['flush'])
      const bsd = await connect({ manners: 'freebsd' }, { answer })
      await expect(bsd.frontend.flush()).rejects.toBeInstanceOf(VbdError)
    },
  )

  it('gives up an operation when its signal says so, and leaves its buffer alone', async () => {
    const { frontend, backend } = await connect()
    backend.data.fill(0xbb)
    backend.hold()
    const abort = new AbortController()
    const buffer = Buffer.alloc(512, 0xaa)
    const reading = frontend.read(0, buffer, { signal: abort.signal })
    await new Promise(setImmediate)
    abort.abort()
    await expect(reading).rejects.toEqual(code('ERR_VBD_ABORTED'))
    backend.release()
    await frontend.read(0, 512)
    expect(buffer.every((byte) => byte === 0xaa)).toBe(true)
  })

  it('sends raw requests as they are', async () => {
    const { frontend } = await connect()
    const request = { operation: 'read', handle: 0, sector: 2n ** 63n, segments: [] } as const
    expect(await frontend.submit(request)).toEqual({ status: 0, operation: 0 })
  })
})

describe('changes', () => {
  it('sees a resize', async () => {
    const { frontend, backend } = await connect()
    const resized = once(frontend, 'resize')
    await backend.resize(4096)
    expect(await resized).toEqual([{ sizeBytes: 4096 * 512, previousBytes: 2048 * 512 }])
    await frontend.write(4095 * 512, Buffer.alloc(512, 7))
    expect(backend.data[4095 * 512]).toBe(7)
  })

  it('grub does not care about a resize', async () => {
    const { frontend, backend } = await connect({ manners: 'grub' })
    await backend.resize(4096)
    await frontend.read(0, 512)
    expect(frontend.properties.sectors).toBe(2048)
  })

  it('reconnects to a backend that closed, and what waits is done then', async () => {
    const { frontend, backend } = await connect({ queues: 2 })
    const disconnected = once(frontend, 'disconnected')
    await backend.close()
    await disconnected
    const reconnected = once(frontend, 'connected')
    const write = frontend.write(0, Buffer.alloc(512, 9))
    expect((await reconnected)[0]).toMatchObject({ reconnected: true })
    await write
    expect(backend.data[0]).toBe(9)
    expect(frontend.violations).toEqual([])
  })

  it('ends with a backend that closes for good, after its last answers', async () => {
    const { frontend, backend } = await connect()
    backend.hold()
    const write = frontend.write(0, Buffer.alloc(512, 9))
    await new Promise(setImmediate)
    const closed = once(frontend, 'closed')
    await backend.close(false)
    backend.release()
    await write
    expect(await closed).toEqual([code('ERR_VBD_STATE')])
    await expect(frontend.read(0, 512)).rejects.toEqual(code('ERR_VBD_STATE'))
  })

  it('sends again what a killed backend never answered', async () => {
    const { frontend, backend, guest, store } = await connect({ queues: 2, persistent: false })
    backend.hold()
    const data = randomBytes(400 * 512)
    const write = frontend.write(512, data)
    const flush = frontend.flush()
    await new Promise(setImmediate)
    await backend.die()
    const again = new FakeBackend(guest, store)
    const reconnected = once(frontend, 'connected')
    await again.start()
    await reconnected
    await Promise.all([write, flush])
    expect(again.data.subarray(512, 401 * 512).equals(data)).toBe(true)
    expect(again.flushes).toBe(1)
    expect(frontend.violations).toEqual([])
    worlds.at(-1)!.backend.die()
    worlds[worlds.length - 1] = { store, guest, backend: again, frontend }
  })

  it('ends when the disk is detached', async () => {
    const { frontend, backend } = await connect()
    const closed = once(frontend, 'closed')
    await backend.die()
    await backend.detach()
    expect(await closed).toEqual([code('ERR_VBD_NOT_FOUND')])
  })

  it('ends when the guest does', async () => {
    const { frontend, backend, guest } = await connect()
    backend.hold()
    const read = frontend.read(0, 512)
    const closed = once(frontend, 'closed')
    guest.die(new VbdError('ERR_VBD_STATE', 'the mock Xen is gone'))
    await expect(read).rejects.toEqual(code('ERR_VBD_STATE'))
    expect(await closed).toEqual([expect.objectContaining({ message: 'the mock Xen is gone' })])
    await backend.die()
  })

  it('says that the guest ended, not which call was under way', async () => {
    const { frontend, guest, store } = await makeWorld()
    // As the client does it: what is pending fails, then everyone hears of it.
    store.watch = () => {
      const failed = Promise.reject(new XenstoreError('ECONNRESET', 'the connection was lost'))
      guest.die(new VbdError('ERR_VBD_XENSTORE', "the mock's xenstore is gone"))
      return failed
    }
    await expect(frontend.connect()).rejects.toMatchObject({
      message: "the mock's xenstore is gone",
    })
  })

  it('closes although its backend is dead, and what waits is told', async () => {
    const { frontend, backend } = await connect({ closeTimeoutMs: 50 })
    backend.hold()
    const read = frontend.read(0, 512)
    await backend.die()
    await Promise.all([expect(read).rejects.toEqual(code('ERR_VBD_STATE')), frontend.close()])
  })

  it('closes while it waits for its backend to come back', async () => {
    const { frontend, backend, store } = await connect()
    await backend.die()
    const disconnected = once(frontend, 'disconnected')
    await store.write(`${backend.backendPath}/state`, '1')
    await disconnected
    const read = frontend.read(0, 512)
    await Promise.all([expect(read).rejects.toEqual(code('ERR_VBD_STATE')), frontend.close()])
    expect(frontend.failure).toBeUndefined()
    expect(await store.read(`${frontend.path}/state`)).toBe('6')
  })

  it('gives up a backend that refuses again and again', async () => {
    const { frontend, backend, store } = await connect()
    await backend.die()
    const closed = once(frontend, 'closed')
    let refusals = 0
    await store.watch(`${frontend.path}/state`, async () => {
      const state = await store.tryRead(`${frontend.path}/state`)
      if (state === '3') refusals++
      const answer = { 1: '2', 3: '5', 5: '5', 6: '6' }[state ?? '']
      if (answer !== undefined) await store.write(`${backend.backendPath}/state`, answer)
    })
    await store.write(`${backend.backendPath}/state`, '2')
    expect(await closed).toEqual([code('ERR_VBD_STATE')])
    expect(refusals).toBe(11)
    await store.close()
  })

  it('closes with requests in flight when asked not to wait', async () => {
    const { frontend, backend } = await connect()
    backend.hold()
    const reads = [frontend.read(0, 512), frontend.read(512, 512)]
    await new Promise(setImmediate)
    const told = expect(Promise.all(reads)).rejects.toEqual(code('ERR_VBD_STATE'))
    await frontend.close({ drain: false })
    await told
  })

  it('lends its rings and takes them back', async () => {
    const { frontend } = await connect({ queues: 2 })
    await frontend.write(0, Buffer.alloc(4096, 3))
    const lent = frontend.lend()
    expect(lent).toHaveLength(2)
    const waiting = frontend.read(0, 512)
    expect(frontend.load.requests).toBe(0)
    frontend.takeBack()
    expect((await waiting)[0]).toBe(3)
  })
})

describe('a backend that breaks the protocol', () => {
  type Answer = { id: bigint; operation: number; status: number }
  const violations: [string, FrontendOptions, (answer: Answer) => Answer | Answer[]][] = [
    ['unknown-id', {}, (answer) => ({ ...answer, id: 77n })],
    ['unknown-id', {}, (answer) => ({ ...answer, id: answer.id + 2n ** 32n })],
    ['unknown-id', { ids: 'wild' }, (answer) => ({ ...answer, id: answer.id & 0xffffffffn })],
    ['wrong-operation', {}, (answer) => ({ ...answer, operation: 6 })],
  ]

  it.each(violations)('%s ends the disk', async (kind, options, answer) => {
    const { frontend } = await connect(options, { answer })
    await expect(frontend.read(0, 512)).rejects.toEqual(code('ERR_VBD_PROTOCOL'))
    expect(frontend.violations.map((violation) => violation.kind)).toEqual([kind])
    expect(frontend.state).toBe('broken')
    await expect(frontend.read(0, 512)).rejects.toEqual(code('ERR_VBD_PROTOCOL'))
    await frontend.close()
    expect(frontend.failure).toEqual(code('ERR_VBD_PROTOCOL'))
  })

  it('a second answer', async () => {
    let first: Answer | undefined
    const answer = (plain: Answer) => {
      first ??= plain
      return first
    }
    const { frontend } = await connect({}, { answer })
    const both = Promise.allSettled([frontend.read(0, 512), frontend.read(512, 512)])
    expect((await both).map(({ status }) => status)).toEqual(['fulfilled', 'rejected'])
    expect(frontend.violations.map(({ kind }) => kind)).toEqual(['duplicate-response'])
  })

  it('more answers than requests', async () => {
    const { frontend, backend } = await connect()
    const violated = once(frontend, 'violation')
    backend.overrun(0, 5)
    expect((await violated)[0]).toMatchObject({ kind: 'response-overflow', queue: 0 })
  })

  it('an answer before the page is unmapped', async () => {
    const { frontend, guest, backend } = await connect({ persistent: false })
    backend.hold()
    const read = frontend.read(0, 512)
    await new Promise(setImmediate)
    const data = [...guest.grants].filter(([, grant]) => grant.mapped === 0).map(([ref]) => ref)
    for (const ref of data) guest.map(ref, false)
    backend.release()
    await expect(read).rejects.toEqual(code('ERR_VBD_PROTOCOL'))
    for (const ref of data) guest.unmap(ref)
    expect(frontend.violations.map(({ kind }) => kind)).toEqual(['grant-still-mapped'])
  })

  it('a status that nobody knows is an error, and no more', async () => {
    const { frontend } = await connect({}, { answer: (plain) => ({ ...plain, status: 7 }) })
    await expect(frontend.read(0, 512)).rejects.toEqual(code('ERR_VBD_IO'))
    expect(frontend.state).toBe('connected')
    expect(frontend.violations.map(({ kind }) => kind)).toEqual(['bad-status'])
  })
})

it.each([
  { queues: 0 },
  { queues: 1.5 },
  { ringOrder: 5 },
  { indirectSegments: 4097 },
  { manners: 'beos' as MannersName },
  { protocol: 'mips' as 'arm-abi' },
  { closeTimeoutMs: -1 },
])('refuses %o', (options) => {
  const guest = new FakeGuest(1, new FakeStore())
  expect(() => new Frontend(guest, 51712, options)).toThrowError(code('ERR_VBD_ARGUMENT'))
})
