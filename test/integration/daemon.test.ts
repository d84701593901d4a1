/**
 * `vbdkit daemon` as a process, beside a toolstack that writes what xl writes and guests that use what they get: what
 * is attached with our script is served as its line says, what cannot be is refused with the reason, and what is
 * another backend's is never touched.
 */
import { randomBytes } from 'node:crypto'
import { existsSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { loadAddon } from '../../lib/engine/load_addon.js'
import { MockHost } from '../../lib/mock/mock_host.js'
import { MockGuest } from '../../lib/testing/guest.js'
import { connectXenstore } from '../../lib/xenstore/client.js'
import type { Xenstore } from '../../lib/xenstore/xenstore.js'
import { MIB } from '../support/product_world.js'
import { Xl } from '../support/xl.js'
import { jsonLines, type Running, Scene } from './cli_process.js'

/** The command runs what is compiled. */
const built = existsSync(fileURLToPath(new URL('../../dist/lib/cli/main.js', import.meta.url)))

let scene: Scene
let host: MockHost
let daemon: Running
let store: Xenstore
let xl: Xl
let domids = 0

beforeAll(async () => {
  scene = await Scene.make()
  host = await MockHost.start({
    dir: scene.path('xen'),
    broker: (...args) => loadAddon().startMockBroker(...args),
  })
  store = await connectXenstore({ path: host.paths.xenstore })
  daemon = scene.start('daemon', '--xen', scene.xen, '--json')
  await daemon.says(/"ready"/)
  // What share/block-vbdkit does.
  xl = new Xl(store, async (path) => {
    const status = await store.tryRead(`/local/domain/0/${path}/hotplug-status`)
    if (status === 'connected') return undefined
    return (await store.tryRead(`/local/domain/0/${path}/hotplug-error`)) ?? 'no answer'
  })
})

afterAll(async () => {
  await store?.close()
  await host?.close()
  await scene?.close()
})

function image(name: string, bytes = 4 * MIB): string {
  const path = scene.path(name)
  writeFileSync(path, '')
  truncateSync(path, bytes)
  return path
}

async function guest(): Promise<MockGuest> {
  return MockGuest.join({ dir: host.dir, domid: ++domids })
}

const OURS = { script: 'block-vbdkit' } as const

describe.skipIf(!built)('xl attaches', () => {
  it.each(['phy', 'tap'] as const)(
    'a file with backendtype=%s: used, and detached',
    async (backendtype) => {
      const path = image(`${backendtype}.img`)
      const one = await guest()
      const back = await xl.attach(one.domid, { ...OURS, vdev: 'xvda', target: path, backendtype })
      expect(back).toContain(backendtype === 'phy' ? '/backend/vbd/' : '/backend/vbd3/')
      const disk = await one.disk('xvda')
      const data = randomBytes(MIB)
      await disk.write(MIB, data)
      await disk.flush()
      expect(
        readFileSync(path)
          .subarray(MIB, 2 * MIB)
          .equals(data),
      ).toBe(true)
      const list = JSON.parse((await scene.run('list', '--xen', scene.xen, '--json')).out)
      expect(list).toMatchObject([{ vbd: `${one.domid}:xvda`, state: 'Connected' }])
      const resized = await scene.run('resize', '--xen', scene.xen, `${one.domid}:xvda`, '8MiB')
      expect(resized.code).toBe(0)
      await expect.poll(() => disk.properties.sizeBytes).toBe(8 * MIB)
      const closed = disk.close()
      await xl.detach(one.domid, 'xvda')
      await closed
      expect(await store.tryRead(`${back}/state`)).toBeUndefined()
      await expect
        .poll(() => host.domains().find(({ domid }) => domid === one.domid))
        .toMatchObject({ grantsMapped: 0, portsBound: 0 })
      await one.close()
    },
  )

  it('a read-only disk, a CD-ROM, options in the target, four disks of one guest', async () => {
    const one = await guest()
    const lines = [
      { vdev: 'xvda', target: image('a.img') },
      { vdev: 'xvdb', target: image('b.img'), access: 'r' },
      { vdev: 'xvdc', target: image('c.iso'), access: 'r', devtype: 'cdrom', removable: true },
      { vdev: 'xvdd', target: 'memory,sector-size=4096,transfer=copy,queues=1:16MiB' },
    ] as const
    await Promise.all(lines.map((line) => xl.attach(one.domid, { ...OURS, ...line })))
    const disks = await Promise.all(lines.map(({ vdev }) => one.disk(vdev)))
    expect(disks.map(({ properties }) => properties)).toMatchObject([
      { readOnly: false, cdrom: false, discard: expect.anything() },
      { readOnly: true, cdrom: false },
      { readOnly: true, cdrom: true, removable: true },
      { readOnly: false, sectorSize: 4096, sizeBytes: 16 * MIB },
    ])
    await expect(disks[1]!.write(0, Buffer.alloc(4096))).rejects.toThrow()
    await disks[3]!.write(0, Buffer.alloc(4096, 7))
    expect((await disks[3]!.read(0, 4096))[0]).toBe(7)
    await one.close()
  })

  it.each([
    ['/nowhere/disk.img', 'does not exist'],
    ['disk.img', 'neither an absolute path nor'],
    ['floppy:1MiB', "no driver 'floppy'"],
    ['file,direct=maybe:/srv/a', "direct cannot be 'maybe'"],
    ['memory:soon', 'soon'],
    ['memory,queues=99:1MiB', 'queues cannot be 99'],
  ])(
    '%s, which cannot be: xl says why before it gives up, and nothing is left',
    async (target, why) => {
      const one = await guest()
      await expect(xl.attach(one.domid, { ...OURS, vdev: 'xvda', target })).rejects.toThrow(why)
      expect(await store.tryList(`/local/domain/0/backend/vbd/${one.domid}`)).toEqual([])
      await expect.poll(() => store.tryList('/local/domain/0/error')).toEqual([])
      // And the same device with a disk that can be.
      await xl.attach(one.domid, { ...OURS, vdev: 'xvda', target: 'memory:1MiB' })
      await (await one.disk('xvda')).write(0, Buffer.alloc(512))
      await one.close()
    },
  )

  it('an image that another guest writes: refused', async () => {
    const path = image('shared.img')
    const [one, two] = [await guest(), await guest()]
    await xl.attach(one.domid, { ...OURS, vdev: 'xvda', target: path })
    await expect(xl.attach(two.domid, { ...OURS, vdev: 'xvda', target: path })).rejects.toThrow(
      `is served as ${one.domid}:xvda already`,
    )
    await one.close()
    await two.close()
  })

  it("an image that was another guest's until now", async () => {
    const path = image('moved.img')
    const guests = [await guest(), await guest()]
    for (let turn = 0; turn < 20; turn++) {
      const { domid } = guests[turn % 2]!
      await xl.attach(domid, { ...OURS, vdev: 'xvda', target: path })
      await xl.detach(domid, 'xvda')
    }
    for (const each of guests) await each.close()
  })

  it('and destroys the guest: Closed before xl gives up, although its frontend is gone', async () => {
    const one = await guest()
    const back = await xl.attach(one.domid, { ...OURS, vdev: 'xvda', target: 'memory:1MiB' })
    await (await one.disk('xvda')).write(0, Buffer.alloc(512))
    await xl.destroyDisk(one.domid, 'xvda')
    expect(await store.tryRead(`${back}/state`)).toBeUndefined()
    await one.close()
  })

  it('and detaches before the guest has looked', async () => {
    const one = await guest()
    // Often enough that the next directory comes while the vbd of the one before is closing.
    for (let turn = 0; turn < 60; turn++) {
      await xl.attach(one.domid, { ...OURS, vdev: 'xvda', target: `memory:${turn + 1}MiB` })
      await xl.detach(one.domid, 'xvda')
    }
    // Each time another disk: the last one is what the guest gets.
    await xl.attach(one.domid, { ...OURS, vdev: 'xvda', target: 'memory:99MiB' })
    expect((await one.disk('xvda')).properties.sizeBytes).toBe(99 * MIB)
    await one.close()
  })
})

describe.skipIf(!built)('another backend', () => {
  it('keeps its disks: nothing of theirs is written, and ours are served beside them', async () => {
    const one = await guest()
    const foreign = `/local/domain/0/backend/vbd/${one.domid}/51728`
    // One that we could serve; its script is content.
    const target = image('theirs.img')
    const answered = new Xl(store).attach(one.domid, { vdev: 'xvdb', target, script: 'block' })
    await expect.poll(() => store.tryRead(`${foreign}/state`)).toBeDefined()
    await xl.attach(one.domid, { ...OURS, vdev: 'xvda', target: 'memory:1MiB' })
    // Attached later, and served: we have had the time to look at the other one.
    expect(await store.read(`${foreign}/state`)).toBe('1')
    const keys = await store.list(foreign)
    expect(keys.filter((key) => /^(feature|hotplug|sectors|max|multi|info)/.test(key))).toEqual([])
    await store.write(`${foreign}/state`, '2')
    await answered
    await (await one.disk('xvda')).write(0, Buffer.alloc(512))
    expect(await store.read(`${foreign}/state`)).toBe('2')
    expect(await store.list(foreign)).toEqual(keys)
    await one.close()
  })

  it('of ours, a serve: its device is its own', async () => {
    const one = await guest()
    const server = await scene.serve(`${one.domid}:xvda`, 'memory', '3MiB')
    const disk = await one.disk('xvda')
    expect(disk.properties.sizeBytes).toBe(3 * MIB)
    await one.close()
    await server.kill('SIGTERM')
  })
})

describe.skipIf(!built)('the process', () => {
  it('said what it did, without a complaint about guests that did nothing wrong', () => {
    const lines = jsonLines(daemon.out)
    const events = new Set(lines.map(({ event }) => event))
    expect([...events]).toEqual(expect.arrayContaining(['ready', 'serving', 'connected', 'closed']))
    expect(lines.filter(({ event }) => event === 'warning')).toEqual([])
  })

  it('is one only', async () => {
    const second = await scene.run('daemon', '--xen', scene.xen)
    expect(second.code).toBe(2)
    expect(second.err).toContain('another vbdkit daemon is running')
  })

  it('ends in good order, and begins again', async () => {
    const ended = await daemon.kill('SIGTERM')
    expect(ended.code).toBe(0)
    daemon = scene.start('daemon', '--xen', scene.xen, '--json')
    await daemon.says(/"ready"/)
    const one = await guest()
    await xl.attach(one.domid, { ...OURS, vdev: 'xvda', target: 'memory:1MiB' })
    await (await one.disk('xvda')).write(0, Buffer.alloc(512))
    await one.close()
  })
})
