/**
 * A whole file system on a guest's disk: a tree of real files goes in through the guest, and comes out of the image
 * equal, and e2fsck has nothing to say; also while the disk is resized under it.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import type { ServeOptions } from '../../lib/backend.js'
import { type FileOptions, file } from '../../lib/disk/drivers.js'
import { type RunGuestOptions, type RunningGuest, runGuest } from '../../lib/testing/run_guest.js'
import { asFile, canMount } from '../support/nbd_file.js'
import { missingTools, tool } from '../support/product_tools.js'
import { VerifiedDisk } from '../support/product_verify.js'
import { diskFolder, MIB, makeFolder, World } from '../support/product_world.js'

const missing = missingTools('mke2fs', 'e2fsck', 'debugfs', 'qemu-img', 'nbdcopy', 'diff')
/** A tree of about this size is enough for extents, indirect directories, links and sparse ends. */
const TREE_MIB = 26

let world: World
let guest: RunningGuest | undefined

beforeEach(async () => {
  world = await World.open()
})
afterEach(async () => {
  await guest?.close()
  guest = undefined
  expect(world.said.errors).toEqual([])
  await world.close()
})

/** Real folders of this system, at most TREE_MIB of them, copied with links and times. */
function makeTree(): string {
  const tree = makeFolder(join(world.folder(diskFolder()), 'tree'))
  let left = TREE_MIB
  for (const folder of [
    '/usr/share/perl',
    '/usr/lib/python3',
    '/usr/share/zoneinfo',
    '/etc/alternatives',
    '/usr/share/doc',
    '/usr/include/linux',
    '/usr/share/common-licenses',
  ]) {
    if (!existsSync(folder)) continue
    const size = Number(execFileSync('du', ['-sm', folder]).toString().split('\t')[0])
    if (size > left) continue
    execFileSync('cp', ['-a', folder, join(tree, folder.slice(1).replaceAll('/', '-'))])
    left -= size
  }
  expect(TREE_MIB - left).toBeGreaterThan(3)
  return tree
}

async function start(
  bytes: number,
  options: { file?: FileOptions; serve?: ServeOptions; guest?: Partial<RunGuestOptions> } = {},
) {
  const image = world.image(bytes, diskFolder())
  const domid = world.nextDomid()
  const vbd = await world.backend.serve(`${domid}:xvda`, file(image, options.file), options.serve)
  guest = await runGuest({
    dir: world.mock.dir,
    domid,
    vdev: 'xvda',
    queues: 2,
    ringOrder: 2,
    nbdSocket: join(world.folder(), 'nbd.sock'),
    ...options.guest,
  })
  return { image, vbd, uri: guest.nbd!.uri }
}

/** Ends guest and vbd, as an operator would before looking at the image. */
async function stop(): Promise<void> {
  await guest?.close()
  for (const vbd of world.backend.vbds()) await vbd.close()
}

/** The file system in the image is sound, and its files are those of the tree. */
async function expectTree(image: string, tree: string): Promise<void> {
  await tool('e2fsck', ['-fn', image])
  const out = makeFolder(join(world.folder(diskFolder()), 'out'))
  await tool('debugfs', ['-R', `rdump / ${out}`, image])
  // mke2fs makes it, the tree has none.
  await tool('diff', ['-r', '--no-dereference', '--exclude=lost+found', tree, out])
}

describe.skipIf(missing !== undefined)(`ext4${missing ? ` (${missing})` : ''}`, () => {
  it.each([
    ['x86_64-abi', 'auto', { io: 'auto', direct: 'auto' }],
    ['x86_32-abi', 'copy', { io: 'sync', direct: false }],
  ] as const)(
    'an image goes in with qemu-img and out with nbdcopy: %s, %s',
    async (protocol, transfer, options) => {
      const tree = makeTree()
      const source = join(world.folder(diskFolder()), 'source.img')
      await tool('mke2fs', ['-q', '-t', 'ext4', '-E', 'root_owner', '-d', tree, source, '96M'])
      const { image, uri } = await start(96 * MIB, {
        file: options,
        serve: { transfer },
        guest: { protocol },
      })
      await tool('qemu-img', ['convert', '-n', '-W', '-f', 'raw', '-O', 'raw', source, uri])
      const back = join(world.folder(diskFolder()), 'back.img')
      await tool('nbdcopy', ['--connections=4', uri, back])
      await tool('cmp', [source, back])
      await stop()
      await tool('cmp', [source, image])
      await expectTree(image, tree)
    },
  )

  it.skipIf(!canMount)('mke2fs -d writes the tree through the guest itself', async () => {
    const tree = makeTree()
    const { image, uri, vbd } = await start(96 * MIB)
    await asFile(world.folder(), uri, async (path) => {
      await tool('mke2fs', ['-q', '-F', '-t', 'ext4', '-d', tree, path], { seconds: 120 })
      await tool('e2fsck', ['-fn', path])
    })
    expect(vbd.stats().write.requests).toBeGreaterThan(100)
    expect(vbd.stats().rejected).toBe(0)
    await stop()
    await expectTree(image, tree)
  })

  it('a disk that grows while it is written keeps its file system, and gains room', async () => {
    const tree = makeTree()
    const source = join(world.folder(diskFolder()), 'source.img')
    await tool('mke2fs', ['-q', '-t', 'ext4', '-d', tree, source, '96M'])
    const { image, uri, vbd } = await start(128 * MIB)
    await tool('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', source, uri])

    // Verified I/O behind the file system, all the time that the disk grows.
    const { frontend } = guest!
    const firstSector = (96 * MIB) / 512
    const disk = new VerifiedDisk(frontend, { seed: 5, firstSector, sectors: (32 * MIB) / 512 })
    const stopping = new AbortController()
    const running = disk.run({ depth: 16, signal: stopping.signal })
    for (const size of [129, 160, 200, 256]) {
      const seen = new Promise<number>((resolve) =>
        frontend.once('resize', (now) => resolve(now.sizeBytes)),
      )
      const before = disk.done
      const info = await vbd.resize(size * MIB)
      expect(info.sizeBytes).toBe(size * MIB)
      expect(await seen).toBe(size * MIB)
      expect(statSync(image).size).toBe(size * MIB)
      // The new end can be used at once, and the rest goes on.
      const last = Buffer.alloc(4096, size)
      await frontend.write(size * MIB - 4096, last)
      expect(await frontend.read(size * MIB - 4096, 4096)).toEqual(last)
      await vi.waitFor(() => expect(disk.done).toBeGreaterThan(before + 50), { timeout: 20_000 })
    }
    stopping.abort()
    await running
    await disk.check()
    await frontend.flush()
    // New connections see the new size.
    const found = await tool('qemu-img', ['info', '--output=json', '-f', 'raw', uri])
    expect(JSON.parse(found.stdout)['virtual-size']).toBe(256 * MIB)
    await stop()
    await expectTree(image, tree)
    await tool('resize2fs', ['-f', image])
    await expectTree(image, tree)
    expect(readFileSync(image).length).toBe(256 * MIB)
  })
})
