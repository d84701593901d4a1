/**
 * Filters in TypeScript over native disks and over each other: the same bytes as without them, whatever is asked for at
 * the same time, and the ends of each stage in the right order.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { afterAll, beforeAll, expect, it, onTestFinished, vi } from 'vitest'
import { sliced } from '../../lib/disk/compose.js'
import { defineDisk, defineFilter } from '../../lib/disk/define.js'
import type { Disk } from '../../lib/disk/disk.js'
import { file, memory } from '../../lib/disk/drivers.js'
import { DiskError, type OpenDisk } from '../../lib/disk/script.js'
import { MIB, World } from '../support/product_world.js'

/** Passes in the end, on a busy machine too. */
const eventually = (check: () => unknown) => vi.waitFor(check, { timeout: 15_000, interval: 10 })

let place: World
beforeAll(async () => {
  place = await World.open()
})
afterAll(() => place.close())

async function attach(described: Disk) {
  const guest = await place.guest()
  const vbd = await place.backend.serve(`${guest.domid}:xvda`, described)
  const errors: string[] = []
  vbd.on('error', ({ error }) => void errors.push(error.message))
  const disk = await guest.disk('xvda', { closeTimeoutMs: 500 })
  const end = async () => {
    await guest.close()
    await vbd.close({ timeoutMs: 500 })
  }
  onTestFinished(end)
  return { vbd, disk, errors, end }
}

const flip = (buf: Uint8Array) => {
  for (let i = 0; i < buf.length; i++) buf[i] = buf[i]! ^ 0xff
}

/** Keeps the complement on the disk below. */
const inverted = defineFilter('inverted', (next) => ({
  ...next,
  async read(buf, offset, io) {
    await next.read(buf, offset, io)
    flip(buf)
  },
  async write(buf, offset, io) {
    const copy = Buffer.from(buf)
    flip(copy)
    await next.write!(copy, offset, io)
  },
}))

/** Changes nothing. */
const through = defineFilter('through', (next) => ({ ...next }))

it('stands between the guest and the image', async () => {
  const image = place.image(4 * MIB)
  const { disk, vbd } = await attach(file(image).with(inverted))
  expect(vbd.disk).toMatchObject({ sizeBytes: 4 * MIB, canFlush: true, canDiscard: true })
  expect(vbd.disk.description).toBe('file → inverted (script)')
  await disk.write(4096, Buffer.alloc(8192, 0x0f))
  await disk.flush()
  expect(readFileSync(image).subarray(4096, 12288)).toEqual(Buffer.alloc(8192, 0xf0))
  expect(await disk.read(4096, 8192)).toEqual(Buffer.alloc(8192, 0x0f))
  await disk.discard(4096, 4096)
  expect(await disk.read(4096, 4096)).toEqual(Buffer.alloc(4096, 0xff))
})

it('lets go of the image at once when its disk is closed', async () => {
  const image = place.image(MIB)
  for (let round = 0; round < 3; round++) {
    const vbd = await place.backend.serve(`${place.nextDomid()}:xvda`, file(image).with(through))
    await vbd.close()
  }
})

it.each([
  ['a file', () => file(place.image(4 * MIB)).with(through)],
  ['a file, twice', () => file(place.image(4 * MIB)).with(inverted, inverted)],
  ['memory', () => memory('4MiB').with(through, inverted, through, inverted)],
  ['a script', () => scripted().with(inverted, inverted)],
  ['a slice of a script', () => scripted({ size: 8 * MIB }).with(sliced({ length: 4 * MIB }))],
])('over %s: concurrent requests against a shadow of the disk', async (_, make) => {
  const { disk, errors } = await attach(make())
  const shadow = Buffer.alloc(4 * MIB)
  let seed = 7
  const below = (n: number) => {
    seed = (seed * 1103515245 + 12345) % 2147483648
    return seed % n
  }
  for (let round = 0; round < 12; round++) {
    // Each request of a round has a part of the disk to itself.
    await Promise.all(
      Array.from({ length: 16 }, async (__, part) => {
        const offset = part * 256 * 1024 + below(128) * 512
        const length = (1 + below(128)) * 512
        switch (below(8)) {
          case 0:
            await disk.discard(offset, length)
            shadow.fill(0, offset, offset + length)
            return
          case 1:
          case 2:
          case 3: {
            const data = Buffer.alloc(length, 1 + below(255))
            await disk.write(offset, data)
            data.copy(shadow, offset)
            return
          }
          case 4:
            return disk.flush()
          default:
            expect(await disk.read(offset, length)).toEqual(
              shadow.subarray(offset, offset + length),
            )
        }
      }),
    )
  }
  for (let at = 0; at < shadow.length; at += MIB) {
    expect((await disk.read(at, MIB)).equals(shadow.subarray(at, at + MIB))).toBe(true)
  }
  expect(errors).toEqual([])
})

function scripted(changes: object = {}): Disk {
  const data = Buffer.alloc(4 * MIB)
  return defineDisk({
    name: 'below',
    size: data.length,
    read: (buf, offset) => void data.copy(buf, 0, offset, offset + buf.length),
    write: (buf, offset) => void buf.copy(data, offset),
    flush() {},
    discard: (offset, length) => void data.fill(0, offset, offset + length),
    ...changes,
  })
}

/** Opens a disk and gives the open disk that a filter would get. */
async function opened(below: Disk): Promise<{ next: OpenDisk; end(): Promise<void> }> {
  let next: OpenDisk | undefined
  const { end } = await attach(
    below.with(
      defineFilter('taken', (open) => {
        next = open
        return { ...open }
      }),
    ),
  )
  return { next: next!, end }
}

it('the open disk below does what disks do, and refuses what is not on it', async () => {
  for (const below of [memory('4MiB'), scripted()]) {
    const { next, end } = await opened(below)
    expect(next).toMatchObject({ size: 4 * MIB, sectorSize: 512, readOnly: false })
    const data = Buffer.alloc(3 * MIB + 512)
    for (let i = 0; i < data.length; i++) data[i] = i * 7
    await next.write!(data, 512)
    const back = new Uint8Array(data.length)
    await next.read(back, 512)
    expect(Buffer.compare(data, back)).toBe(0)
    await next.zero!(1024, 2 * MIB)
    await next.read(back, 512)
    expect(back.subarray(512, 512 + 2 * MIB).every((byte) => byte === 0)).toBe(true)
    expect(back[511]).toBe(data[511])
    expect(back[2 * MIB + 512]).toBe(data[2 * MIB + 512])
    expect([...(await next.extents(0, MIB))]).toEqual([{ offset: 0, length: MIB, type: 'data' }])
    for (const [offset, length] of [
      [-512, 512],
      [4 * MIB, 512],
      [100, 512],
      [0, 100],
      [0.5, 512],
      [4 * MIB - 512, 1024],
    ] as const) {
      await expect(next.read(Buffer.alloc(length), offset)).rejects.toThrow(RangeError)
      await expect(next.discard!(offset, length)).rejects.toThrow(RangeError)
    }
    await end()
  }
  const { next } = await opened(memory('4MiB'))
  await place.backend.vbds().at(-1)!.close({ timeoutMs: 100 })
  await expect(next.read(Buffer.alloc(512), 0)).rejects.toThrow(DiskError)
})

it('a disk that cannot be written gives its filter nothing to write with', async () => {
  const image = place.image(MIB)
  const { next } = await opened(file(image, { readOnly: true }))
  expect(next.readOnly).toBe(true)
  expect(Object.keys(next)).not.toContain('write')
  const { vbd } = await attach(file(place.image(MIB), { readOnly: true }).with(through))
  expect(vbd.disk).toMatchObject({ readOnly: true, canFlush: false })
})

it('a filter may refuse, and what is below never sees it', async () => {
  const seen: number[] = []
  const below = scripted({
    write: (_buf: Buffer, offset: number) => void seen.push(offset),
  })
  const guarded = defineFilter('guarded', (next) => ({
    ...next,
    async write(buf, offset, io) {
      if (offset === 0) throw new DiskError('ENOSPC')
      await next.write!(buf, offset, io)
    },
  }))
  const { disk, errors } = await attach(below.with(guarded))
  await expect(disk.write(0, Buffer.alloc(512))).rejects.toThrow('ERROR')
  await disk.write(512, Buffer.alloc(512))
  expect(seen).toEqual([512])
  expect(errors).toEqual([])
})

it('grows with the disk below', async () => {
  const image = place.image(MIB)
  const { disk, vbd } = await attach(file(image).with(through))
  await vbd.resize('2MiB')
  await eventually(() => disk.write(2 * MIB - 512, Buffer.alloc(512, 3)))
  expect(readFileSync(image)).toHaveLength(2 * MIB)
})

it('stages open from the disk outwards, and close the other way', async () => {
  const life: string[] = []
  const lived = (name: string) =>
    defineFilter(name, (next) => ({
      ...next,
      open: () => void life.push(`open ${name}`),
      close: () => void life.push(`close ${name}`),
    }))
  const below = scripted({
    open: () => void life.push('open'),
    close: () => void life.push('close'),
  })
  const { end } = await attach(below.with(lived('a'), lived('b')))
  await end()
  expect(life).toEqual(['open', 'open a', 'open b', 'close b', 'close a', 'close'])
})

it('a stage that cannot be opened closes those below, and says so', async () => {
  const close = vi.fn()
  const broken = defineFilter('broken', () => {
    throw new Error('no')
  })
  await expect(
    place.backend.serve('99:xvda', scripted({ close }).with(through, broken)),
  ).rejects.toThrow('no')
  expect(close).toHaveBeenCalledTimes(1)
  const image = place.image(MIB)
  writeFileSync(image, Buffer.alloc(MIB))
  await expect(place.backend.serve('99:xvda', file(image).with(broken))).rejects.toThrow('no')
})
