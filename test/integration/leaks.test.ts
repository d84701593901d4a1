/**
 * Nothing is left: after every way in which a guest and its disk can part, no grant is mapped, no port bound, and this
 * process holds exactly the descriptors, threads and files that it held before.
 */
import { setImmediate as turn } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import type { Disk } from '../../lib/disk/disk.js'
import { file, memory } from '../../lib/disk/drivers.js'
import type { Protocol, TransferChoice } from '../../lib/engine/engine.js'
import { VbdError } from '../../lib/errors.js'
import type { Frontend } from '../../lib/testing/frontend.js'
import type { MockGuest } from '../../lib/testing/guest.js'
import type { MannersName } from '../../lib/testing/manners.js'
import type { Vbd } from '../../lib/vbd/vbd.js'
import { PRIVILEGED } from '../../lib/xenstore/permission.js'
import { ENGINE } from '../support/engines.js'
import { Random, VerifiedDisk } from '../support/product_verify.js'
import { bounded, diskFolder, MIB, World } from '../support/product_world.js'
import { type Census, census, expectBackTo, ownTemporaryFolder } from '../support/resources.js'

ownTemporaryFolder()

const SIZE = 4 * MIB
const SECTORS = SIZE / 512

/** One guest with one disk in a world. */
interface Scene {
  readonly world: World
  readonly random: Random
  readonly vbd: Vbd
  readonly guest: MockGuest
  readonly frontend: Frontend
}

/** I/O until the disk is taken away; a wrong byte is a failure, an end is not. */
function busy(
  { frontend, random }: Scene,
  depth = 8,
): { running: Promise<void>; disk: VerifiedDisk } {
  const disk = new VerifiedDisk(frontend, {
    seed: random.below(1 << 30),
    sectors: SECTORS,
    maxSectors: 300,
  })
  const running = disk.run({ depth }).catch((error) => {
    if (!(error instanceof VbdError)) throw error
  })
  return { running, disk }
}

async function afterSome({ disk }: { disk: VerifiedDisk }, random: Random): Promise<void> {
  const enough = disk.done + random.below(40)
  for (let i = 0; disk.done < enough && i < 100_000; i++) await turn()
}

/** How a guest and its disk part. Each leaves the guest alive or not, but never the disk connected. */
const ENDINGS: Record<string, (scene: Scene) => Promise<void>> = {
  async 'the guest closes an idle disk'(scene) {
    await scene.frontend.connect()
    const disk = new VerifiedDisk(scene.frontend, { seed: 3, sectors: SECTORS })
    await disk.run({ count: 30 })
    await scene.frontend.close()
  },
  async 'the guest closes with I/O in flight'(scene) {
    await scene.frontend.connect()
    const work = busy(scene)
    await afterSome(work, scene.random)
    await scene.frontend.close({ drain: false })
    await work.running
  },
  async 'the guest dies with I/O in flight'(scene) {
    await scene.frontend.connect()
    const work = busy(scene, 32)
    await afterSome(work, scene.random)
    scene.guest.fail(new VbdError('ERR_VBD_STATE', 'killed by the test'))
    await work.running
  },
  async 'the toolstack destroys the domain with I/O in flight'(scene) {
    await scene.frontend.connect()
    const work = busy(scene, 32)
    await afterSome(work, scene.random)
    await scene.world.mock.destroyDomain(scene.guest.domid)
    await scene.guest.close()
    await work.running
  },
  async 'the backend closes with I/O in flight'(scene) {
    await scene.frontend.connect()
    const work = busy(scene)
    await afterSome(work, scene.random)
    await scene.vbd.close()
    await scene.frontend.close()
    await work.running
  },
  async 'the guest gives up during the handshake'(scene) {
    const life = new AbortController()
    let left = scene.random.below(12)
    const step = () => {
      if (left-- <= 0) life.abort()
    }
    scene.frontend.on('state', step)
    scene.frontend.on('key', step)
    await scene.frontend.connect({ signal: life.signal }).catch((error) => {
      if (!(error instanceof VbdError)) throw error
    })
    await scene.frontend.close()
  },
  async 'the guest dies during the handshake'(scene) {
    let left = scene.random.below(12)
    const step = () => {
      if (left-- <= 0) scene.guest.fail(new VbdError('ERR_VBD_STATE', 'killed by the test'))
    }
    scene.frontend.on('state', step)
    scene.frontend.on('key', step)
    await scene.frontend.connect().catch((error) => {
      if (!(error instanceof VbdError)) throw error
    })
    await scene.guest.close()
  },
  async 'the backend closes during the handshake'(scene) {
    let closing: Promise<void> | undefined
    let left = scene.random.below(8)
    scene.frontend.on('state', () => {
      if (left-- <= 0) closing ??= scene.vbd.close()
    })
    await scene.frontend.connect().catch((error) => {
      if (!(error instanceof VbdError)) throw error
    })
    await (closing ?? scene.vbd.close())
    await scene.frontend.close()
  },
  async 'the guest closes and opens again'(scene) {
    for (let i = 0; i < 3; i++) {
      await scene.frontend.connect()
      const disk = new VerifiedDisk(scene.frontend, { seed: 9, sectors: SECTORS, firstSector: 0 })
      if (i === 0) await disk.run({ count: 20 })
      await scene.frontend.close()
    }
  },
}

const names = Object.keys(ENDINGS)

/** Every kind of disk. */
function disksIn(world: World): (() => Disk)[] {
  return [
    () => memory(SIZE),
    () => file(world.image(SIZE), { io: 'auto', direct: false }),
    () => file(world.image(SIZE, diskFolder()), { io: 'uring' }),
    () => file(world.image(SIZE), { io: 'sync', direct: false }),
  ]
}

/** A scene with random properties, one ending, and what must be so after it. */
async function cycle(world: World, name: string, random: Random): Promise<void> {
  const domid = world.nextDomid()
  const disk = random.pick(disksIn(world))()
  const vbd = await world.backend.serve(`${domid}:xvda`, disk, {
    transfer: random.pick<TransferChoice>(['auto', 'persistent', 'copy', 'map']),
    queues: 4,
  })
  const guest = await world.guest({ domid, memoryBytes: 16 * MIB })
  const frontend = guest.frontend('xvda', {
    protocol: random.pick<Protocol>(['x86_64-abi', 'x86_32-abi', 'arm-abi']),
    queues: 1 + random.below(4),
    ringOrder: random.below(5),
    indirectSegments: random.pick([0, 32, 256]),
    persistent: random.below(3) > 0,
    manners: random.pick<MannersName>([
      'linux',
      'linux',
      'linux',
      'windows',
      'freebsd',
      'mini-os',
      'netbsd',
      'grub',
    ]),
    reconnect: random.below(2) === 0,
  })
  await bounded(ENDINGS[name]!({ world, random, vbd, guest, frontend }), 30, () => ({
    states: [frontend.state, vbd.state, vbd.frontendState],
    load: frontend.load,
    rings: frontend.queues.map((queue) => queue.ring.indices()),
    disk: vbd.disk.description,
    counters: vbd.stats().counters,
  }))
  await world.expectReleased(domid)
  expect(frontend.violations).toEqual([])
  if (!guest.signal.aborted) {
    expect(guest.memory.sweep(), 'pages that the backend still maps').toBe(0)
    expect(guest.memory.use).toMatchObject({ pages: 0, grants: 0 })
  }
  await guest.close()
  await vbd.close()
  await world.expectNoDomains()
  expect(vbd.stats().inFlight).toBe(0)
}

/** Every node of the mock's xenstore. */
function nodesOf({ mock }: World, path = ''): string[] {
  const children = mock.server.store.list(PRIVILEGED, path === '' ? '/' : path).children
  return [...children].flatMap((name) => [
    `${path}/${name}`,
    ...nodesOf({ mock } as World, `${path}/${name}`),
  ])
}

/** Waits until xenstore holds these nodes and no others. */
async function expectNodes(world: World, nodes: readonly string[]): Promise<void> {
  await vi.waitFor(() => expect(nodesOf(world)).toEqual(nodes), { timeout: 15_000, interval: 20 })
}

/** The JavaScript engine has its watcher, however many are asked for. */
const REACTORS = ENGINE === 'native' ? 2 : 1

describe('guests that come and go', () => {
  let world: World
  let baseline: Census
  let nodes: readonly string[]
  let folders: number

  beforeAll(async () => {
    world = await World.open()
    // Everything that is made once and kept (threads of libuv, of the kernel's rings) is made now.
    for (const name of names) await cycle(world, name, new Random(1))
    for (const disk of disksIn(world)) {
      await (await world.backend.serve(`${world.nextDomid()}:xvda`, disk())).close()
    }
    folders = world.dropFolders()
    baseline = census()
    nodes = nodesOf(world)
  })
  afterAll(() => world.close())

  it.each(names)('%s: nothing is left', async (name) => {
    for (let seed = 1; seed <= 4; seed++) await cycle(world, name, new Random(seed * 7919))
    world.dropFolders()
    await expectBackTo(baseline)
    await expectNodes(world, nodes)
    expect(world.engine.resources()).toMatchObject({ reactors: REACTORS, vbds: 0, disks: 0 })
  })

  it('200 random ones: nothing is left', async () => {
    expect(folders).toBeGreaterThan(0)
    const seed = Number(process.env.VBDKIT_SEED ?? 20_261)
    const random = new Random(seed)
    for (let i = 0; i < 200; i++) {
      const name = random.pick(names)
      try {
        await cycle(world, name, random)
      } catch (cause) {
        throw new Error(`cycle ${i} of seed ${seed}: ${name}`, { cause })
      }
    }
    world.dropFolders()
    await expectBackTo(baseline)
    await expectNodes(world, nodes)
    expect(world.engine.resources()).toMatchObject({ reactors: REACTORS, vbds: 0, disks: 0 })
    expect(world.said.errors).toEqual([])
  }, 300_000)
})

describe('backends that come and go', () => {
  async function once(reactors: number): Promise<void> {
    const world = await World.open({ reactors })
    await Promise.all(names.slice(0, 4).map((name, i) => cycle(world, name, new Random(i + 1))))
    await world.close()
  }

  it('leave nothing of themselves', async () => {
    await once(1)
    const baseline = census()
    for (let i = 0; i < 10; i++) await once(1 + (i % 4))
    await expectBackTo(baseline)
  }, 120_000)

  it('leave nothing when they close while everything is in use', async () => {
    await once(1)
    const baseline = census()
    for (let i = 0; i < 5; i++) {
      const world = await World.open({ reactors: 2 })
      const domid = world.nextDomid()
      const vbd = await world.backend.serve(`${domid}:xvda`, file(world.image(SIZE)))
      const guest = await world.guest({ domid })
      const frontend = guest.frontend('xvda', { queues: 2, closeTimeoutMs: 500 })
      await frontend.connect()
      const scene = { world, random: new Random(i + 1), vbd, guest, frontend }
      const work = busy(scene)
      await afterSome(work, scene.random)
      await world.backend.close({ timeoutMs: 300 })
      await guest.close()
      await work.running
      await world.close()
    }
    await expectBackTo(baseline)
  }, 120_000)
})
