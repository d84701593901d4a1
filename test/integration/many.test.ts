/**
 * Many disks on few threads: 64 vbds on two reactors, all of them busy and every byte checked; a vbd costs no thread
 * beyond its reactor's, and all of them together cost nothing while they are idle.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { Disk } from '../../lib/disk/disk.js'
import { file, memory } from '../../lib/disk/drivers.js'
import type { Protocol, TransferChoice } from '../../lib/engine/engine.js'
import type { Frontend } from '../../lib/testing/frontend.js'
import { formatVdev } from '../../lib/units.js'
import type { Vbd } from '../../lib/vbd/vbd.js'
import { describeNative } from '../support/engines.js'
import { reactorSeconds } from '../support/product_hostile.js'
import { VerifiedDisk } from '../support/product_verify.js'
import { diskFolder, MIB, World } from '../support/product_world.js'
import { threadsOf } from '../support/resources.js'

const SIZE = 2 * MIB
const GUESTS = 4
const DISKS_PER_GUEST = 16

let world: World

/** What Node complains about: nothing may be kept as often as there are disks. */
const complaints: string[] = []
const onWarning = (warning: Error) => void complaints.push(`${warning.name}: ${warning.message}`)

beforeEach(async () => {
  process.on('warning', onWarning)
  world = await World.open({ reactors: 2 })
})
afterEach(async () => {
  await world.close()
  process.off('warning', onWarning)
  expect(complaints.splice(0)).toEqual([])
})

/** The threads that are not the guests' own, nor Node's. */
function backendThreads(): Record<string, number> {
  const { node: _node, 'vbdkit-watch': _watch, 'vbdkit-mock': _mock, ...ours } = threadsOf()
  return ours
}

interface Served {
  readonly vbd: Vbd
  readonly frontend: Frontend
}

const PROTOCOLS: readonly Protocol[] = ['x86_64-abi', 'x86_32-abi', 'arm-abi']
const TRANSFERS: readonly TransferChoice[] = ['persistent', 'copy', 'map', 'auto']

/** GUESTS × DISKS_PER_GUEST disks, each with another mixture of properties. */
async function serveAll(disk: (i: number) => Disk): Promise<Served[]> {
  const served: Served[] = []
  for (let g = 0; g < GUESTS; g++) {
    const guest = await world.guest({ memoryBytes: 128 * MIB })
    for (let d = 0; d < DISKS_PER_GUEST; d++) {
      const i = served.length
      const vdev = formatVdev(51712 + 16 * d)
      const transfer = TRANSFERS[i % TRANSFERS.length]!
      const vbd = await world.backend.serve(`${guest.domid}:${vdev}`, disk(i), {
        transfer,
        queues: 2,
      })
      const frontend = await guest.disk(vdev, {
        protocol: PROTOCOLS[i % PROTOCOLS.length],
        queues: 1 + (i % 2),
        ringOrder: i % 3,
        memoryBytes: 2 * MIB,
      })
      served.push({ vbd, frontend })
    }
  }
  return served
}

async function runAll(served: readonly Served[], count: number): Promise<void> {
  await Promise.all(
    served.map(async ({ frontend }, i) => {
      const disk = new VerifiedDisk(frontend, { seed: i + 1, sectors: SIZE / 512, maxSectors: 64 })
      await disk.run({ count, depth: 4 })
      await disk.check()
    }),
  )
}

describe('64 vbds', () => {
  it('find every byte, and give everything back', async () => {
    const served = await serveAll((i) =>
      i % 4 === 0 ? file(world.image(SIZE, diskFolder())) : memory(SIZE),
    )
    expect(world.backend.vbds().length).toBe(GUESTS * DISKS_PER_GUEST)
    expect(world.engine.resources()).toMatchObject({ vbds: 64, disks: 64 })
    await runAll(served, 60)
    for (const { vbd, frontend } of served) {
      const { rejected, counters } = vbd.stats()
      expect(rejected).toBe(0)
      expect(counters).toMatchObject({ grantErrors: 0, diskErrors: 0, inFlight: 0 })
      expect(frontend.violations).toEqual([])
    }
  }, 120_000)

  it('share one thread fairly: a busy disk does not keep others waiting', async () => {
    const guest = await world.guest({ memoryBytes: 128 * MIB })
    const frontends: Frontend[] = []
    for (let d = 0; d < 8; d++) {
      const vdev = formatVdev(51712 + 16 * d)
      await world.backend.serve(`${guest.domid}:${vdev}`, memory(SIZE))
      frontends.push(await guest.disk(vdev, { memoryBytes: 4 * MIB }))
    }
    const stopping = new AbortController()
    const greedy = frontends.slice(0, 7).map((frontend, i) => {
      const disk = new VerifiedDisk(frontend, { seed: i + 1, sectors: SIZE / 512 })
      return disk.run({ depth: 32, signal: stopping.signal })
    })
    const modest = new VerifiedDisk(frontends[7]!, { seed: 99, sectors: SIZE / 512, maxSectors: 8 })
    await modest.run({ count: 100, depth: 1 })
    stopping.abort()
    await Promise.all(greedy)
    expect(modest.done).toBe(100)
  }, 60_000)
})

describeNative('reactors are threads of the native engine')('64 vbds on two reactors', () => {
  it('cost no thread, and sleep when nothing is to be done', async () => {
    const before = backendThreads()
    expect(before).toEqual({ 'vbdkit-0': 1, 'vbdkit-1': 1 })
    const served = await serveAll(() => memory(SIZE))
    expect(world.engine.resources().reactors).toBe(2)
    await runAll(served, 10)
    expect(backendThreads()).toEqual(before)
    // Persistent grants are looked at ten times a second; beyond that nothing may run.
    const start = reactorSeconds()
    await sleep(2000)
    expect(reactorSeconds() - start).toBeLessThan(0.3)
  }, 120_000)

  it('on threads instead of io_uring cost one thread each at most', async () => {
    const served = await serveAll(() => file(world.image(SIZE, diskFolder()), { io: 'sync' }))
    await runAll(served, 20)
    const { 'vbd-disk': disks = 0, ...others } = backendThreads()
    expect(others).toEqual({ 'vbdkit-0': 1, 'vbdkit-1': 1 })
    expect(disks).toBeLessThanOrEqual(served.length)
    await Promise.all(served.map(({ vbd }) => vbd.close()))
    expect(backendThreads()).toEqual({ 'vbdkit-0': 1, 'vbdkit-1': 1 })
  }, 120_000)
})
