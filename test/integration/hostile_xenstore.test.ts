/**
 * Hostile guests in xenstore: junk in every key that a backend reads, keys that are not there, states in any order and as
 * fast as can be, directories that vanish. Refused or ignored, with bounded lines that cannot hurt a terminal, nothing
 * held, and the neighbour's verified I/O notices nothing.
 */
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import { VbdError } from '../../lib/errors.js'
import type { FrontendOptions } from '../../lib/testing/frontend_options.js'
import { JUNK_VALUES } from '../../lib/testing/hostile.js'
import { PATIENT } from '../support/patience.js'
import { Neighbour, Victim } from '../support/product_hostile.js'
import { Random } from '../support/product_verify.js'
import { World } from '../support/product_world.js'

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
  const lines = [...world.said.warnings.splice(0), ...world.said.errors.splice(0)]
  for (const line of lines) expect(line).toMatch(/^[\x20-\x7e\u00a1-\uffff]{1,500}$/)
  expect(lines.length).toBeLessThanOrEqual(20)
  expect(world.said.states.splice(0).length).toBeLessThan(400)
})
afterAll(async () => {
  await neighbour.movesOut()
  await world.close()
})

/** Tries to connect with these keys; either way nothing hangs, and nothing is held afterwards. */
async function attempt(front: FrontendOptions): Promise<'connected' | 'refused'> {
  const frontend = victim.guest.frontend('xvda', {
    closeTimeoutMs: 5000,
    connectTimeoutMs: 10_000,
    reconnect: false,
    memoryBytes: 1 << 20,
    ...front,
  })
  try {
    await frontend.connect()
    await frontend.close()
    return 'connected'
  } catch (error) {
    if (!(error instanceof VbdError)) throw error
    expect(error.code, error.message).not.toBe('ERR_VBD_TIMEOUT')
    await frontend.close()
    return 'refused'
  } finally {
    await world.expectReleased(victim.guest.domid)
  }
}

/** A right one is served after all of it. */
async function expectServed(): Promise<void> {
  const frontend = victim.guest.frontend('xvda', { memoryBytes: 1 << 20 })
  await frontend.connect()
  const data = Buffer.alloc(8192, 0x33)
  await frontend.write(4096, data)
  expect((await frontend.read(4096, 8192)).equals(data)).toBe(true)
  await frontend.close()
  await world.expectReleased(victim.guest.domid)
}

function dropThirdRing(keys: Map<string, string>): void {
  keys.delete('queue-2/ring-ref')
  keys.delete('queue-2/event-channel')
}

describe('keys', () => {
  const junk = JUNK_VALUES.filter((value) => !value.includes('\0'))
  const READ = [
    'ring-ref',
    'event-channel',
    'protocol',
    'feature-persistent',
    'multi-queue-num-queues',
    'ring-page-order',
  ]

  it.each(READ)('junk in %s', async (key) => {
    victim = await Victim.make(world)
    let refused = 0
    for (const value of junk) {
      const outcome = await attempt({ editKeys: (keys) => void keys.set(key, value) })
      if (outcome === 'refused') refused++
    }
    // A hint that is nonsense is a no; everything else must be right.
    expect(refused).toBe(key === 'feature-persistent' ? 0 : junk.length)
    await expectServed()
  })

  it.each<[string, FrontendOptions, (keys: Map<string, string>) => void]>([
    ['a ring of which a page is missing', { ringOrder: 2 }, (keys) => keys.delete('ring-ref3')],
    [
      'a page that is given twice',
      { ringOrder: 1 },
      (keys) => keys.set('ring-ref1', keys.get('ring-ref0')!),
    ],
    [
      'a page of the ring that is not granted',
      { ringOrder: 2 },
      (keys) => keys.set('ring-ref2', '30000'),
    ],
    ['a page beyond the grant table', {}, (keys) => keys.set('ring-ref', '4294967295')],
    ['a larger ring than was offered', {}, (keys) => keys.set('ring-page-order', '5')],
    ['a port that is not there', {}, (keys) => keys.set('event-channel', '77')],
    ['port 0', {}, (keys) => keys.set('event-channel', '0')],
    [
      'the same port for two rings',
      { queues: 2 },
      (keys) => keys.set('queue-1/event-channel', keys.get('queue-0/event-channel')!),
    ],
    [
      'the same page for two rings',
      { queues: 2 },
      (keys) => keys.set('queue-1/ring-ref', keys.get('queue-0/ring-ref')!),
    ],
    ['a ring that is missing', { queues: 3 }, dropThirdRing],
    ['no rings', {}, (keys) => keys.set('multi-queue-num-queues', '0')],
    ['more rings than were offered', {}, (keys) => keys.set('multi-queue-num-queues', '65')],
    ['no keys at all', {}, (keys) => keys.clear()],
  ])('%s is refused, and nothing of it is held', async (_, front, edit) => {
    victim = await Victim.make(world, { serve: { queues: 4 } })
    for (let i = 0; i < 5; i++) {
      expect(await attempt({ ...front, editKeys: (keys) => void edit(keys) })).toBe('refused')
    }
    expect(world.said.warnings.join('\n')).toContain('cannot be connected')
    await expectServed()
  })

  it('one page has two spellings', async () => {
    victim = await Victim.make(world)
    const rename = (keys: Map<string, string>, order: string | undefined, name: string) => {
      const ref = keys.get('ring-ref') ?? keys.get('ring-ref0')!
      keys.delete('ring-ref')
      keys.delete('ring-ref0')
      if (order === undefined) keys.delete('ring-page-order')
      else keys.set('ring-page-order', order)
      keys.set(name, ref)
    }
    for (const [order, name] of [
      [undefined, 'ring-ref'],
      ['0', 'ring-ref0'],
      ['0', 'ring-ref'],
    ] as const) {
      expect(
        await attempt({ editKeys: (keys) => rename(keys, order, name) }),
        `${order} ${name}`,
      ).toBe('connected')
    }
  })

  it('what a connection was made with stays, whatever is written later', async () => {
    victim = await Victim.connected(world, { front: { protocol: 'x86_32-abi', persistent: true } })
    await victim.works()
    const random = new Random(3)
    for (const key of [
      ...READ,
      'state-of-mind',
      'params',
      'physical-device',
      'mode',
      'type',
      'script',
    ]) {
      await victim.hostile.writeKey(key, random.pick(junk))
      await victim.works()
    }
    await victim.hostile.writeKey('params', '/etc/passwd')
    await victim.hostile.writeKey('protocol', 'x86_64-abi')
    await victim.hostile.writeKey('feature-persistent', '0')
    await victim.works()
    expect(victim.vbd.connection).toMatchObject({ protocol: 'x86_32-abi', persistent: true })
    expect(victim.vbd.state).toBe('Connected')
  })

  it('persistent grants are settled anew by each connection', async () => {
    victim = await Victim.make(world)
    for (const persistent of [true, false, true, false]) {
      const frontend = victim.guest.frontend('xvda', { persistent, memoryBytes: 1 << 20 })
      await frontend.connect()
      const connection = await victim.vbd.whenConnected()
      expect(connection).toMatchObject({ persistent, transfer: persistent ? 'persistent' : 'copy' })
      await frontend.write(0, Buffer.alloc(4096, 1))
      await frontend.close()
    }
  })
})

describe('states', () => {
  it('ten thousand of them, in any order', async () => {
    victim = await Victim.make(world)
    const path = `${victim.frontend.path}/state`
    const random = new Random(9)
    const states = [
      '0',
      '1',
      '2',
      '3',
      '4',
      '5',
      '6',
      '7',
      '8',
      '9',
      '-1',
      '',
      '6abc',
      '99999999999',
      '\n\x1b[2J',
    ]
    for (let i = 0; i < 500; i++) {
      // As fast as the store takes them.
      const batch = Array.from({ length: 20 }, () =>
        victim.guest.xenstore.write(path, random.pick(states)),
      )
      await Promise.all(batch)
    }
    expect(
      world.said.states.filter((line) => line.startsWith(victim.vbd.id)).length,
    ).toBeLessThanOrEqual(240)
    await victim.guest.xenstore.write(path, '6')
    await vi.waitFor(() => expect(['Closed', 'InitWait']).toContain(victim.vbd.state), PATIENT)
    await expectServed()
  })

  it.each([
    ['Connected out of nothing', ['4']],
    ['Initialised without a key', ['3']],
    ['Connected after Closed', ['5', '6', '4']],
    ['Closing, and back at once', ['5', '4', '5', '3']],
    ['what is for ARM guests', ['7', '8']],
  ])('%s', async (_, states) => {
    victim = await Victim.make(world)
    for (let round = 0; round < 10; round++) {
      for (const state of states)
        await victim.guest.xenstore.write(`${victim.frontend.path}/state`, state)
    }
    await victim.guest.xenstore.write(`${victim.frontend.path}/state`, '6')
    await vi.waitFor(() => expect(['Closed', 'InitWait']).toContain(victim.vbd.state), PATIENT)
    await world.expectReleased(victim.guest.domid)
    await expectServed()
  })

  it.each(['all keys', 'the state', 'the whole directory'])(
    '%s removed while requests are in flight',
    async (what) => {
      victim = await Victim.connected(world)
      const { path } = victim.frontend
      const { xenstore } = victim.guest
      const segment = victim.segment()
      for (let i = 0; i < 20; i++) victim.hostile.send(victim.request('read', [segment]))
      if (what === 'the whole directory') {
        // As far as it may: the directory itself is the toolstack's.
        for (const name of await xenstore.tryList(path)) await xenstore.remove(`${path}/${name}`)
        await xenstore.remove(path).catch(() => {})
      } else {
        const names = what === 'the state' ? ['state'] : await xenstore.tryList(path)
        for (const name of names) await xenstore.remove(`${path}/${name}`).catch(() => {})
      }
      await vi.waitFor(() => expect(victim.vbd.connected).toBe(false), PATIENT)
      await world.expectReleased(victim.guest.domid)
    },
  )

  it('a directory that goes and comes, again and again', async () => {
    victim = await Victim.make(world)
    const { path } = victim.frontend
    for (let i = 0; i < 50; i++) {
      await victim.guest.xenstore.write(`${path}/state`, String(1 + (i % 6)))
      await victim.guest.xenstore.remove(`${path}/state`)
      await victim.guest.xenstore.write(`${path}/junk/${i}`, 'x'.repeat(1000))
    }
    await victim.guest.xenstore.remove(`${path}/junk`)
    await victim.guest.xenstore.write(`${path}/state`, '6')
    await vi.waitFor(() => expect(['Closed', 'InitWait']).toContain(victim.vbd.state), PATIENT)
    await expectServed()
  })
})
