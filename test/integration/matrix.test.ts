/**
 * No wrong byte through a guest's disk, whatever frontend and backend agreed on: qemu-io, nbdcopy and fio on its NBD
 * export, for each ABI, way of reaching pages, number of rings and size of a ring, on each kind of disk.
 */
import { randomBytes } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import type { ServeOptions } from '../../lib/backend.js'
import type { Disk } from '../../lib/disk/disk.js'
import { type FileOptions, file, memory } from '../../lib/disk/drivers.js'
import type { Protocol, Transfer } from '../../lib/engine/engine.js'
import { type RunGuestOptions, type RunningGuest, runGuest } from '../../lib/testing/run_guest.js'
import { fio, missingTools, qemuIo, tool } from '../support/product_tools.js'
import { diskFolder, MIB, tmpfsFolder, World } from '../support/product_world.js'

const SIZE = 32 * MIB
const missing = missingTools('qemu-io', 'nbdcopy', 'fio')

let world: World
/** Of the test that runs. */
let backing: string | undefined
let guest: RunningGuest | undefined

beforeAll(async () => {
  world = await World.open()
})
afterAll(() => world.close())

afterEach(async () => {
  await guest?.close()
  guest = undefined
  for (const vbd of world.backend.vbds()) await vbd.close()
  await world.expectNoDomains()
  expect(world.engine.resources()).toMatchObject({ vbds: 0, disks: 0 })
  expect(world.said.errors.splice(0)).toEqual([])
})

/** The kinds of disks, each with its image's path. */
const DISKS: Record<string, () => { disk: Disk; path?: string }> = {
  'tmpfs, io_uring': () => image(tmpfsFolder(), { io: 'uring', direct: false }),
  'tmpfs, threads': () => image(tmpfsFolder(), { io: 'sync', direct: false }),
  'disk, io_uring, direct': () => image(diskFolder(), { io: 'uring', direct: true }),
  'disk, io_uring, cached': () => image(diskFolder(), { io: 'uring', direct: false }),
  'disk, threads, direct': () => image(diskFolder(), { io: 'sync', direct: true }),
  'disk, threads, cached': () => image(diskFolder(), { io: 'sync', direct: false }),
  memory: () => ({ disk: memory(SIZE) }),
}

function image(where: string, options: FileOptions) {
  const path = world.image(SIZE, where)
  return { disk: file(path, options), path }
}

/** Serves a disk and starts a guest that has it as NBD. */
async function start(kind: string, serve: ServeOptions, front: Partial<RunGuestOptions>) {
  const { disk, path } = DISKS[kind]!()
  const domid = world.nextDomid()
  const vbd = await world.backend.serve(`${domid}:xvda`, disk, serve)
  backing = path
  guest = await runGuest({
    dir: world.mock.dir,
    domid,
    vdev: 'xvda',
    nbdSocket: join(world.folder(), 'nbd.sock'),
    ...front,
  })
  await vbd.whenConnected()
  return { vbd, uri: guest.nbd!.uri }
}

/** Copies an image in and out with several connections; both, and the image behind it, must be equal. */
async function copyInAndOut(uri: string, bytes: number): Promise<void> {
  const folder = world.folder()
  const [from, to] = [join(folder, 'from'), join(folder, 'to')]
  const data = randomBytes(bytes)
  // Holes and zeroes take other ways than data.
  data.fill(0, MIB, 2 * MIB)
  writeFileSync(from, data)
  await tool('nbdcopy', ['--flush', '--connections=4', '--request-size=262144', from, uri])
  await tool('nbdcopy', ['--connections=4', uri, to])
  expect(readFileSync(to).subarray(0, bytes).equals(data), 'what nbdcopy reads back').toBe(true)
  if (backing === undefined) return
  const stored = readFileSync(backing).subarray(0, bytes)
  expect(stored.equals(data), 'what the image holds').toBe(true)
}

/** Patterns at odd places and sizes, with FUA, overwrites, discards, and the very end of the disk. */
async function patterns(uri: string): Promise<void> {
  const end = SIZE / 1024 - 64
  await qemuIo(
    uri,
    'write -P 0x11 0 1M',
    'write -P 0x22 512 512',
    'write -P 0x33 4608 10752',
    'write -f -P 0x44 1536k 192k',
    `write -P 0x55 ${end}k 64k`,
    'flush',
    'read -P 0x11 0 512',
    'read -P 0x22 512 512',
    'read -P 0x11 1k 3584',
    'read -P 0x33 4608 10752',
    'read -P 0x11 15360 512',
    'read -P 0x44 1536k 192k',
    `read -P 0x55 ${end}k 64k`,
    'discard 64k 512k',
    'discard 1537k 3k',
    'read -P 0x11 16k 48k',
    'read -P 0 64k 512k',
    'read -P 0x11 576k 448k',
    'write -P 0x66 128k 4k',
    'read -P 0x66 128k 4k',
    'read -P 0 132k 444k',
    'aio_write -P 0x71 8M 128k',
    'aio_write -P 0x72 9M 4k',
    'aio_write -P 0x73 10M 64k',
    'aio_flush',
    'read -P 0x71 8M 128k',
    'read -P 0x72 9M 4k',
    'read -P 0x73 10M 64k',
  )
}

/** Random writes of mixed sizes, each checked by its checksum. */
async function verifiedLoad(uri: string, more: Readonly<Record<string, string | number>> = {}) {
  const result = await fio(uri, {
    rw: 'randwrite',
    bssplit: '512/25:1536/10:4k/25:20k/15:64k/15:128k/10',
    size: '6M',
    offset: '12M',
    iodepth: 16,
    verify: 'crc32c',
    randseed: 4711,
    ...more,
  })
  expect(result.errors).toBe(0)
  expect(result.writes).toBeGreaterThan(10)
  expect(result.reads).toBeGreaterThanOrEqual(result.writes)
}

interface Combination {
  readonly protocol: Protocol
  readonly transfer: Transfer
  readonly queues: number
  readonly pages: number
}

const combinations: Combination[] = []
for (const protocol of ['x86_64-abi', 'x86_32-abi', 'arm-abi'] as const) {
  for (const transfer of ['persistent', 'copy', 'map'] as const) {
    for (const [queues, pages] of [
      [1, 1],
      [1, 16],
      [4, 1],
      [4, 16],
    ] as const) {
      // arm-abi is the bytes of x86_64-abi under another name: once for each way of reaching pages.
      if (protocol === 'arm-abi' && queues * pages !== 64) continue
      combinations.push({ protocol, transfer, queues, pages })
    }
  }
}

describe.skipIf(missing !== undefined)(`every connection${missing ? ` (${missing})` : ''}`, () => {
  const kinds = Object.keys(DISKS)
  for (const [i, { protocol, transfer, queues, pages }] of combinations.entries()) {
    const kind = kinds[i % kinds.length]!
    it(`${protocol}, ${transfer}, queues ${queues}, ring pages ${pages}, on ${kind}`, async () => {
      const ringOrder = Math.log2(pages)
      const { vbd, uri } = await start(
        kind,
        { transfer, queues: 4 },
        { protocol, queues, ringOrder },
      )
      expect(vbd.connection).toMatchObject({ protocol, transfer, queues, ringPages: pages })
      await copyInAndOut(uri, 6 * MIB)
      await patterns(uri)
      await verifiedLoad(uri)
      const { read, write, flush, discard, rejected, counters } = vbd.stats()
      for (const operation of [read, write, flush, discard]) {
        expect(operation.requests).toBeGreaterThan(0)
        expect(operation.errors).toBe(0)
      }
      expect(counters).toMatchObject({ grantErrors: 0, diskErrors: 0, inFlight: 0 })
      expect(rejected).toBe(0)
      expect(guest!.frontend.violations).toEqual([])
    })
  }
})

describe.skipIf(missing !== undefined)('every disk', () => {
  it.each(Object.keys(DISKS))('%s: many clients at once', async (kind) => {
    const { uri } = await start(kind, { queues: 2 }, { queues: 2, ringOrder: 2 })
    await Promise.all([
      verifiedLoad(uri, { offset: '0', size: '4M' }),
      verifiedLoad(uri, { offset: '4M', size: '4M', bssplit: '4k/50:1M/50' }),
      patternsInTheMiddle(uri),
    ])
  })
})

/** Patterns where no other client writes. */
async function patternsInTheMiddle(uri: string): Promise<void> {
  for (let round = 1; round <= 4; round++) {
    await qemuIo(
      uri,
      `write -P ${round} 20M 2M`,
      `write -f -P ${round + 16} 22M 512`,
      'discard 20M 1M',
      'read -P 0 20M 1M',
      `read -P ${round} 21M 1M`,
      `read -P ${round + 16} 22M 512`,
    )
  }
}
