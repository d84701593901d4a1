/**
 * Caches under guests: what is in memory alone is written back before anybody is told that a disk is at rest, and who
 * asks for that is told where it cannot be.
 */
import { readFileSync } from 'node:fs'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { cache, readAhead } from '../../lib/disk/caching.js'
import { file } from '../../lib/disk/drivers.js'
import { fault } from '../../lib/disk/filters.js'
import type { Frontend } from '../../lib/testing/frontend.js'
import type { Vbd } from '../../lib/vbd/vbd.js'
import { VerifiedDisk } from '../support/product_verify.js'
import { MIB, World } from '../support/product_world.js'

const SIZE = 8 * MIB
const SEVENS = Buffer.alloc(4096, 7)

let world: World

beforeEach(async () => {
  world = await World.open({ reactors: 2 })
})
afterEach(() => world.close())

async function serve(
  disk: Parameters<World['backend']['serve']>[1],
): Promise<{ vbd: Vbd; frontend: Frontend }> {
  const guest = await world.guest({ memoryBytes: 64 * MIB })
  const vbd = await world.backend.serve(`${guest.domid}:xvda`, disk, { queues: 2 })
  const frontend = await guest.disk('xvda', { queues: 2, memoryBytes: 4 * MIB })
  return { vbd, frontend }
}

const at = (path: string, offset: number) => readFileSync(path).subarray(offset, offset + 4096)
const values = (vbd: Vbd, name: string) => vbd.stages().find((stage) => stage.name === name)!.values

/** A disk whose writes fail once they are told to. */
const failing = (path: string) =>
  file(path).with(fault({ op: 'write', probability: 0 }), cache({ writeBackAfter: '1h' }))

describe('a cache', () => {
  it('is written back by a flush, a pause, a swap and at the end', async () => {
    const path = world.image(SIZE)
    const other = world.image(SIZE)
    const { vbd, frontend } = await serve(file(path).with(cache({ writeBackAfter: '1h' })))
    await frontend.write(0, SEVENS)
    expect(at(path, 0).equals(SEVENS)).toBe(false)
    expect(values(vbd, 'cache')).toMatchObject({ dirtyBytes: 4096 })
    await frontend.flush()
    expect(at(path, 0).equals(SEVENS)).toBe(true)
    await frontend.write(65536, SEVENS)
    await vbd.pause()
    expect(at(path, 65536).equals(SEVENS)).toBe(true)
    await vbd.resume()
    await frontend.write(MIB, SEVENS)
    await vbd.swap(file(other).with(cache({ writeBackAfter: '1h' })))
    expect(at(path, MIB).equals(SEVENS)).toBe(true)
    await frontend.write(2 * MIB, SEVENS)
    await vbd.close()
    expect(at(other, 2 * MIB).equals(SEVENS)).toBe(true)
    expect(world.said.errors).toEqual([])
  })

  it('that cannot be written back: no pause, no swap, and the end says what is lost', async () => {
    const path = world.image(SIZE)
    const { vbd, frontend } = await serve(failing(path))
    await frontend.write(0, SEVENS)
    vbd.tuneStage('fault', { probability: 1 })
    await expect(vbd.pause()).rejects.toMatchObject({ code: 'ERR_VBD_BACKING' })
    expect(vbd.paused).toBe(false)
    await expect(vbd.swap(file(world.image(SIZE)))).rejects.toMatchObject({
      code: 'ERR_VBD_BACKING',
    })
    // Served on, from the old disk, with what was written.
    expect((await frontend.read(0, 4096)).equals(SEVENS)).toBe(true)
    await expect(vbd.close()).rejects.toThrow(/4096 bytes of it in the cache, is lost/)
  })

  it('under load, with what reads ahead of it, and pauses', async () => {
    const disk = file(world.image(SIZE)).with(
      cache({ memory: '1MiB', writeBackAfter: '10ms' }),
      readAhead({ window: '256KiB' }),
    )
    const { vbd, frontend } = await serve(disk)
    const verified = new VerifiedDisk(frontend, { seed: 3, sectors: SIZE / 512, maxSectors: 64 })
    const stop = new AbortController()
    const load = verified.run({ depth: 8, signal: stop.signal })
    for (let i = 0; i < 5; i++) {
      const before = vbd.stats().counters.read.requests
      await vbd.pause()
      expect(values(vbd, 'cache')).toMatchObject({ dirtyBytes: 0 })
      await vbd.resume()
      await expect.poll(() => vbd.stats().counters.read.requests).toBeGreaterThan(before)
    }
    stop.abort()
    await load
    await verified.check()
    expect(frontend.violations).toEqual([])
    const { hits, memoryBytes } = values(vbd, 'cache')
    expect(hits).toBeGreaterThan(0)
    expect(memoryBytes).toBe(MIB)
  })
})
