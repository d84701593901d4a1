/** An image on a server that is away: whoever wants it waits, and nobody else. */
import { execFile } from 'node:child_process'
import { truncateSync, writeFileSync } from 'node:fs'
import { promisify } from 'node:util'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { MockGuest } from '../../lib/testing/guest.js'
import { connectXenstore } from '../../lib/xenstore/client.js'
import type { Xenstore } from '../../lib/xenstore/xenstore.js'
import { MIB } from '../support/product_world.js'
import { Xl } from '../support/xl.js'
import { Running, Scene } from './cli_process.js'

const OURS = { script: 'block-vbdkit', vdev: 'xvda' } as const

let scene: Scene
let daemon: Running
let store: Xenstore
let xl: Xl

beforeEach(async () => {
  scene = await Scene.make()
  const library = scene.path('away.so')
  const flags = ['-std=c++20', '-shared', '-fPIC', '-o', library]
  await promisify(execFile)('g++', [...flags, 'test/support/away.cc'])
  await scene.mock()
  daemon = new Running(['daemon', '--xen', scene.xen], { LD_PRELOAD: library })
  await daemon.says(/serving what is attached/)
  store = await connectXenstore({ path: `${scene.path('xen')}/xenstored.sock` })
  xl = new Xl(store)
  writeFileSync(image(), '')
  truncateSync(image(), 4 * MIB)
})

afterEach(async () => {
  writeFileSync(scene.path('back'), '')
  await daemon.kill('SIGKILL')
  await store.close()
  await scene.close()
})

const image = () => scene.path('image.away')

it('holds up no other guest, and is served when it is back', async () => {
  const [one, two] = [await join(1), await join(2)]
  const waiting = xl.attach(one.domid, { ...OURS, target: image() })
  await xl.attach(two.domid, { ...OURS, target: 'memory:1MiB' })
  await (await two.disk('xvda')).write(0, Buffer.alloc(512))
  expect(await store.read(`/local/domain/0/backend/vbd/1/51712/state`)).toBe('1')
  writeFileSync(scene.path('back'), '')
  await waiting
  await (await one.disk('xvda')).write(0, Buffer.alloc(512))
  for (const each of [one, two]) await each.close()
})

it('holds up no end, either', async () => {
  const one = await join(1)
  void xl.attach(one.domid, { ...OURS, target: image() }).catch(() => {})
  const two = await join(2)
  // Answered after the first was begun with.
  await xl.attach(two.domid, { ...OURS, target: 'memory:1MiB' })
  daemon.child.kill('SIGTERM')
  expect(await daemon.ended).toMatchObject({ code: 0, err: '' })
  for (const each of [one, two]) await each.close()
})

function join(domid: number): Promise<MockGuest> {
  return MockGuest.join({ dir: scene.path('xen'), domid })
}
