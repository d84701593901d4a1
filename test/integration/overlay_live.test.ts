/**
 * Overlays under guests: snapshots, the ways back, and growing, with the guest unaware; and the same disk served again.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { cache } from '../../lib/disk/caching.js'
import type { Disk } from '../../lib/disk/disk.js'
import { file, memory } from '../../lib/disk/drivers.js'
import { overlay } from '../../lib/disk/overlay.js'
import type { Frontend } from '../../lib/testing/frontend.js'
import type { Vbd } from '../../lib/vbd/vbd.js'
import { VerifiedDisk } from '../support/product_verify.js'
import { MIB, World } from '../support/product_world.js'

const SIZE = 8 * MIB
const page = (value: number) => Buffer.alloc(4096, value)

let world: World
let base = ''
let scratch = ''

beforeEach(async () => {
  world = await World.open({ reactors: 2 })
  const folder = world.folder()
  base = join(folder, 'base.img')
  scratch = join(folder, 'scratch')
  writeFileSync(base, Buffer.alloc(SIZE, 1))
})
afterEach(() => world.close())

const disk = () => overlay(file(base), { scratch, granularity: '16KiB' })

async function serve(served: Disk): Promise<{ vbd: Vbd; frontend: Frontend }> {
  const guest = await world.guest({ memoryBytes: 64 * MIB })
  const vbd = await world.backend.serve(`${guest.domid}:xvda`, served)
  const frontend = await guest.disk('xvda', { memoryBytes: 4 * MIB })
  return { vbd, frontend }
}

const valueAt = async (frontend: Frontend, offset: number) => {
  const found = await frontend.read(offset, 4096)
  expect(found.every((byte) => byte === found[0])).toBe(true)
  return found[0]
}

describe('snapshot', () => {
  it('under load: nothing is lost, and the layers are found again', async () => {
    const { vbd, frontend } = await serve(disk().with(cache({ memory: '1MiB' })))
    for (let at = 0; at < SIZE; at += MIB) await frontend.write(at, Buffer.alloc(MIB))
    const options = { seed: 3, sectors: SIZE / 512, maxSectors: 64 }
    const verified = new VerifiedDisk(frontend, options)
    const stop = new AbortController()
    const load = verified.run({ depth: 8, signal: stop.signal })
    const layers: string[] = []
    for (let i = 0; i < 3; i++) layers.push(await vbd.snapshot())
    stop.abort()
    await load
    await verified.check()
    expect(frontend.violations).toEqual([])
    expect(layers).toEqual([1, 2, 3].map((i) => `${scratch}.${i}`))
    expect(vbd.stages().filter(({ kind }) => kind === 'overlay')).toHaveLength(4)
    const before = await frontend.read(0, MIB)
    await vbd.close()
    // The same description, some other day.
    const again = await serve(disk())
    expect((await again.frontend.read(0, MIB)).equals(before)).toBe(true)
    expect(again.vbd.stages().filter(({ kind }) => kind === 'overlay')).toHaveLength(4)
    expect(readFileSync(base).every((byte) => byte === 1)).toBe(true)
  })

  it('reset goes back to it, and commit brings all of it below', async () => {
    const { vbd, frontend } = await serve(disk())
    await frontend.write(0, page(2))
    await vbd.snapshot()
    await frontend.write(0, page(3))
    await frontend.write(MIB, page(3))
    await expect(vbd.reset()).rejects.toMatchObject({ code: 'ERR_VBD_STATE' })
    await vbd.reset({ force: true })
    expect(await valueAt(frontend, 0)).toBe(2)
    expect(await valueAt(frontend, MIB)).toBe(1)
    await frontend.write(2 * MIB, page(4))
    await vbd.commit()
    expect(existsSync(`${scratch}.1`)).toBe(false)
    const below = readFileSync(base)
    expect([below[0], below[MIB], below[2 * MIB]]).toEqual([2, 1, 4])
    expect(await valueAt(frontend, 0)).toBe(2)
    expect(await valueAt(frontend, 2 * MIB)).toBe(4)
    await frontend.write(3 * MIB, page(5))
    expect(await valueAt(frontend, 3 * MIB)).toBe(5)
    expect(await vbd.snapshot()).toBe(`${scratch}.1`)
    expect(world.said.errors).toEqual([])
  })

  it('what cannot be done is refused, and the disk served on', async () => {
    const { vbd, frontend } = await serve(disk())
    await frontend.write(0, page(2))
    writeFileSync(`${scratch}.1`, 'mine')
    await expect(vbd.snapshot()).rejects.toMatchObject({
      code: 'ERR_VBD_BACKING',
      message: expect.stringContaining('is no layer of this overlay'),
    })
    expect(await valueAt(frontend, 0)).toBe(2)
    expect(readFileSync(`${scratch}.1`, 'utf8')).toBe('mine')
    const other = await serve(memory(SIZE))
    for (const act of ['snapshot', 'commit'] as const) {
      await expect(other.vbd[act]()).rejects.toMatchObject({ code: 'ERR_VBD_UNSUPPORTED' })
    }
    const inMemory = await serve(overlay(memory(SIZE)))
    await expect(inMemory.vbd.snapshot()).rejects.toMatchObject({ code: 'ERR_VBD_UNSUPPORTED' })
  })

  it('a layer that is missing is missed', async () => {
    const { vbd, frontend } = await serve(disk())
    await frontend.write(0, page(2))
    await vbd.snapshot()
    await vbd.close()
    const layer = readFileSync(`${scratch}.1`)
    writeFileSync(`${scratch}.1`, layer.subarray(0, 100))
    await expect(serve(disk())).rejects.toMatchObject({ code: 'ERR_VBD_BACKING' })
  })
})

it('an overlay grows under its guest, beyond the disk below', async () => {
  const { vbd, frontend } = await serve(disk())
  await frontend.write(SIZE - 4096, page(2))
  await vbd.resize(SIZE + MIB)
  await expect.poll(() => frontend.properties.sizeBytes).toBe(SIZE + MIB)
  expect(await valueAt(frontend, SIZE)).toBe(0)
  await frontend.write(SIZE + MIB - 4096, page(3))
  expect(await vbd.snapshot()).toBe(`${scratch}.1`)
  expect(await valueAt(frontend, SIZE + MIB - 4096)).toBe(3)
  expect(await valueAt(frontend, SIZE - 4096)).toBe(2)
  await expect(vbd.commit()).rejects.toMatchObject({ code: 'ERR_VBD_UNSUPPORTED' })
  await expect(vbd.resize(SIZE, { shrink: true })).rejects.toThrow('cannot become shorter')
  await vbd.close()
  const again = await serve(disk())
  expect(again.vbd.disk.sizeBytes).toBe(SIZE + MIB)
  expect(await valueAt(again.frontend, SIZE + MIB - 4096)).toBe(3)
})
