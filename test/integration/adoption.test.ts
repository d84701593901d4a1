/**
 * One process after another under one guest: stopped in good order or killed, and started again, while the guest is idle
 * or hard at work. It keeps its disk, every request is answered exactly once, and where the rings cannot be gone on with
 * the guest is asked to begin again.
 */
import { once } from 'node:events'
import { existsSync, readdirSync, renameSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { loadAddon } from '../../lib/engine/load_addon.js'
import { MockHost } from '../../lib/mock/mock_host.js'
import type { Frontend } from '../../lib/testing/frontend.js'
import { MockGuest } from '../../lib/testing/guest.js'
import { connectXenstore } from '../../lib/xenstore/client.js'
import type { Xenstore } from '../../lib/xenstore/xenstore.js'
import { JOURNALED } from '../support/engines.js'
import { PATIENT } from '../support/patience.js'
import { Random, VerifiedDisk } from '../support/product_verify.js'
import { MIB } from '../support/product_world.js'
import { Xl } from '../support/xl.js'
import { type Running, Scene } from './cli_process.js'

const built = existsSync(fileURLToPath(new URL('../../dist/lib/cli/main.js', import.meta.url)))
const SIZE = 16 * MIB
const BACK = '/local/domain/0/backend/vbd/1/51712'
const FRONT = '/local/domain/1/device/vbd/51712'

let scene: Scene
let host: MockHost
let store: Xenstore
let image: string
let guest: MockGuest
let daemon: Running
/** What became of the guest's connection: nothing, where all is well. */
let breaks: number

beforeEach(async () => {
  scene = await Scene.make()
  host = await MockHost.start({
    dir: scene.path('xen'),
    broker: (...args) => loadAddon().startMockBroker(...args),
  })
  store = await connectXenstore({ path: host.paths.xenstore })
  image = scene.path('disk.img')
  writeFileSync(image, '')
  truncateSync(image, SIZE)
  guest = await MockGuest.join({ dir: host.dir, domid: 1 })
  breaks = 0
})

afterEach(async () => {
  await guest.close()
  await store.close()
  await host.close()
  await scene.close()
})

async function startDaemon(...args: string[]): Promise<Running> {
  daemon = scene.start('daemon', '--xen', scene.xen, ...args)
  await daemon.says(/serving what is attached/)
  return daemon
}

/** A disk that xl attached, connected. */
async function connect(options: object = {}, target = image): Promise<Frontend> {
  await startDaemon()
  await new Xl(store).attach(1, { vdev: 'xvda', target, script: 'block-vbdkit' })
  const frontend = guest.frontend('xvda', {
    queues: 2,
    ringOrder: 2,
    connectTimeoutMs: 0,
    ...options,
  })
  frontend.on('disconnected', () => breaks++)
  await frontend.connect()
  return frontend
}

/** The process has let go of the guest, which is still of good hope. */
async function expectReleased(): Promise<void> {
  await vi.waitFor(() => {
    const { grantsMapped, portsBound } = host.domains().find(({ domid }) => domid === 1)!
    expect({ grantsMapped, portsBound }).toEqual({ grantsMapped: 0, portsBound: 0 })
  }, PATIENT)
  expect(await store.read(`${BACK}/state`)).toBe('4')
}

describe.skipIf(!built)('a daemon that is stopped and started again', () => {
  it('under an idle guest: which notices nothing', async () => {
    const frontend = await connect()
    await frontend.write(0, Buffer.alloc(4096, 1))
    for (let turn = 0; turn < 3; turn++) {
      expect((await daemon.kill('SIGTERM')).code).toBe(0)
      expect(daemon.out).toContain('1 connected disks wait for the next')
      await expectReleased()
      expect(await store.read(`${BACK}/vbdkit-rings`)).toMatch(/^1 drained [0-9a-f]{32}$/)
      // Into the gap: it waits on the ring.
      const early = frontend.write(4096, Buffer.alloc(4096, 2 + turn))
      await startDaemon()
      await early
      expect((await frontend.read(4096, 4096))[0]).toBe(2 + turn)
      await vi.waitFor(async () => {
        expect(await store.read(`${BACK}/vbdkit-rings`)).toMatch(
          JOURNALED ? /^1 journaled / : /^1 open /,
        )
      }, PATIENT)
      await daemon.says(/1:xvda: connected, x86_64-abi, 2 queues of 4 pages/)
      expect(daemon.err).toBe('')
    }
    expect(breaks).toBe(0)
    expect(frontend.violations).toEqual([])
  })

  it.each([{ protocol: 'x86_32-abi', persistent: false }, { persistent: true }])(
    'again and again under load, %j: every request is answered once',
    async (options) => {
      const frontend = await connect(options)
      const disk = new VerifiedDisk(frontend, { seed: 7, sectors: SIZE / 512 })
      const stopping = new AbortController()
      const running = disk.run({ depth: 24, signal: stopping.signal })
      for (let round = 0; round < 5; round++) {
        const before = disk.done
        await vi.waitFor(() => expect(disk.done).toBeGreaterThan(before + 150), PATIENT)
        expect((await daemon.kill('SIGTERM')).code).toBe(0)
        await expectReleased()
        await startDaemon()
      }
      const last = disk.done
      await vi.waitFor(() => expect(disk.done).toBeGreaterThan(last + 100), PATIENT)
      stopping.abort()
      await running
      await disk.check()
      await frontend.flush()
      expect(breaks).toBe(0)
      expect(frontend.violations).toEqual([])
    },
    60_000,
  )

  it('finds that the image has grown, and says so', async () => {
    const frontend = await connect()
    await daemon.kill('SIGTERM')
    truncateSync(image, 2 * SIZE)
    await startDaemon()
    await expect.poll(() => frontend.properties.sizeBytes, PATIENT).toBe(2 * SIZE)
    await frontend.write(2 * SIZE - 4096, Buffer.alloc(4096, 9))
    expect(breaks).toBe(0)
  })

  it('with less to offer: the guest is told to begin again, and why is said', async () => {
    const frontend = await connect()
    await daemon.kill('SIGTERM')
    const again = once(frontend, 'connected')
    await startDaemon('--no-flush')
    await again
    await frontend.write(0, Buffer.alloc(4096, 3))
    expect(breaks).toBe(1)
    await expect
      .poll(() => daemon.err, PATIENT)
      .toMatch(/has to reconnect \(feature-barrier is not offered any more\)/)
  })

  it('when the image is not there yet: the guest waits for it', async () => {
    const frontend = await connect()
    await daemon.kill('SIGTERM')
    renameSync(image, `${image}.away`)
    const write = frontend.write(0, Buffer.alloc(4096, 4))
    await startDaemon()
    await vi.waitFor(() => expect(daemon.err).toContain('its guest waits'), PATIENT)
    expect(await store.read(`${BACK}/state`)).toBe('4')
    renameSync(`${image}.away`, image)
    await write
    expect(breaks).toBe(0)
  })

  it('when xl has detached the disk meanwhile: it closes', async () => {
    const frontend = await connect()
    await daemon.kill('SIGTERM')
    const closed = frontend.close().catch(() => {})
    const detached = new Xl(store).detach(1, 'xvda')
    await startDaemon()
    await detached
    await closed
    expect(await store.tryRead(`${BACK}/state`)).toBeUndefined()
  })

  it('when the guest has other keys now than those it was connected by: it has to begin again', async () => {
    const frontend = await connect({ queues: 1, ringOrder: 0 })
    await daemon.kill('SIGTERM')
    const again = once(frontend, 'connected')
    await store.write(`${FRONT}/event-channel`, '9')
    await startDaemon()
    await again
    await expect.poll(() => daemon.err, PATIENT).toMatch(/its rings are not on record/)
    await frontend.write(0, Buffer.alloc(4096, 5))
  })

  it('with --on-stop close: guests are asked to close, as they always were', async () => {
    await connect()
    await daemon.kill('SIGTERM')
    await startDaemon('--on-stop', 'close')
    await daemon.says(/connected/)
    const ended = await daemon.kill('SIGTERM')
    expect(ended.out).toContain('closing 1 connected disks')
    expect(breaks).toBe(1)
    expect(await store.read(`${BACK}/state`)).toBe('6')
  })
})

describe.skipIf(!built)('a daemon that is killed', () => {
  it('under an idle guest: the next one goes on', async () => {
    const frontend = await connect()
    for (let turn = 0; turn < 3; turn++) {
      await frontend.write(0, Buffer.alloc(4096, turn))
      await daemon.kill('SIGKILL')
      await startDaemon()
      // A request before that could be one that the dead process took.
      await daemon.says(/connected/)
      expect((await frontend.read(0, 4096))[0]).toBe(turn)
    }
    expect(breaks).toBe(0)
    expect(frontend.violations).toEqual([])
  })

  it.each([
    ['with requests under way', '', 8],
    ['the same without O_DIRECT, by system calls', 'file,direct=off,io=sync:', 4],
  ])(
    '%s: the next one goes on, where the engine has journals, and nothing is lost nor done twice',
    async (_, how, turns) => {
      const frontend = await connect({}, `${how}${image}`)
      const disk = new VerifiedDisk(frontend, { seed: 5, sectors: SIZE / 512 })
      const random = new Random(5)
      const stopping = new AbortController()
      const running = disk.run({ depth: 48, signal: stopping.signal })
      for (let turn = 0; turn < turns; turn++) {
        const last = disk.done
        const some = random.below(400)
        await vi.waitFor(() => expect(disk.done).toBeGreaterThan(last + some), PATIENT)
        await daemon.kill('SIGKILL')
        // Every fourth is killed while it takes the rings over.
        if (turn % 4 === 3) {
          const short = scene.start('daemon', '--xen', scene.xen)
          await sleep(100 + random.below(300))
          await short.kill('SIGKILL')
        }
        await startDaemon()
      }
      stopping.abort()
      await running
      await disk.check()
      if (JOURNALED) expect(breaks).toBe(0)
      else expect(breaks).toBeGreaterThan(0)
      expect(frontend.violations).toEqual([])
      const journals = readdirSync(host.dir).filter((name) => name.startsWith('journal'))
      expect(journals.length).toBe(JOURNALED ? 2 : 0)
      expect((await daemon.kill('SIGTERM')).code).toBe(0)
      expect(readdirSync(host.dir).filter((name) => name.startsWith('journal'))).toEqual([])
    },
    120_000,
  )

  it.each([
    ['no journal', ''],
    ['an image that nobody locks', 'file,shared:'],
  ])(
    'with requests under way and %s: the guest begins again, and loses nothing',
    async (_, how) => {
      const frontend = await connect({}, `${how}${image}`)
      const disk = new VerifiedDisk(frontend, { seed: 9, sectors: SIZE / 512 })
      const stopping = new AbortController()
      const running = disk.run({ depth: 24, signal: stopping.signal })
      await vi.waitFor(() => expect(disk.done).toBeGreaterThan(100), PATIENT)
      await daemon.kill('SIGKILL')
      const journals = readdirSync(host.dir).filter((name) => name.startsWith('journal'))
      expect(journals.length).toBe(JOURNALED && how === '' ? 2 : 0)
      for (const name of journals) rmSync(join(host.dir, name))
      await startDaemon()
      const last = disk.done
      await vi.waitFor(() => expect(disk.done).toBeGreaterThan(last + 100), PATIENT)
      expect(breaks).toBe(1)
      await expect
        .poll(() => daemon.err, PATIENT)
        .toMatch(/has to reconnect \(requests are under way on ring \d\)/)
      stopping.abort()
      await running
      await disk.check()
      expect(frontend.violations).toEqual([])
    },
  )
})

describe.skipIf(!built)('a serve with --on-stop keep', () => {
  it('goes on in the directories that it made', async () => {
    const serve = () => scene.serve('1:xvda', 'file', image, '--on-stop', 'keep')
    let server = await serve()
    const frontend = guest.frontend('xvda', { connectTimeoutMs: 0 })
    frontend.on('disconnected', () => breaks++)
    await frontend.connect()
    await frontend.write(0, Buffer.alloc(4096, 6))
    expect((await server.kill('SIGTERM')).code).toBe(0)
    await expectReleased()
    server = await serve()
    await server.says(/connected/)
    expect((await frontend.read(0, 4096))[0]).toBe(6)
    expect(breaks).toBe(0)
  })
})
