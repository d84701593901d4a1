/**
 * The control plane on the native engine and the mock Xen, with real frontends: what a guest and its host can do to a
 * vbd, and that nothing of it stays mapped.
 */
import { randomBytes } from 'node:crypto'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { Backend } from '../../lib/backend.js'
import { file, memory } from '../../lib/disk/drivers.js'
import { connectXenstore } from '../../lib/xenstore/client.js'
import { MIB, World } from '../support/product_world.js'

let world: World

beforeAll(async () => {
  world = await World.open({ reconcileMs: 200 })
})
afterAll(() => world.close())

afterEach(async () => {
  for (const vbd of world.backend.vbds()) await vbd.close()
  expect(world.engine.resources()).toMatchObject({ vbds: 0, disks: 0 })
  world.said.errors.length = 0
})

describe('on the mock Xen', () => {
  it('serves, resizes and counts', async () => {
    const domid = world.nextDomid()
    const vbd = await world.backend.serve(`${domid}:xvda`, memory('4MiB'))
    const guest = await world.guest({ domid })
    const disk = await guest.disk('xvda', { queues: 2 })
    const data = randomBytes(MIB)
    await disk.write(0, data)
    await disk.flush()
    expect(data.equals(await disk.read(0, MIB))).toBe(true)

    expect(vbd.connection?.queues).toBe(Math.min(2, vbd.connection?.queues ?? 0))
    const stats = vbd.stats()
    expect(stats.write.bytes).toBe(MIB)
    expect(stats.read.bytes).toBe(MIB)
    expect(stats.flush.requests).toBeGreaterThan(0)
    expect(stats.write.latency.p99).toBeGreaterThanOrEqual(stats.write.latency.p50)
    expect(stats.write.latency.count).toBe(stats.write.requests)

    const resized = new Promise((resolve) => vbd.on('resized', resolve))
    await vbd.resize('8MiB')
    await resized
    await expect.poll(() => disk.properties.sizeBytes).toBe(8 * MIB)
    await disk.write(8 * MIB - 4096, randomBytes(4096))
    await guest.close()
    await world.expectNoDomains()
  })

  it('a guest that is destroyed and comes back finds its disk again', async () => {
    const domid = world.nextDomid()
    const vbd = await world.backend.serve(`${domid}:xvda`, memory('4MiB'))
    for (let life = 0; life < 3; life++) {
      const guest = await world.guest({ domid })
      const disk = await guest.disk('xvda')
      await disk.write(life * 4096, Buffer.alloc(4096, life + 1))
      const back = await disk.read(0, 4096)
      expect(back[0]).toBe(1)
      // Neither the disk nor the guest is closed: the domain is gone from one moment to the next.
      await world.mock.destroyDomain(domid)
      await world.expectNoDomains()
      await expect.poll(() => vbd.connected).toBe(false)
      await guest.close()
    }
  })

  it('connects and closes again and again, with nothing left over', async () => {
    const domid = world.nextDomid()
    const vbd = await world.backend.serve(`${domid}:xvda`, memory('1MiB'))
    const guest = await world.guest({ domid })
    for (let turn = 0; turn < 20; turn++) {
      const disk = await guest.disk('xvda', { queues: 1 + (turn % 2), ringOrder: turn % 5 })
      await disk.write(0, Buffer.alloc(4096, turn))
      await disk.close()
      await world.expectReleased(domid)
    }
    expect(vbd.stats().write.requests).toBe(20)
    await guest.close()
  })

  it('a memory disk that is read-only for its guest refuses to be written', async () => {
    const domid = world.nextDomid()
    await world.backend.serve(`${domid}:xvda`, memory('1MiB'), { readOnly: true })
    const guest = await world.guest({ domid })
    const disk = await guest.disk('xvda')
    expect(disk.properties.readOnly).toBe(true)
    await expect(disk.write(0, Buffer.alloc(4096))).rejects.toThrow()
    await guest.close()
  })

  it('an image that another vbd writes is refused, whatever its name', async () => {
    const path = world.image(MIB)
    await world.backend.serve(`${world.nextDomid()}:xvda`, file(path))
    const again = world.backend.serve(`${world.nextDomid()}:xvda`, file(`${path}/../disk.img`))
    await expect(again).rejects.toMatchObject({ code: 'ERR_VBD_BUSY', path })
    const other = world.backend.serve(`${world.nextDomid()}:xvda`, file(path, { readOnly: true }))
    await expect(other).rejects.toMatchObject({ code: 'ERR_VBD_BUSY' })
  })

  it('grants that cannot be mapped: refused, and connected when they can', async () => {
    const domid = world.nextDomid()
    const vbd = await world.backend.serve(`${domid}:xvda`, memory('1MiB'))
    const guest = await world.guest({ domid })
    world.mock.setFaults([{ call: 'map', domid, count: 1, errno: 22 }])
    try {
      const disk = await guest.disk('xvda').catch((error) => error)
      if (disk instanceof Error) await guest.disk('xvda')
      expect(vbd.connected).toBe(true)
      expect(world.said.warnings.join()).toContain('the frontend cannot be connected')
    } finally {
      world.mock.setFaults([])
      await guest.close()
    }
  })
})

describe('the mock is stopped', () => {
  it('while a guest is connected: the backend says so and closes at once', async () => {
    const stopped = await World.open()
    const states: string[] = []
    stopped.backend.on('xenstore', ({ state }) => states.push(state))
    const vbd = await stopped.backend.serve('1:xvda', memory('1MiB'))
    const guest = await stopped.guest({ domid: 1 })
    await guest.disk('xvda')
    expect(vbd.connected).toBe(true)
    await stopped.mock.close()
    await expect.poll(() => states).toContain('lost')
    // Longer than this test may take: it must not wait for anyone.
    await stopped.backend.close({ timeoutMs: 3_600_000 })
    await stopped.close()
  })

  it('before there was one: said, with what to do', async () => {
    await expect(Backend.open({ xen: 'mock:/nonexistent/mock' })).rejects.toMatchObject({
      code: 'ERR_VBD_NO_XEN',
      exitCode: 2,
    })
    await expect(Backend.open({ xen: 'host' })).rejects.toMatchObject({ exitCode: 2 })
    await expect(Backend.open({ xen: 'mock', engine: 'abacus' as never })).rejects.toMatchObject({
      code: 'ERR_VBD_ARGUMENT',
    })
    await expect(Backend.open({ xen: 'mars' as never })).rejects.toMatchObject({
      code: 'ERR_VBD_ARGUMENT',
    })
  })
})

describe('what is in xenstore after close', () => {
  it('nothing of ours', async () => {
    const domid = world.nextDomid()
    const vbd = await world.backend.serve(`${domid}:xvda`, memory('1MiB'))
    const guest = await world.guest({ domid })
    await guest.disk('xvda')
    const store = await connectXenstore({ path: world.mock.paths.xenstore })
    try {
      expect(await store.tryRead(`/local/domain/0/backend/vbd/${domid}/51712/state`)).toBe('4')
      await vbd.close()
      expect(await store.tryList(`/local/domain/0/backend/vbd/${domid}`)).toEqual([])
      expect(await store.tryList(`/local/domain/${domid}/device/vbd`)).toEqual([])
      expect(await store.tryList(`/local/domain/0/error/backend/vbd/${domid}`)).toEqual([])
    } finally {
      await store.close()
      await guest.close()
    }
  })
})
