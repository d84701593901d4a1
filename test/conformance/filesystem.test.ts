/**
 * Every writable disk with the tools that others use: fio verifies what it wrote, mke2fs puts a tree of files on it
 * through a guest's NBD export, e2fsck has nothing to say, and the files come back equal.
 */
import { cpSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import { cache } from '../../lib/disk/caching.js'
import { concat, sliced } from '../../lib/disk/compose.js'
import { defineFilter } from '../../lib/disk/define.js'
import type { Disk } from '../../lib/disk/disk.js'
import { memory, zero } from '../../lib/disk/drivers.js'
import { encrypt } from '../../lib/disk/encrypt.js'
import { log, throttle, verify } from '../../lib/disk/filters.js'
import { overlay } from '../../lib/disk/overlay.js'
import { type RunningGuest, runGuest } from '../../lib/testing/run_guest.js'
import { asFile, canMount } from '../support/nbd_file.js'
import { fio, missingTools, tool } from '../support/product_tools.js'
import { diskFolder, MIB, makeFolder, World } from '../support/product_world.js'
import { BASES, imageBase, scriptedBase } from './bases.js'

// As in conformance.test.ts.
vi.mock('node:worker_threads', async (original) =>
  (await import('./compiled_threads.js')).compiledThreads(await original()),
)

const SIZE = 24 * MIB
/** Of the file system; fio works behind it. */
const FILES = 16 * MIB
const missing = missingTools('mke2fs', 'e2fsck', 'debugfs', 'nbdcopy', 'diff', 'fio')

let world: World
let guest: RunningGuest | undefined
let tree: string

beforeAll(async () => {
  world = await World.open()
})
afterAll(() => world.close())
afterEach(async () => {
  await guest?.close()
  guest = undefined
  for (const vbd of world.backend.vbds()) await vbd.close()
  expect(world.said.errors.splice(0)).toEqual([])
  expect(world.engine.resources()).toMatchObject({ vbds: 0, disks: 0 })
  world.dropFolders()
})

const blank = () => Buffer.alloc(SIZE)
const key = Buffer.alloc(64, 'a key of these tests alone')
const through = defineFilter('through', (next) => ({ ...next }))

/** A new disk is a row here; those of conformance.test.ts that can be written are. */
const DISKS: Record<string, () => Disk> = {
  ...Object.fromEntries(BASES.map((base) => [base.name, () => base.make(world, blank()).disk])),
  'an overlay in a file': () =>
    overlay(zero(SIZE), { scratch: join(world.folder(diskFolder()), 'scratch') }),
  'a concatenation, encrypted': () =>
    concat(memory(5 * MIB), imageBase.make(world, blank()).disk, memory(MIB)).with(
      encrypt({ key }),
    ),
  'a small cache': () => imageBase.make(world, blank()).disk.with(cache({ memory: '1MiB' })),
  'four filters': () =>
    imageBase
      .make(world, blank())
      .disk.with(encrypt({ key }), verify(), throttle({ iops: 50_000 }), log(logPath())),
  'four filters that are scripts': () =>
    scriptedBase
      .make(world, Buffer.alloc(SIZE + 4096))
      .disk.with(sliced({ offset: 4096 }), verify(), throttle({ iops: 50_000 }), log(logPath())),
  'a script between a file and a filter': () =>
    imageBase.make(world, blank()).disk.with(verify(), through, log(logPath())),
}

function logPath(): string {
  return join(world.folder(), 'log.jsonl')
}

/** Sources of this project: some hundred files in folders. */
function makeTree(): string {
  const made = join(world.folder(diskFolder()), 'tree')
  for (const name of ['native', 'docs']) {
    const from = fileURLToPath(new URL(`../../${name}`, import.meta.url))
    cpSync(from, join(made, name), { recursive: true })
  }
  return made
}

async function putFiles(uri: string): Promise<void> {
  const make = ['-q', '-F', '-t', 'ext4', '-d', tree]
  if (canMount) {
    await asFile(world.folder(), uri, async (path) => {
      await tool('mke2fs', [...make, path, '16M'])
      await tool('e2fsck', ['-fn', path])
    })
    return
  }
  const image = join(world.folder(diskFolder()), 'image')
  await tool('mke2fs', [...make, image, '16M'])
  await tool('nbdcopy', ['--flush', image, uri])
}

async function takeFiles(uri: string): Promise<void> {
  const folder = world.folder(diskFolder())
  const [back, out] = [join(folder, 'back'), makeFolder(join(folder, 'out'))]
  await tool('nbdcopy', ['--connections=2', uri, back])
  await tool('e2fsck', ['-fn', back])
  await tool('debugfs', ['-R', `rdump / ${out}`, back])
  await tool('diff', ['-r', '--no-dereference', '--exclude=lost+found', tree, out])
}

describe.skipIf(missing !== undefined)(`with other tools${missing ? ` (${missing})` : ''}`, () => {
  it.each(Object.keys(DISKS))('%s', async (name) => {
    tree = makeTree()
    const domid = world.nextDomid()
    const vbd = await world.backend.serve(`${domid}:xvda`, DISKS[name]!())
    guest = await runGuest({
      dir: world.mock.dir,
      domid,
      vdev: 'xvda',
      queues: 2,
      ringOrder: 1,
      nbdSocket: join(world.folder(), 'nbd.sock'),
    })
    const { uri } = guest.nbd!
    await putFiles(uri)
    const { errors, writes } = await fio(uri, {
      rw: 'randwrite',
      bssplit: '512/20:4k/40:20k/20:128k/20',
      offset: FILES,
      size: '3M',
      iodepth: 16,
      verify: 'crc32c',
    })
    expect(errors).toBe(0)
    expect(writes).toBeGreaterThan(10)
    await takeFiles(uri)
    expect(vbd.stats().counters).toMatchObject({ grantErrors: 0, diskErrors: 0 })
    expect(guest.frontend.violations).toEqual([])
  })
})
