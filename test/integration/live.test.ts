/**
 * A disk changed under a guest that uses it: paused and resumed, swapped for another image, traced. The guest sees
 * every byte it wrote, no error, and at most a wait.
 */
import { copyFileSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { file, memory } from '../../lib/disk/drivers.js'
import type { TransferChoice } from '../../lib/engine/engine.js'
import type { TracedRequest } from '../../lib/engine/traced.js'
import type { Frontend } from '../../lib/testing/frontend.js'
import type { Vbd } from '../../lib/vbd/vbd.js'
import { PATIENT } from '../support/patience.js'
import { VerifiedDisk } from '../support/product_verify.js'
import { diskFolder, MIB, World } from '../support/product_world.js'

const SIZE = 8 * MIB

let world: World

beforeEach(async () => {
  world = await World.open({ reactors: 2 })
})
afterEach(() => world.close())

async function serve(
  disk: Parameters<World['backend']['serve']>[1],
  transfer: TransferChoice = 'auto',
): Promise<{ vbd: Vbd; frontend: Frontend }> {
  const guest = await world.guest({ memoryBytes: 64 * MIB })
  const vbd = await world.backend.serve(`${guest.domid}:xvda`, disk, { transfer, queues: 2 })
  const frontend = await guest.disk('xvda', { queues: 2, memoryBytes: 4 * MIB })
  return { vbd, frontend }
}

/** Runs verified I/O while `act` does, then looks at the whole disk. */
async function underLoad(frontend: Frontend, act: () => Promise<void>): Promise<VerifiedDisk> {
  const disk = new VerifiedDisk(frontend, { seed: 7, sectors: SIZE / 512, maxSectors: 64 })
  const stop = new AbortController()
  const load = disk.run({ depth: 8, signal: stop.signal })
  await act()
  stop.abort()
  await load
  await disk.check()
  expect(frontend.violations).toEqual([])
  return disk
}

describe('pause and resume', () => {
  it.each(['persistent', 'copy', 'map'] as const)(
    'ten times under load, %s, nothing lost',
    async (transfer) => {
      const { vbd, frontend } = await serve(file(world.image(SIZE, diskFolder())), transfer)
      await underLoad(frontend, async () => {
        for (let i = 0; i < 10; i++) {
          await vbd.pause()
          expect(vbd.paused).toBe(true)
          const { read, write } = vbd.stats().counters
          expect(vbd.stats().counters.inFlight).toBe(0)
          await new Promise((resolve) => setImmediate(resolve))
          const after = vbd.stats().counters
          expect(after.read.requests).toBe(read.requests)
          expect(after.write.requests).toBe(write.requests)
          await vbd.resume()
          await vi.waitFor(
            () => expect(vbd.stats().counters.read.requests).toBeGreaterThan(read.requests),
            PATIENT,
          )
        }
      })
      expect(world.said.errors).toEqual([])
    },
  )

  it('holds a request back until resume, and nothing of the guest meanwhile', async () => {
    const { vbd, frontend } = await serve(memory(SIZE))
    await vbd.pause()
    await vbd.pause()
    let answered = false
    const read = frontend.read(0, 4096).then(() => {
      answered = true
    })
    await world.expectReleased(vbd.domid)
    expect(answered).toBe(false)
    await vbd.resume()
    await vbd.resume()
    await read
    expect(answered).toBe(true)
  })

  it('a guest that leaves while paused leaves, and the next one waits for resume', async () => {
    const guest = await world.guest()
    const vbd = await world.backend.serve(`${guest.domid}:xvda`, memory(SIZE))
    const frontend = await guest.disk('xvda')
    await vbd.pause()
    await frontend.close()
    await vi.waitFor(() => expect(vbd.connected).toBe(false), PATIENT)
    const connecting = guest.disk('xvda')
    await vi.waitFor(() => expect(vbd.frontendState).toBe('Initialised'), PATIENT)
    expect(vbd.connected).toBe(false)
    await vbd.resume()
    const again = await connecting
    await again.read(0, 512)
  })

  it('closing a paused vbd lets its guest finish', async () => {
    const { vbd, frontend } = await serve(memory(SIZE))
    await vbd.pause()
    const write = frontend.write(0, Buffer.alloc(4096, 1))
    await vbd.close()
    await write
    await expect(vbd.pause()).rejects.toMatchObject({ code: 'ERR_VBD_STATE' })
  })
})

describe('swap', () => {
  it('to a copy of the image, under load: every later write is in the copy', async () => {
    const path = world.image(SIZE, diskFolder())
    const copy = join(world.folder(diskFolder()), 'copy.img')
    const { vbd, frontend } = await serve(file(path))
    let old = Buffer.alloc(0)
    const disk = await underLoad(frontend, async () => {
      await vi.waitFor(
        () => expect(vbd.stats().counters.write.requests).toBeGreaterThan(20),
        PATIENT,
      )
      await vbd.pause()
      copyFileSync(path, copy)
      old = readFileSync(path)
      await vbd.swap(file(copy))
      expect(vbd.paused).toBe(true)
      await vbd.resume()
      const { requests } = vbd.stats().counters.write
      await vi.waitFor(
        () => expect(vbd.stats().counters.write.requests).toBeGreaterThan(requests + 20),
        PATIENT,
      )
    })
    expect(disk.done).toBeGreaterThan(40)
    expect(vbd.disk.description).toContain(copy)
    expect(readFileSync(path).equals(old)).toBe(true)
    expect(readFileSync(copy).equals(old)).toBe(false)
    expect(world.engine.resources().disks).toBe(1)
  })

  it('to a larger disk tells the guest its size', async () => {
    const { vbd, frontend } = await serve(memory(SIZE))
    await vbd.swap(memory(2 * SIZE))
    await vi.waitFor(() => expect(frontend.properties.sizeBytes).toBe(2 * SIZE), PATIENT)
    await frontend.write(SIZE, Buffer.alloc(4096, 5))
    expect(await frontend.read(SIZE, 4096)).toEqual(Buffer.alloc(4096, 5))
  })

  it('refuses what would break the promises made, and serves the old disk on', async () => {
    const path = world.image(SIZE)
    const { vbd, frontend } = await serve(memory(SIZE))
    await frontend.write(0, Buffer.alloc(4096, 9))
    const refused = [
      memory(SIZE / 2),
      memory(SIZE, { sectorSize: 4096 }),
      file(path, { readOnly: true }),
      file('/nonexistent/disk.img'),
    ]
    for (const disk of refused) {
      await expect(vbd.swap(disk)).rejects.toMatchObject({ name: 'VbdError' })
    }
    expect(vbd.paused).toBe(false)
    expect(await frontend.read(0, 4096)).toEqual(Buffer.alloc(4096, 9))
    expect(world.engine.resources().disks).toBe(1)
    await vbd.swap(memory(SIZE / 2), { shrink: true })
    await vi.waitFor(() => expect(frontend.properties.sizeBytes).toBe(SIZE / 2), PATIENT)
  })

  it('of a vbd without a guest: the next guest has the new disk', async () => {
    const domid = world.nextDomid()
    const vbd = await world.backend.serve(`${domid}:xvda`, memory(SIZE))
    await vbd.swap(memory(2 * SIZE))
    const guest = await world.guest({ domid })
    const frontend = await guest.disk('xvda')
    expect(frontend.properties.sizeBytes).toBe(2 * SIZE)
  })
})

describe('trace', () => {
  it('tells every request, refused ones too, while somebody listens', async () => {
    const { vbd, frontend } = await serve(memory(SIZE))
    await frontend.read(0, 512)
    const requests: TracedRequest[] = []
    const stop = new AbortController()
    const trace = vbd.trace({ signal: stop.signal })
    const first = trace.next()
    await frontend.write(4096, Buffer.alloc(8192, 1))
    await frontend.read(512, 1024)
    await frontend.flush()
    await frontend.discard(0, 4096)
    requests.push((await first).value as TracedRequest)
    const before = Date.now()
    while (requests.length < 4) requests.push((await trace.next()).value as TracedRequest)
    expect(
      requests.map(({ operation, offset, length, status }) => [operation, offset, length, status]),
    ).toEqual([
      ['write', 4096, 8192, 'ok'],
      ['read', 512, 1024, 'ok'],
      ['flush', 0, 0, 'ok'],
      ['discard', 0, 4096, 'ok'],
    ])
    for (const { timeMs, latencyUs, queue } of requests) {
      expect(Math.abs(timeMs - before)).toBeLessThan(60_000)
      expect(latencyUs).toBeGreaterThanOrEqual(0)
      expect([0, 1]).toContain(queue)
    }
    stop.abort()
    expect((await trace.next()).done).toBe(true)
  })

  it('two listeners get all of a load each; it ends with the vbd', async () => {
    const { vbd, frontend } = await serve(memory(SIZE))
    const count = async () => {
      let requests = 0
      for await (const { operation } of vbd.trace()) {
        expect(operation).not.toBe('other')
        requests++
      }
      return requests
    }
    const counting = [count(), count()]
    const disk = new VerifiedDisk(frontend, { seed: 3, sectors: SIZE / 512 })
    await disk.run({ count: 2000, depth: 16 })
    const { read, write, flush, discard } = vbd.stats().counters
    const all = read.requests + write.requests + flush.requests + discard.requests
    // What is on its way is not waited for at the end: a request of our own marks it.
    let marked = false
    const marker = vbd.trace()
    const seen = marker.next().then(() => {
      marked = true
    })
    await frontend.read(0, 512)
    await seen
    expect(marked).toBe(true)
    await marker.return()
    await vbd.close()
    const counts = await Promise.all(counting)
    for (const requests of counts) expect(requests).toBeGreaterThanOrEqual(all)
    expect(counts[0]).toBe(counts[1])
  })
})
