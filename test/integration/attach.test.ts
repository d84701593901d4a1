/** `vbdkit attach` and `detach` beside a running daemon: what is written, waited for, refused and cleaned up. */
import { existsSync } from 'node:fs'
import { truncate, writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { loadAddon } from '../../lib/engine/load_addon.js'
import { MockHost } from '../../lib/mock/mock_host.js'
import { MockGuest } from '../../lib/testing/guest.js'
import { connectXenstore } from '../../lib/xenstore/client.js'
import type { Xenstore } from '../../lib/xenstore/xenstore.js'
import { PATIENT } from '../support/patience.js'
import { MIB } from '../support/product_world.js'
import { jsonLines, type Running, Scene } from './cli_process.js'

const built = existsSync(fileURLToPath(new URL('../../dist/lib/cli/main.js', import.meta.url)))
const BACK = '/local/domain/0/backend/vbdkit/1/51728'
const FRONT = '/local/domain/1/device/vbd/51728'

let scene: Scene
let host: MockHost
let store: Xenstore
let guest: MockGuest

beforeEach(async () => {
  scene = await Scene.make()
  host = await MockHost.start({
    dir: scene.path('xen'),
    broker: (...args) => loadAddon().startMockBroker(...args),
  })
  store = await connectXenstore({ path: host.paths.xenstore })
  guest = await MockGuest.join({ dir: host.dir, domid: 1 })
})

afterEach(async () => {
  await guest.close()
  await store.close()
  await host.close()
  await scene.close()
})

async function daemon(): Promise<Running> {
  const running = scene.start('daemon', '--xen', scene.xen)
  await running.says(/serving what is attached/)
  return running
}

function command(...args: string[]): Running {
  return scene.start(...args, '--xen', scene.xen)
}

describe.skipIf(!built)('vbdkit attach', () => {
  it('by name: waits for the guest, and detach takes all of it away', async () => {
    await daemon()
    await writeFile(scene.path('data.img'), '')
    await truncate(scene.path('data.img'), MIB)
    const name = await store.read('/local/domain/1/name')
    const attaching = command('attach', name, 'xvdb', 'file', scene.path('data.img'), '--json')
    const disk = await guest.disk('xvdb')
    const attached = await attaching.ended
    expect(attached.code).toBe(0)
    expect(jsonLines(attached.out).at(-1)).toMatchObject({ event: 'attached', connected: true })
    await disk.write(0, Buffer.alloc(4096, 1))
    expect(await store.getPermissions(FRONT)).toMatchObject([{ domid: 1 }, { domid: 0 }])
    const again = await command('attach', '1', 'xvdb', 'memory', '1MiB').ended
    expect([again.code, again.err]).toEqual([2, expect.stringContaining('attached already')])
    const closing = disk.close()
    expect((await command('detach', '1', 'xvdb').ended).code).toBe(0)
    await closing
    expect(await store.tryList('/local/domain/0/backend')).toEqual([])
    expect(await store.tryRead(`${FRONT}/state`)).toBeUndefined()
  })

  it('a disk that cannot be: the reason, and nothing is left', async () => {
    await daemon()
    const ended = await command('attach', '1', 'xvdb', 'file', '/nowhere/disk.img').ended
    expect(ended.code).toBe(2)
    expect(ended.err).toContain('the backend refuses: /nowhere/disk.img does not exist')
    await expect.poll(() => store.tryRead(`${BACK}/state`), PATIENT).toBeUndefined()
    expect(await store.tryRead(`${FRONT}/state`)).toBeUndefined()
  })

  it('without a daemon, and for a guest that is not there: said, and nothing is left', async () => {
    const [alone, nobody] = await Promise.all([
      command('attach', '1', 'xvdb', 'memory', '1MiB').ended,
      command('attach', 'nobody', 'xvdb', 'memory', '1MiB').ended,
    ])
    expect([alone.code, alone.err]).toEqual([1, expect.stringContaining('start `vbdkit daemon`')])
    expect([nobody.code, nobody.err]).toEqual([2, expect.stringContaining('no domain nobody')])
    expect(await store.tryList('/local/domain/0/backend')).toEqual([])
  }, 20_000)

  it('lasts over a restart of the daemon, and not over the end of the guest', async () => {
    const first = await daemon()
    expect(
      (await command('attach', '1', 'xvdb', 'memory', '2MiB', '--timeout', '0s').ended).code,
    ).toBe(0)
    const disk = await guest.disk('xvdb')
    expect(disk.properties.sizeBytes).toBe(2 * MIB)
    await first.kill('SIGTERM')
    const second = await daemon()
    await second.says(/connected/)
    await disk.write(0, Buffer.alloc(512))
    await host.destroyDomain(1)
    await expect.poll(() => store.tryList('/local/domain/0/backend'), PATIENT).toEqual([])
    await second.says(/1:xvdb: closed/)
  })

  it('is not for what xl attached, and can be forced on a guest', async () => {
    await daemon()
    const none = await command('detach', '1', 'xvdb').ended
    expect([none.code, none.err]).toEqual([2, expect.stringContaining('xl block-detach')])
    await command('attach', '1', 'xvdb', 'memory', '1MiB', '--timeout', '0s').ended
    const disk = await guest.disk('xvdb')
    await disk.write(0, Buffer.alloc(512))
    // It is not asked: its side is gone first.
    expect((await command('detach', '1', 'xvdb', '--force').ended).code).toBe(0)
    expect(await store.tryRead(`${BACK}/state`)).toBeUndefined()
    expect(await store.tryRead(`${FRONT}/state`)).toBeUndefined()
  })
})
