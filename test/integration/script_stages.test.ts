/**
 * Native stages above a script: what C++ cannot reach runs as a script, keeps the same format, and says where it runs.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { cache, readAhead } from '../../lib/disk/caching.js'
import { concat, slice } from '../../lib/disk/compose.js'
import { defineFilter } from '../../lib/disk/define.js'
import type { Disk } from '../../lib/disk/disk.js'
import { file, memory } from '../../lib/disk/drivers.js'
import { type EncryptOptions, encrypt } from '../../lib/disk/encrypt.js'
import { overlay } from '../../lib/disk/overlay.js'
import { VerifiedDisk } from '../support/product_verify.js'
import { MIB, World } from '../support/product_world.js'

const SIZE = 4 * MIB
const KEY = Buffer.from(Array.from({ length: 64 }, (_, i) => i * 5 + 1))

let world: World

beforeEach(async () => {
  world = await World.open({ reactors: 2 })
})
afterEach(() => world.close())

/** A script in between: what is above it is a script, too. */
const plain = defineFilter('plain', (next) => next)

async function using<T>(disk: Disk, use: (disk: Frontend) => Promise<T>): Promise<T> {
  const guest = await world.guest({ memoryBytes: 64 * MIB })
  const vbd = await world.backend.serve(`${guest.domid}:xvda`, disk)
  const frontend = await guest.disk('xvda', { memoryBytes: 4 * MIB })
  const result = await use(frontend)
  expect(frontend.violations).toEqual([])
  await vbd.close()
  return result
}
type Frontend = Awaited<ReturnType<Awaited<ReturnType<World['guest']>>['disk']>>

function bytes(length: number): Buffer {
  return Buffer.from(Array.from({ length }, (_, i) => (i * 7 + (i >> 8)) & 255))
}

describe('encrypt', () => {
  it.each<[string, Omit<EncryptOptions, 'key'> & { key: Uint8Array }]>([
    ['AES-256 by 512 bytes', { key: KEY }],
    ['AES-128 by 512 bytes, elsewhere', { key: KEY.subarray(0, 32), ivOffset: 12345 }],
    ['AES-256 by 4096 bytes', { key: KEY, sectorSize: 4096 }],
  ])('%s: what one wrote the other reads', async (_what, options) => {
    const written = bytes(40960)
    const sector = options.sectorSize ?? 512
    const images: Buffer[] = []
    const ways = [[] as const, [plain] as const]
    for (const [i, way] of ways.entries()) {
      const path = join(world.folder(), `${i}.img`)
      writeFileSync(path, Buffer.alloc(SIZE))
      await using(file(path).with(...way, encrypt(options)), async (guest) => {
        await guest.write(sector * 3, written)
        await guest.flush()
        expect((await guest.read(sector * 3, written.length)).equals(written)).toBe(true)
      })
      images.push(readFileSync(path))
      const other = ways[1 - i]!
      await using(file(path).with(...other, encrypt(options)), async (guest) => {
        expect((await guest.read(sector * 3, written.length)).equals(written)).toBe(true)
      })
    }
    expect(images[0]!.equals(images[1]!)).toBe(true)
    expect(images[0]!.includes(written.subarray(0, 16))).toBe(false)
  })
})

describe('chains over a script', () => {
  const disks: Readonly<Record<string, () => Disk>> = {
    cache: () => memory(SIZE).with(plain, cache({ memory: '1MiB', writeBackAfter: '10ms' })),
    readAhead: () => memory(SIZE).with(plain, readAhead({ window: '256KiB' })),
    concat: () => concat(memory(MIB).with(plain), memory(MIB), memory(2 * MIB).with(plain)),
    slice: () => slice(memory(2 * SIZE).with(plain), { offset: 4096, length: SIZE }),
    'all of them': () =>
      concat(memory(SIZE / 2), memory(SIZE / 2).with(plain)).with(
        encrypt({ key: KEY, discard: true }),
        cache({ memory: '1MiB' }),
        readAhead(),
      ),
  }
  it.each(Object.keys(disks))('%s', async (name) => {
    await using(disks[name]!(), async (guest) => {
      for (let at = 0; at < SIZE; at += MIB) await guest.write(at, Buffer.alloc(MIB))
      const options = { seed: 5, sectors: SIZE / 512, maxSectors: 64, discards: false }
      const verified = new VerifiedDisk(guest, options)
      const stop = AbortSignal.timeout(300)
      await verified.run({ depth: 8, signal: stop })
      await guest.flush()
      await verified.check()
    })
    expect(world.said.errors).toEqual([])
  })

  it('what only C++ has is refused in one line', async () => {
    await expect(
      world.backend.serve('1:xvda', overlay(memory(SIZE).with(plain))),
    ).rejects.toMatchObject({
      code: 'ERR_VBD_UNSUPPORTED',
      message: expect.stringMatching(/^overlay/),
    })
  })

  it('says where each of them runs', async () => {
    const disk = memory(SIZE).with(cache(), plain, encrypt({ key: KEY }))
    const vbd = await world.backend.serve('1:xvda', disk)
    expect(vbd.explain().stages).toMatchObject([
      { name: 'memory', runsIn: 'native' },
      { name: 'cache', runsIn: 'native' },
      { name: 'plain', runsIn: 'script' },
      { name: 'encrypt', runsIn: 'script' },
    ])
  })
})
