/** Overlays as guests have them: one image below many, each with a file of its own that goes on where it was left. */
import { randomBytes } from 'node:crypto'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { file } from '../../lib/disk/drivers.js'
import { overlay } from '../../lib/disk/overlay.js'
import type { Frontend } from '../../lib/testing/frontend.js'
import type { Vbd } from '../../lib/vbd/vbd.js'
import { MIB, World } from '../support/product_world.js'

const SIZE = 4 * MIB

let world: World
let image: string
let golden: Buffer

beforeEach(async () => {
  world = await World.open()
  image = world.image(SIZE)
  golden = randomBytes(SIZE)
  writeFileSync(image, golden)
})
afterEach(() => world.close())

async function serve(scratch: string): Promise<{ vbd: Vbd; disk: Frontend }> {
  const guest = await world.guest()
  const vbd = await world.backend.serve(`${guest.domid}:xvda`, overlay(file(image), { scratch }))
  return { vbd, disk: await guest.disk('xvda') }
}

async function end({ vbd, disk }: { vbd: Vbd; disk: Frontend }): Promise<void> {
  await disk.close()
  await vbd.close()
}

describe('overlay', () => {
  it('keeps what each guest writes, over a restart, and the image as it is', async () => {
    const paths = ['a', 'b'].map((name) => join(world.folder(), name))
    const data = paths.map(() => randomBytes(64 * 1024 + 512))
    const wanted = data.map((bytes, i) => {
      const whole = Buffer.from(golden)
      bytes.copy(whole, MIB + 512 * i)
      whole.fill(0, 2 * MIB, 2 * MIB + 8192)
      return whole
    })
    for (let round = 0; round < 2; round++) {
      const served = await Promise.all(paths.map(serve))
      for (const [i, { disk }] of served.entries()) {
        if (round === 0) {
          await disk.write(MIB + 512 * i, data[i]!)
          await disk.discard(2 * MIB, 8192)
          await disk.flush()
        }
        expect((await disk.read(0, SIZE)).equals(wanted[i]!)).toBe(true)
      }
      await Promise.all(served.map(end))
    }
    expect(readFileSync(image).equals(golden)).toBe(true)
    expect(world.said.errors).toEqual([])
  })

  it('is for one guest at a time, also when it was not there before', async () => {
    const scratch = join(world.folder(), 'one')
    const first = await serve(scratch)
    await expect(serve(scratch)).rejects.toThrow(/is served as 1:xvda already/)
    await end(first)
    expect(existsSync(scratch)).toBe(true)
  })

  it('of another image, or no overlay at all, is refused and left as it is', async () => {
    const scratch = join(world.folder(), 'other')
    writeFileSync(scratch, golden)
    await expect(serve(scratch)).rejects.toThrow(/no overlay: it was not made by vbdkit/)
    expect(readFileSync(scratch).equals(golden)).toBe(true)
  })
})
