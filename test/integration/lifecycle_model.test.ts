/**
 * Random lives: a guest, a toolstack, an engine and a xenstore connection that do whatever they like, in any order
 * and at any moment. The laws of test/support/vbd_world.ts are checked at every write; afterwards a well-behaved
 * guest must still be served, and closing must leave nothing.
 */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { memory } from '../../lib/disk/drivers.js'
import { VbdError } from '../../lib/errors.js'
import { BACKEND_PATH, FRONTEND_PATH, VbdWorld } from '../support/vbd_world.js'

/** One thing that somebody does. */
type Act =
  | { act: 'front-state'; state: string }
  | { act: 'ring-keys'; keys: Record<string, string | undefined> }
  | { act: 'front-vanishes' }
  | { act: 'attach' }
  | { act: 'detach' }
  | { act: 'remove' }
  | { act: 'own-state'; state: string }
  | { act: 'domain-dies' }
  | { act: 'conflicts'; count: number }
  | { act: 'lose' }
  | { act: 'lose-after-commit' }
  | { act: 'restore' }
  | { act: 'unreadable' }
  | { act: 'readable' }
  | { act: 'connect-fails' }
  | { act: 'disconnect-fails' }
  | { act: 'corrupt' }
  | { act: 'resize'; sectors: number }
  | { act: 'interrupt'; by: 'detach' | 'remove' | 'front-vanishes' }
  | { act: 'wait'; turns: number }

const state = fc.oneof(
  { weight: 6, arbitrary: fc.constantFrom('1', '3', '4', '5', '6') },
  { weight: 1, arbitrary: fc.constantFrom('0', '2', '7', '8', '9', '10', '', '6abc', '4 ') },
)
const ringKeys = fc.record(
  {
    'ring-ref': fc.constantFrom('8', '9', '-1', '99999999999', undefined),
    'ring-ref0': fc.constantFrom('8', undefined),
    'event-channel': fc.constantFrom('15', '16', '0', undefined),
    'ring-page-order': fc.constantFrom('0', '1', '9', undefined),
    'multi-queue-num-queues': fc.constantFrom('1', '2', '0', undefined),
    protocol: fc.constantFrom('x86_64-abi', 'x86_32-abi', 'vax-abi', undefined),
  },
  { requiredKeys: [] },
)

const act: fc.Arbitrary<Act> = fc.oneof(
  { weight: 12, arbitrary: fc.record({ act: fc.constant('front-state' as const), state }) },
  { weight: 4, arbitrary: fc.record({ act: fc.constant('ring-keys' as const), keys: ringKeys }) },
  {
    weight: 10,
    arbitrary: fc.record({ act: fc.constant('wait' as const), turns: fc.nat(60) }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ act: fc.constant('conflicts' as const), count: fc.nat(20) }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      act: fc.constant('resize' as const),
      sectors: fc.integer({ min: 1, max: 1 << 20 }),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      act: fc.constant('interrupt' as const),
      by: fc.constantFrom('detach' as const, 'remove' as const, 'front-vanishes' as const),
    }),
  },
  // What a toolstack never does, and a confused operator might.
  {
    weight: 1,
    arbitrary: fc.record({
      act: fc.constant('own-state' as const),
      state: fc.constantFrom('1', '3', '5', 'x'),
    }),
  },
  {
    weight: 8,
    arbitrary: fc.record({
      act: fc.constantFrom(
        'front-vanishes' as const,
        'attach' as const,
        'attach' as const,
        'detach' as const,
        'remove' as const,
        'domain-dies' as const,
        'lose' as const,
        'lose-after-commit' as const,
        'restore' as const,
        'restore' as const,
        'unreadable' as const,
        'readable' as const,
        'connect-fails' as const,
        'disconnect-fails' as const,
        'corrupt' as const,
      ),
    }),
  },
)

async function perform(world: VbdWorld, what: Act, pending: Promise<unknown>[]): Promise<void> {
  const { engine, ours, xl, guest } = world
  switch (what.act) {
    case 'front-state':
      return guest.write(`${FRONTEND_PATH}/state`, what.state)
    case 'ring-keys':
      return world.publishRing(what.keys)
    case 'front-vanishes':
      return guest.remove(FRONTEND_PATH)
    case 'attach':
      return world.attach()
    case 'detach':
      return world.detach()
    case 'remove':
      return world.removeDirectories()
    case 'own-state':
      return xl.transaction(async (tx) => {
        const path = `${BACKEND_PATH}/state`
        if ((await tx.tryRead(path)) !== undefined) await tx.write(path, what.state)
      })
    case 'domain-dies':
      await world.store.destroy(1)
      return world.createDomain()
    case 'conflicts':
      ours.conflicts = what.count
      return
    case 'lose':
      return ours.lose()
    case 'lose-after-commit':
      ours.loseAfterCommit = true
      return
    case 'restore':
      return ours.restore()
    case 'unreadable':
      ours.unreadable.add(`${FRONTEND_PATH}/state`)
      return
    case 'readable':
      ours.unreadable.clear()
      return
    case 'connect-fails':
      engine.connectFailures.push(new VbdError('ERR_VBD_GRANT', 'refused'))
      return
    case 'disconnect-fails':
      engine.disconnectFailures = 1
      return
    case 'corrupt':
      if (engine.mapped > 0) {
        world.vbd?.emit({ type: 'ring-corrupt', queue: 0, message: 'overflow' })
      }
      return
    case 'resize':
      pending.push(world.backend.vbd('1:xvda').resize(what.sectors * 512, { shrink: true }))
      return
    case 'interrupt':
      ours.interruption = () => perform(world, { act: what.by }, pending)
      return
    case 'wait':
      for (let turn = 0; turn < what.turns; turn++) {
        await new Promise((resolve) => setImmediate(resolve))
      }
  }
}

/** The world is healthy again, and somebody attaches the device to a well-behaved guest. */
async function recover(world: VbdWorld): Promise<void> {
  world.ours.loseAfterCommit = false
  world.ours.restore()
  world.ours.unreadable.clear()
  world.ours.conflicts = 0
  world.ours.interruption = undefined
  world.engine.connectFailures.length = 0
  world.engine.disconnectFailures = 0
  await world.removeDirectories()
  const vbd = world.backend.vbd('1:xvda')
  await world.until(() => vbd.state === 'none' && world.engine.mapped === 0, 'dropped')
  await world.attach()
  await world.connectLinux()
  await world.settle()
  expect(world.back('sectors')).toBe(String(vbd.disk.sizeBytes / 512))
  expect(vbd.connected).toBe(true)
}

async function live(acts: readonly Act[]): Promise<void> {
  const world = await VbdWorld.open({ reconcileMs: 100 })
  const pending: Promise<unknown>[] = []
  try {
    await world.createDomain()
    await world.attach()
    await world.backend.serve('1:xvda', memory('1MiB'), { toolstack: 'wait' })
    for (const what of acts) await perform(world, what, pending)
    await recover(world)
    await Promise.allSettled(pending)
  } finally {
    await world.backend.close({ timeoutMs: 20 })
  }
  expect(world.violations).toEqual([])
  expect(world.engine.violations).toEqual([])
  expect([world.engine.mapped, world.engine.vbds.size, world.engine.disks.size]).toEqual([0, 0, 0])
  expect(world.ours.watches).toBe(0)
  // However long the life was: ten warnings a minute, and those of the toolstack.
  expect(world.warnings.length).toBeLessThanOrEqual(20)
}

describe('random lives', () => {
  it('break no law, and a good guest is served after them', async () => {
    await fc.assert(fc.asyncProperty(fc.array(act, { maxLength: 40 }), live), {
      numRuns: Number(process.env.VBDKIT_MODEL_RUNS ?? 60),
    })
  })

  it('a reconnect storm ends where it began', async () => {
    const storm = Array.from({ length: 300 }, (_, turn): Act => {
      const states = ['1', '3', '4', '5', '6', '9', '6', '1', '4']
      if (turn % 7 === 6) return { act: 'wait', turns: turn % 30 }
      return { act: 'front-state', state: states[turn % states.length]! }
    })
    await live([{ act: 'ring-keys', keys: {} }, ...storm])
  })
})
