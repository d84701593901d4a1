/** The filters that C++ has too, as scripts: what each does to requests, and what it must leave alone. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { openDefinition } from '../../../lib/disk/open_definition.js'
import { openDiskOver } from '../../../lib/disk/open_disk.js'
import {
  type DiskDefinition,
  DiskError,
  type MakeFilter,
  type OpenDisk,
} from '../../../lib/disk/script.js'
import { sliceStage } from '../../../lib/disk/script_compose.js'
import {
  delayStage,
  type FaultStage,
  faultStage,
  logStage,
  scriptStageOf,
  throttleStage,
  verifyStage,
} from '../../../lib/disk/script_stages.js'

const KIB = 1024
const folder = mkdtempSync(join(tmpdir(), 'vbdkit-stages-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** A disk of 1 MiB behind stages; `data` is what it holds. */
async function opened(...stages: MakeFilter<unknown>[]) {
  const data = Buffer.alloc(1024 * KIB)
  const definition: DiskDefinition = {
    name: 'ram',
    size: data.length,
    read: async (buf, offset) => void data.copy(buf, 0, offset, offset + buf.length),
    write: async (buf, offset) => void buf.copy(data, offset),
    flush() {},
    discard: (offset, length) => void data.fill(0, offset, offset + length),
    zero: (offset, length) => void data.fill(0, offset, offset + length),
    resize: (size) => void data.fill(0, size),
  }
  let disk: OpenDisk = openDiskOver(await openDefinition(definition as never))
  const ends: (() => Promise<void>)[] = []
  for (const stage of stages) {
    const open = await openDefinition(stage(disk))
    disk = openDiskOver(open)
    ends.push(open.close)
  }
  return { disk, data, close: () => Promise.all(ends.map((end) => end())) }
}

const FAULT: FaultStage = {
  ops: ['read'],
  errno: 5,
  probability: 1,
  seed: 0,
  offsetBytes: 0,
  skip: 0,
}

it('all of them together are the disk, to concurrent requests and a shadow', async () => {
  const path = join(folder, 'all.log')
  const { disk, close } = await opened(
    verifyStage({ blockBytes: 4096, reportOnly: false }),
    throttleStage({ iops: 0, bps: 1e9, burstSeconds: 0.1 }),
    faultStage({ ...FAULT, probability: 0 }),
    delayStage({ readMs: 0, writeMs: 1, flushMs: 0, discardMs: 0 }),
    logStage({ path }),
  )
  const shadow = Buffer.alloc(disk.size)
  let seed = 3
  const below = (n: number) => {
    seed = (seed * 1103515245 + 12345) % 2147483648
    return seed % n
  }
  let requests = 0
  for (let round = 0; round < 20; round++) {
    await Promise.all(
      Array.from({ length: 8 }, async (_, part) => {
        const offset = part * 128 * KIB + below(64) * 512
        const length = (1 + below(128)) * 512
        requests++
        const kind = below(8)
        if (kind === 0) {
          await disk.discard!(offset, length)
          shadow.fill(0, offset, offset + length)
        } else if (kind < 4) {
          const bytes = Buffer.alloc(length, 1 + below(255))
          await disk.write!(bytes, offset)
          bytes.copy(shadow, offset)
        } else if (kind === 4) {
          await disk.flush!()
        } else {
          const buf = Buffer.alloc(length)
          await disk.read(buf, offset)
          expect(buf.equals(shadow.subarray(offset, offset + length))).toBe(true)
        }
      }),
    )
  }
  await close()
  const lines = readFileSync(path, 'utf8').trim().split('\n')
  expect(lines).toHaveLength(requests)
  expect(JSON.parse(lines[0]!)).toMatchObject({ op: expect.any(String), bytes: expect.any(Number) })
})

describe('throttle', () => {
  it('lets pass what it says, after a burst', async () => {
    const { disk } = await opened(throttleStage({ iops: 200, bps: 0, burstSeconds: 0.05 }))
    const buf = Buffer.alloc(512)
    const start = performance.now()
    await Promise.all(Array.from({ length: 50 }, () => disk.read(buf, 0)))
    const took = performance.now() - start
    // 50 at 200 a second, less the burst of 50 ms and the one that is free.
    expect(took).toBeGreaterThanOrEqual(190)
    // A flush waits for no turn.
    const order: string[] = []
    await Promise.all([
      ...Array.from({ length: 50 }, () => disk.read(buf, 0).then(() => order.push('read'))),
      disk.flush!().then(() => order.push('flush')),
    ])
    expect(order.at(-1)).toBe('read')
    expect(order.indexOf('flush')).toBeLessThan(25)
  })

  it('shares the rate of a group', async () => {
    const stage = throttleStage({ iops: 0, bps: 1024 * KIB, burstSeconds: 0, group: 'unit' })
    const [one, other] = [await opened(stage), await opened(stage)]
    const start = performance.now()
    const buf = Buffer.alloc(64 * KIB)
    await Promise.all([one, other, one, other].map(({ disk }) => disk.write!(buf, 0)))
    expect(performance.now() - start).toBeGreaterThanOrEqual(180)
  })
})

describe('fault', () => {
  it('has the fate of the native stage for the same seed', async () => {
    const { disk } = await opened(faultStage({ ...FAULT, probability: 0.3, seed: 42 }))
    const failed: number[] = []
    for (let n = 0; n < 24; n++) {
      await disk.read(Buffer.alloc(512), 0).catch(() => failed.push(n))
    }
    // Worked out from native/base/mix64.h.
    expect(failed).toEqual(STRUCK)
  })

  it('strikes what it is told to, so often, and nothing else', async () => {
    const stage = { ...FAULT, errno: 28, offsetBytes: 4096, lengthBytes: 4096, skip: 1, count: 2 }
    const { disk } = await opened(faultStage(stage))
    const read = (offset: number) =>
      disk.read(Buffer.alloc(1024), offset).then(
        () => 'ok',
        (thrown: DiskError) => thrown.code,
      )
    const seen = []
    for (const offset of [0, 4096, 3584, 8192, 7680, 4096]) seen.push(await read(offset))
    expect(seen).toEqual(['ok', 'ok', 'ENOSPC', 'ok', 'ENOSPC', 'ok'])
    await disk.write!(Buffer.alloc(512), 4096)
  })
})

it('delay: each kind of operation by its own time', async () => {
  const { disk } = await opened(delayStage({ readMs: 30, writeMs: 0, flushMs: 0, discardMs: 0 }))
  const start = performance.now()
  await disk.read(Buffer.alloc(512), 0)
  expect(performance.now() - start).toBeGreaterThanOrEqual(28)
})

it('log: errors by name, and a path that cannot be written', async () => {
  const path = join(folder, 'errors.log')
  const { disk, close } = await opened(faultStage({ ...FAULT, errno: 28 }), logStage({ path }))
  await expect(disk.read(Buffer.alloc(512), 1024)).rejects.toThrow(DiskError)
  await close()
  expect(JSON.parse(readFileSync(path, 'utf8'))).toMatchObject({
    op: 'read',
    offset: 1024,
    bytes: 512,
    error: 'ENOSPC',
  })
  await expect(opened(logStage({ path: '/nonexistent/x.log' }))).rejects.toThrow(
    'cannot be written',
  )
})

it('verify: a disk that lies is found out, whatever it was told in between', async () => {
  const { disk, data } = await opened(verifyStage({ blockBytes: 4096, reportOnly: false }))
  const page = Buffer.alloc(4096, 7)
  await disk.write!(page, 8192)
  await disk.read(page, 8192)
  data[8200] = 1
  await expect(disk.read(page, 8192)).rejects.toThrow('at 8192')
  // What was written in part, or discarded, is unknown until it is read whole.
  await disk.write!(Buffer.alloc(512), 8192)
  await disk.read(page, 8192)
  data[8200] = 2
  await expect(disk.read(page, 8192)).rejects.toThrow('at 8192')
  await disk.discard!(8192, 4096)
  data[8200] = 3
  await disk.read(page, 8192)
})

it('verify: what a disk lost when it became shorter is not missed when it grows again', async () => {
  const { disk, data } = await opened(verifyStage({ blockBytes: 4096, reportOnly: false }))
  const page = Buffer.alloc(4096, 7)
  for (const offset of [8192, 512 * KIB]) await disk.write!(page, offset)
  await disk.resize!(256 * KIB)
  await disk.resize!(1024 * KIB)
  await disk.read(page, 512 * KIB)
  expect(page.every((byte) => byte === 0)).toBe(true)
  // What is still there is still known.
  data[8192] = 1
  await expect(disk.read(page, 8192)).rejects.toThrow('at 8192')
})

it('zeroes that a filter above writes are writes like others', async () => {
  const path = join(folder, 'zero.log')
  const verified = await opened(verifyStage({ blockBytes: 4096, reportOnly: false }))
  const page = Buffer.alloc(4096, 7)
  await verified.disk.write!(page, 8192)
  await verified.disk.zero!(8192, 4096)
  await verified.disk.read(page, 8192)
  expect(page[0]).toBe(0)
  const { disk, close } = await opened(faultStage({ ...FAULT, ops: ['write'] }), logStage({ path }))
  await expect(disk.zero!(0, 4096)).rejects.toThrow(DiskError)
  await close()
  expect(readFileSync(path, 'utf8')).toContain('"op":"write"')
})

it('slice: a part of the disk below, and nothing beside it', async () => {
  const { disk, data } = await opened(sliceStage({ offsetBytes: 4096, lengthBytes: 8192 }))
  expect(disk.size).toBe(8192)
  await disk.write!(Buffer.alloc(8192, 9), 0)
  await disk.discard!(4096, 512)
  expect([
    data[4095],
    data[4096],
    data[8191],
    data[8192],
    data[8704],
    data[12287],
    data[12288],
  ]).toEqual([0, 9, 9, 0, 9, 9, 0])
  expect([...(await disk.extents(512, 512))]).toEqual([{ offset: 512, length: 512, type: 'data' }])
  await expect(disk.read(Buffer.alloc(512), 8192)).rejects.toThrow(RangeError)
  expect((await opened(sliceStage({ offsetBytes: 512 * KIB }))).disk.size).toBe(512 * KIB)
  await expect(opened(sliceStage({ offsetBytes: 1020 * KIB, lengthBytes: 8192 }))).rejects.toThrow(
    'not on the disk',
  )
})

it('what only C++ has is not there', () => {
  expect(scriptStageOf({ driver: 'overlay' })).toBeUndefined()
})

/** Of 24 reads with seed 42 and probability 0.3. */
const STRUCK = [1, 2, 4, 6, 10, 15, 16, 18, 21]
