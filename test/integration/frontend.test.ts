/** The guest's side against the real thing: mock hypervisor, xenstore over sockets, native backend; all in this process. */
import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Backend } from '../../lib/backend.js'
import { file, memory, nullDisk } from '../../lib/disk/drivers.js'
import type { TransferChoice } from '../../lib/engine/engine.js'
import type { MockHost } from '../../lib/mock/mock_host.js'
import type { FrontendOptions } from '../../lib/testing/frontend_options.js'
import { MockGuest } from '../../lib/testing/guest.js'
import { LoadDisk, runLoads } from '../../lib/testing/load.js'
import { MANNERS, type MannersName } from '../../lib/testing/manners.js'
import { type GuestEvent, runGuest } from '../../lib/testing/run_guest.js'
import { ENGINE } from '../support/engines.js'

const MIB = 1024 * 1024
const exec = promisify(execFile)

let backend: Backend
let mock: MockHost
let dir: string

beforeEach(async () => {
  backend = await Backend.open({ xen: 'mock', engine: ENGINE, reactors: 1 })
  mock = backend.mock!
  dir = mkdtempSync(join(tmpdir(), 'vbdkit-front-'))
})

afterEach(async () => {
  await backend.close()
  rmSync(dir, { recursive: true })
})

async function join1(domid = 1, memoryBytes = 64 * MIB): Promise<MockGuest> {
  return await MockGuest.join({ dir: mock.dir, domid, memoryBytes })
}

/** What the broker still accounts for a guest. */
function held(domid = 1) {
  const domain = mock.domains().find((one) => one.domid === domid)
  return { grantsMapped: domain?.grantsMapped ?? 0, portsBound: domain?.portsBound ?? 0 }
}

describe.each(Object.keys(MANNERS) as MannersName[])('with the manners of %s', (manners) => {
  it('connects, verifies, closes, opens again, leaves nothing', async () => {
    await backend.serve('1:xvda', memory('8M'))
    await using guest = await join1()
    const disk = await guest.disk('xvda', { manners, queues: 2, ringOrder: 2 })
    const data = randomBytes(MIB + 512)
    await disk.write(1024, data)
    await disk.flush()
    expect((await disk.read(1024, data.length)).equals(data)).toBe(true)
    await disk.close()
    expect(held()).toEqual({ grantsMapped: 0, portsBound: 0 })
    expect(guest.memory.use).toEqual({ pages: 0, grants: 0, quarantined: 0 })
    await disk.connect()
    expect((await disk.read(1024, data.length)).equals(data)).toBe(true)
    await disk.close()
    expect(disk.violations).toEqual([])
    expect(disk.failure).toBeUndefined()
    expect(held()).toEqual({ grantsMapped: 0, portsBound: 0 })
  })
})

const combinations = (['x86_64-abi', 'x86_32-abi'] as const).flatMap((protocol) =>
  (['persistent', 'copy', 'map'] as const).flatMap((transfer) =>
    [1, 4].flatMap((queues) =>
      [0, 4].map((ringOrder) => ({ protocol, transfer, queues, ringOrder })),
    ),
  ),
)

it.each(combinations)(
  'finds no wrong byte: %o',
  async ({ protocol, transfer, queues, ringOrder }) => {
    await backend.serve('1:xvda', memory('16M'), {
      transfer: transfer as TransferChoice,
      queues: 4,
    })
    await using guest = await join1()
    const disk = await guest.disk('xvda', {
      protocol,
      queues,
      ringOrder,
      indirectSegments: 64,
      ids: 'wild',
    })
    expect(disk.queues).toHaveLength(queues)
    const expected = Buffer.alloc(16 * MIB)
    for (let round = 0; round < 3; round++) {
      const writes = Array.from({ length: 64 }, (_, i) => {
        const offset = i * 256 * 1024 + Math.floor(Math.random() * 100) * 512
        const data = randomBytes((1 + Math.floor(Math.random() * 400)) * 512)
        data.copy(expected, offset)
        return disk.write(offset, data, { fua: i % 16 === 0 })
      })
      await Promise.all(writes)
      await disk.flush()
      expect((await disk.read(0, expected.length)).equals(expected)).toBe(true)
    }
    await disk.discard(0, 4 * MIB)
    await disk.close()
    expect(disk.violations).toEqual([])
    expect(held()).toEqual({ grantsMapped: 0, portsBound: 0 })
  },
)

describe('changes', () => {
  it('sees a resize while it works', async () => {
    const vbd = await backend.serve('1:xvda', memory('4M'))
    await using guest = await join1()
    const disk = await guest.disk('xvda')
    const writing = disk.write(0, Buffer.alloc(4 * MIB, 1))
    const resized = once(disk, 'resize')
    await vbd.resize('8M')
    expect((await resized)[0]).toEqual({ sizeBytes: 8 * MIB, previousBytes: 4 * MIB })
    await writing
    await disk.write(7 * MIB, Buffer.alloc(MIB, 2))
    expect((await disk.read(8 * MIB - 512, 512))[0]).toBe(2)
  })

  it('lets a stopping backend finish, and is told that the disk is gone', async () => {
    const vbd = await backend.serve('1:xvda', memory('4M'))
    await using guest = await join1()
    const disk = await guest.disk('xvda')
    await disk.write(0, Buffer.alloc(MIB))
    const closed = once(disk, 'closed')
    await vbd.close()
    expect((await closed)[0]).toMatchObject({
      code: expect.stringMatching(/ERR_VBD_(STATE|NOT_FOUND)/),
    })
    expect(held()).toEqual({ grantsMapped: 0, portsBound: 0 })
    expect(guest.memory.use).toEqual({ pages: 0, grants: 0, quarantined: 0 })
  })

  it('closes with requests in flight', async () => {
    await backend.serve('1:xvda', memory('16M'))
    await using guest = await join1()
    const disk = await guest.disk('xvda', { queues: 2, ringOrder: 2 })
    const reads = Array.from({ length: 500 }, (_, i) => disk.read((i % 256) * 65536, 65536))
    const outcome = Promise.allSettled(reads)
    await new Promise(setImmediate)
    await disk.close({ drain: false })
    const failed = (await outcome).filter(({ status }) => status === 'rejected')
    expect(failed.length).toBeGreaterThan(0)
    expect(disk.violations).toEqual([])
    expect(held()).toEqual({ grantsMapped: 0, portsBound: 0 })
    expect(guest.memory.use).toEqual({ pages: 0, grants: 0, quarantined: 0 })
  })

  it('several disks of one guest, several guests of one backend', async () => {
    const ids = ['1:xvda', '1:xvdb', '2:xvda', '2:sda']
    for (const id of ids) await backend.serve(id, memory('2M'))
    await using first = await join1(1)
    await using second = await join1(2)
    const disks = await Promise.all([
      first.disk('xvda'),
      first.disk('xvdb'),
      second.disk('xvda'),
      second.disk('sda'),
    ])
    await Promise.all(disks.map((disk, i) => disk.write(0, Buffer.alloc(2 * MIB, i + 1))))
    const read = await Promise.all(disks.map((disk) => disk.read(MIB, 512)))
    expect(read.map((bytes) => bytes[0])).toEqual([1, 2, 3, 4])
  })

  it('ends with a clear error when the mock dies', async () => {
    await backend.serve('1:xvda', memory('4M'))
    const guest = await join1()
    const disk = await guest.disk('xvda')
    const closed = once(disk, 'closed')
    await mock.destroyDomain(1)
    expect((await closed)[0]).toMatchObject({ code: expect.stringMatching(/^ERR_VBD_/) })
    await expect(disk.read(0, 512)).rejects.toMatchObject({
      code: expect.stringMatching(/^ERR_VBD_/),
    })
    expect(guest.failure).toBeDefined()
    await expect(guest.disk('xvdb')).rejects.toBeDefined()
    await guest.close()
  })

  it('comes and goes under one number, as fast as it can', async () => {
    for (let i = 0; i < 30; i++) {
      const guest = await join1()
      expect(await guest.xenstore.read('/local/domain/1/domid')).toBe('1')
      await guest.close()
      expect(guest.failure).toBeUndefined()
    }
    expect(mock.domains()).toEqual([])
  })

  it('a second guest of the same number is refused, and a missing mock is said', async () => {
    await using guest = await join1()
    await expect(join1()).rejects.toMatchObject({ code: 'ERR_VBD_BUSY' })
    await guest.close()
    await expect(MockGuest.join({ dir, domid: 1 })).rejects.toMatchObject({
      code: 'ERR_VBD_NO_XEN',
    })
    await expect(join1(0)).rejects.toMatchObject({ code: 'ERR_VBD_ARGUMENT' })
  })
})

describe('load', () => {
  it.each([
    { indirect: false, segments: 1, transfer: 'persistent' },
    { indirect: false, segments: 11, transfer: 'copy' },
    { indirect: true, segments: 32, transfer: 'persistent' },
  ] as const)('drives two guests at once: %o', async ({ indirect, segments, transfer }) => {
    const guests = [await join1(1), await join1(2)]
    const disks: LoadDisk[] = []
    for (const guest of guests) {
      await backend.serve(`${guest.domid}:xvda`, nullDisk('64M'), { transfer, queues: 2 })
      disks.push(await LoadDisk.open(guest, 'xvda', { queues: 2, depth: 16, segments, indirect }))
    }
    const summary = await runLoads(disks, {
      operation: 'mixed',
      pattern: 'random',
      durationMs: 200,
    })
    expect(summary.errors).toBe(0)
    expect(summary.requests).toBeGreaterThan(100)
    expect(summary.latencyNs.count).toBe(summary.requests)
    expect(summary.disks.map((disk) => disk.requests > 0)).toEqual([true, true])
    for (const disk of disks) {
      await disk.close()
      expect(disk.leaked).toBe(0)
    }
    for (const guest of guests) {
      expect(guest.memory.use).toEqual({ pages: 0, grants: 0, quarantined: 0 })
      await guest.close()
    }
  })

  it('says what does not fit', async () => {
    await backend.serve('1:xvda', nullDisk('64M'), { queues: 1, indirectSegments: 16 })
    await using guest = await join1()
    await expect(LoadDisk.open(guest, 'xvda', { depth: 33 })).rejects.toMatchObject({
      code: 'ERR_VBD_ARGUMENT',
    })
    for (const options of [{ queues: 2 }, { indirect: true, segments: 17 }]) {
      await expect(LoadDisk.open(guest, 'xvda', options)).rejects.toMatchObject({
        code: 'ERR_VBD_UNSUPPORTED',
      })
    }
    expect(guest.memory.use.pages).toBe(0)
  })
})

describe('runGuest', () => {
  const matrix: (FrontendOptions & { transfer: TransferChoice })[] = [
    { protocol: 'x86_64-abi', transfer: 'persistent', queues: 1, ringOrder: 0 },
    { protocol: 'x86_32-abi', transfer: 'copy', queues: 4, ringOrder: 4 },
    { protocol: 'x86_64-abi', transfer: 'map', queues: 4, ringOrder: 4 },
  ]

  it.each(matrix)(
    'fio, qemu-io and nbdcopy find no wrong byte: %o',
    async ({ transfer, ...options }) => {
      const image = join(dir, 'image')
      writeFileSync(image, Buffer.alloc(32 * MIB))
      await backend.serve('1:xvda', file(image), { transfer, queues: 4 })
      const events: GuestEvent[] = []
      const nbdSocket = join(dir, 'nbd.sock')
      await using running = await runGuest({
        dir: mock.dir,
        domid: 1,
        vdev: 'xvda',
        nbdSocket,
        ...options,
        onEvent: (event) => events.push(event),
      })
      const { uri } = running.nbd!
      await exec('fio', [
        ...['--name=v', '--ioengine=nbd', `--uri=${uri}`, '--rw=randrw', '--bsrange=512-128k'],
        ...[
          '--iodepth=32',
          '--size=32m',
          '--verify=crc32c',
          '--verify_fatal=1',
          '--verify_state_save=0',
          '--fsync=100',
        ],
      ])
      const io = ['write -f -P 0x5a 1M 64k', 'flush', 'discard 8M 1M', 'read -P 0x5a 1M 64k']
      await exec('qemu-io', ['-f', 'raw', ...io.flatMap((one) => ['-c', one]), uri])
      const [from, to] = [join(dir, 'from'), join(dir, 'to')]
      writeFileSync(from, randomBytes(32 * MIB))
      await exec('nbdcopy', ['--flush', from, uri])
      await exec('nbdcopy', [uri, to])
      await exec('cmp', [from, to])
      await running.close()
      await running.done
      expect(running.frontend.violations).toEqual([])
      expect(held()).toEqual({ grantsMapped: 0, portsBound: 0 })
      // What the guest wrote and flushed is what is in the image.
      await exec('cmp', [from, image])
      const types = events
        .map(({ type }) => type)
        .filter((type) => type !== 'state' && type !== 'key')
      expect(types).toEqual(['joined', 'connected', 'nbd', 'closed'])
    },
  )

  it('ends by its signal, also while it starts', async () => {
    const start = new AbortController()
    const starting = runGuest({ dir: mock.dir, domid: 1, vdev: 'xvda', signal: start.signal })
    setImmediate(() => start.abort())
    await expect(starting).rejects.toMatchObject({ code: 'ERR_VBD_ABORTED' })
    await backend.serve('1:xvda', memory('4M'))
    const stop = new AbortController()
    await using running = await runGuest({
      dir: mock.dir,
      domid: 1,
      vdev: 'xvda',
      signal: stop.signal,
    })
    stop.abort()
    await running.done
    expect(running.frontend.state).toBe('closed')
  })

  it('rejects `done` with what ended it', async () => {
    const vbd = await backend.serve('1:xvda', memory('4M'))
    await using running = await runGuest({ dir: mock.dir, domid: 1, vdev: 'xvda', nbdPort: 0 })
    await vbd.close()
    await expect(running.done).rejects.toMatchObject({
      code: expect.stringMatching(/STATE|NOT_FOUND/),
    })
  })

  it('says that the NBD socket is in use before it bothers anyone', async () => {
    await backend.serve('1:xvda', memory('4M'))
    const nbdSocket = join(dir, 'nbd.sock')
    await using _running = await runGuest({ dir: mock.dir, domid: 1, vdev: 'xvda', nbdSocket })
    const second = runGuest({ dir: mock.dir, domid: 2, vdev: 'xvda', nbdSocket })
    await expect(second).rejects.toMatchObject({ code: 'ERR_VBD_BUSY' })
    expect(mock.domains().map(({ domid }) => domid)).toEqual([1])
  })
})
