/** What a benchmark leaves on disks when it is killed, and who removes it. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { makeTestFiles, removeLeftovers } from '../../../lib/bench/files.js'

let folder: string
beforeEach(() => {
  // Not under /tmp where that is in memory: files of a benchmark are on a disk.
  folder = mkdtempSync(join('/var/tmp', 'vbdkit-leftovers-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

const MIB = 1024 ** 2
const never = new AbortController().signal

async function leave(name: string, owner: string): Promise<void> {
  await mkdir(join(folder, name))
  writeFileSync(join(folder, name, 'owner'), owner)
  writeFileSync(join(folder, name, 'disk.img'), 'x')
}

it('files are gone when they are closed, and folders of the living stay', async () => {
  const files = await makeTestFiles(folder, MIB, never)
  const mine = readdirSync(folder)
  expect(mine).toHaveLength(1)
  removeLeftovers(folder)
  expect(readdirSync(folder)).toEqual(mine)
  files.close()
  expect(readdirSync(folder)).toEqual([])
})

it('folders of processes that are gone are removed, and nothing else', async () => {
  const files = await makeTestFiles(folder, MIB, never)
  const [mine] = readdirSync(folder)
  const owner = readFileSync(join(folder, mine!, 'owner'), 'utf8')
  const [pid, started, namespace] = owner.split(' ')
  const gone = spawnSync('true').pid
  await leave('vbdkit-bench-gone', `${gone} 1 ${namespace}`)
  await leave('vbdkit-bench-reused', `${pid} ${Number(started) - 1} ${namespace}`)
  await leave('vbdkit-bench-elsewhere', `${gone} 1 pid:[1]`)
  await mkdir(join(folder, 'vbdkit-bench-unknown'))
  await leave('another', `${gone} 1 ${namespace}`)
  removeLeftovers(folder)
  const kept = [mine, 'another', 'vbdkit-bench-elsewhere', 'vbdkit-bench-unknown']
  expect(readdirSync(folder).sort()).toEqual(kept.sort())
  files.close()
})
