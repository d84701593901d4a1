/** The JavaScript engine alone: what depends on the turns of its loop, and where it runs what. */
import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { defineDisk, defineFilter } from '../../lib/disk/define.js'
import { file, memory } from '../../lib/disk/drivers.js'
import { throttle } from '../../lib/disk/filters.js'
import { PATIENT } from '../support/patience.js'
import { MIB, World } from '../support/product_world.js'

let world: World

beforeEach(async () => {
  world = await World.open({ engine: 'js' })
})
afterEach(async () => {
  vi.restoreAllMocks()
  await world.close()
})

/** Something that a test settles. */
function gate() {
  let open = () => {}
  const opened = new Promise<void>((resolve) => {
    open = resolve
  })
  return { open, opened }
}

/** A clock by which every pass over the rings takes longer than a turn may. */
function slowClock(): void {
  let now = performance.now()
  vi.spyOn(performance, 'now').mockImplementation(() => {
    now += 1
    return now
  })
}

it('a barrier goes on when the last request of another ring is done, however short the turns', async () => {
  const done: string[] = []
  const held = gate()
  const started = gate()
  const disk = defineDisk({
    name: 'held',
    size: '1MiB',
    read() {},
    async write(_buf, offset) {
      started.open()
      await held.opened
      done.push(`write ${offset}`)
    },
    flush: () => void done.push('flush'),
  })
  const guest = await world.guest()
  const vbd = await world.backend.serve(`${guest.domid}:xvda`, disk, { barrier: true, queues: 2 })
  const frontend = await guest.disk('xvda', { queues: 2 })
  slowClock()
  const [first, second] = frontend.queues
  const ref = guest.memory.grant(guest.memory.takePages(1), frontend.backendId, false)!
  const segments = [{ ref, first: 0, last: 0 }]
  const written = second!.submitRaw({ operation: 'write', handle: 0, sector: 8, segments })
  await started.opened
  const barrier = first!.submitRaw({ operation: 'barrier', handle: 0, sector: 0, segments: [] })
  await vi.waitFor(() => expect(vbd.stats().inFlight).toBe(2), PATIENT)
  expect(done).toEqual([])
  held.open()
  expect(await written).toMatchObject({ status: 0 })
  expect(await barrier).toMatchObject({ status: 0 })
  expect(done).toEqual(['write 4096', 'flush'])
})

const upper = defineFilter('upper', (next) => ({ ...next }))

it('explains where each stage runs', async () => {
  const image = world.image(MIB)
  const stagesOf = async (disk: Parameters<typeof world.backend.serve>[1]) => {
    const vbd = await world.backend.serve(`${world.nextDomid()}:xvda`, disk)
    const { stages } = vbd.explain()
    await vbd.close()
    return stages.map(({ name, runsIn }) => `${name}: ${runsIn}`)
  }
  expect(await stagesOf(file(image))).toEqual(['file: engine'])
  expect(await stagesOf(memory(MIB).with(throttle({ iops: 10 })))).toEqual([
    'memory: native',
    'throttle: native',
  ])
  expect(
    await stagesOf(
      file(image)
        .with(upper)
        .with(throttle({ iops: 10 })),
    ),
  ).toEqual(['file: native', 'upper: script', 'throttle: script'])
})
