/**
 * Flushes that fail, on both engines: a guest that is told of one takes it for a success, so it is told nothing,
 * then or later; writes fail from then on, reads go on, and the vbd says what happened.
 */
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { defineDisk } from '../../lib/disk/define.js'
import type { Disk } from '../../lib/disk/disk.js'
import { memory } from '../../lib/disk/drivers.js'
import { fault } from '../../lib/disk/filters.js'
import { DiskError } from '../../lib/disk/script.js'
import type { FrontQueue } from '../../lib/testing/front_queue.js'
import type { RawResponse } from '../../lib/testing/in_flight.js'
import { PATIENT } from '../support/patience.js'
import { World } from '../support/product_world.js'

let world: World

beforeEach(async () => {
  world = await World.open()
})
afterEach(() => world.close())

const OKAY = 0
const ERROR = -1

/** What came back so far for a request that is sent as it is. */
function send(queue: FrontQueue, operation: 'flush' | 'barrier'): { answer?: RawResponse } {
  const sent: { answer?: RawResponse } = {}
  const request = { operation, handle: 0, sector: 0, segments: [] }
  void queue.submitRaw(request).then((answer) => {
    // The end of the connection is no answer.
    if (answer !== undefined) sent.answer = answer
  })
  return sent
}

const FAILING: readonly (readonly [string, () => Disk])[] = [
  ['the fault filter', () => memory('1MiB').with(fault({ op: 'flush', when: { skip: 1 } }))],
  [
    'a script whose flush fails',
    () => {
      let flushes = 0
      return defineDisk({
        name: 'failing',
        size: '1MiB',
        read() {},
        write() {},
        flush() {
          if (flushes++ > 0) throw new DiskError('EIO')
        },
      })
    },
  ],
]

describe.each(FAILING)('%s', (_what, disk) => {
  it.each(['flush', 'barrier'] as const)('a %s that fails is never answered', async (operation) => {
    const guest = await world.guest()
    const vbd = await world.backend.serve(`${guest.domid}:xvda`, disk(), { barrier: true })
    const frontend = await guest.disk('xvda', { closeTimeoutMs: 200 })
    const queue = frontend.queues[0]!

    const good = send(queue, 'flush')
    await vi.waitFor(() => expect(good.answer?.status).toBe(OKAY), PATIENT)

    const failed = send(queue, operation)
    await vi.waitFor(() => expect(world.said.errors.join()).toContain('a flush failed'), PATIENT)
    const later = [send(queue, 'flush'), send(queue, 'barrier')]

    // What comes after them on the ring is answered: they are not merely late.
    await expect(frontend.write(0, Buffer.alloc(512))).rejects.toThrow('ERROR to a write')
    expect((await frontend.read(4096, 512)).length).toBe(512)
    expect([failed, ...later]).toEqual([{}, {}, {}])
    const stats = vbd.stats()
    expect(stats.flush).toMatchObject({ requests: 1, errors: 0 })
    expect(stats.write.errors).toBe(1)

    await guest.close()
    await vbd.close({ timeoutMs: 1000 })
    expect([failed, ...later]).toEqual([{}, {}, {}])
  })
})

it('a flush that succeeds beside one that fails is not answered, and what waits behind them is not begun', async () => {
  const guest = await world.guest()
  const flushes: { resolve(): void; reject(error: Error): void }[] = []
  let written = 0
  const disk = defineDisk({
    name: 'two flushes',
    size: '1MiB',
    read() {},
    write() {
      written++
    },
    flush: () => new Promise<void>((resolve, reject) => flushes.push({ resolve, reject })),
  })
  const vbd = await world.backend.serve(`${guest.domid}:xvda`, disk, { barrier: true })
  const frontend = await guest.disk('xvda', { closeTimeoutMs: 200 })
  const queue = frontend.queues[0]!
  const sent = [send(queue, 'flush'), send(queue, 'flush')]
  await vi.waitFor(() => expect(flushes).toHaveLength(2), PATIENT)
  sent.push(send(queue, 'barrier'))
  await expect.poll(() => vbd.stats().inFlight).toBe(3)
  flushes[0]!.reject(new DiskError('EIO'))
  await vi.waitFor(() => expect(world.said.errors.join()).toContain('a flush failed'), PATIENT)
  flushes[1]!.resolve()

  // Taken after all of them.
  await expect(frontend.write(0, Buffer.alloc(512))).rejects.toThrow('ERROR to a write')
  expect((await frontend.read(4096, 512)).length).toBe(512)
  expect(sent).toEqual([{}, {}, {}])
  expect(flushes).toHaveLength(2)
  expect(written).toBe(0)
  expect(vbd.stats().flush.requests).toBe(0)
  await guest.close()
  await vbd.close({ timeoutMs: 1000 })
  expect(sent).toEqual([{}, {}, {}])
})

it('what fails besides flushes is answered so, and nothing more', async () => {
  const guest = await world.guest()
  const failing = memory('1MiB').with(
    fault({ op: ['read', 'write', 'discard'], when: { offset: '64KiB', length: '4KiB' } }),
  )
  const vbd = await world.backend.serve(`${guest.domid}:xvda`, failing)
  const frontend = await guest.disk('xvda')
  const data = Buffer.alloc(4096, ERROR)
  await expect(frontend.write(65_536, data)).rejects.toThrow('ERROR to a write')
  await expect(frontend.read(65_536, 4096)).rejects.toThrow('ERROR to a read')
  await expect(frontend.discard(65_536, 4096)).rejects.toThrow('ERROR to a discard')
  await frontend.write(4096, data)
  await frontend.flush()
  expect(await frontend.read(4096, 4096)).toEqual(data)
  expect(vbd.stages()[0]).toMatchObject({ name: 'fault', values: { failed: 3 } })
  expect(world.said.errors).toEqual([])
})
