/** The NBD server in front of a Buffer, driven by other people's clients: libnbd's tools, QEMU's, and fio. */
import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { NbdServer } from '../../lib/testing/nbd/server.js'
import { BufferDisk } from '../support/buffer_disk.js'

const MIB = 1024 * 1024
const exec = promisify(execFile)

let dir: string
let disk: BufferDisk
let server: NbdServer

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'vbdkit-nbd-'))
  disk = new BufferDisk(32 * MIB)
  server = await NbdServer.listen({ path: join(dir, 'nbd.sock') }, { disk })
})

afterEach(async () => {
  await server.close()
  rmSync(dir, { recursive: true })
})

/** Runs a tool; its output. A failing tool fails the test with what it said. */
async function run(tool: string, ...args: string[]): Promise<string> {
  const { stdout, stderr } = await exec(tool, args, { maxBuffer: 16 * MIB })
  return stdout + stderr
}

function qemuIo(...commands: string[]): Promise<string> {
  return run('qemu-io', '-f', 'raw', ...commands.flatMap((one) => ['-c', one]), server.uri)
}

it('nbdinfo knows it', async () => {
  const { exports } = JSON.parse(await run('nbdinfo', '--json', server.uri))
  expect(exports[0]).toMatchObject({
    'export-size': 32 * MIB,
    is_read_only: false,
    can_flush: true,
    can_fua: true,
    can_trim: true,
    can_zero: true,
    can_multi_conn: true,
    block_size_minimum: 512,
    block_size_preferred: 4096,
    block_size_maximum: 32 * MIB,
  })
  expect(await run('nbdinfo', '--size', server.uri)).toBe(`${32 * MIB}\n`)
  expect(await run('nbdinfo', '--list', server.uri)).toContain('export-size: 33554432')
})

it('nbdcopy brings a file there and back', async () => {
  const [from, to] = [join(dir, 'from'), join(dir, 'to')]
  writeFileSync(from, randomBytes(32 * MIB))
  await run('nbdcopy', '--flush', '--connections=4', from, server.uri)
  expect(disk.data.equals(readFileSync(from))).toBe(true)
  expect(disk.flushes).toBeGreaterThan(0)
  await run('nbdcopy', '--connections=4', server.uri, to)
  expect(readFileSync(to).equals(readFileSync(from))).toBe(true)
})

it('qemu-io: patterns, FUA, flush, discard, zeroes', async () => {
  await qemuIo('write -P 0xab 512 1M', 'flush', 'read -P 0xab 512 1M', 'read -P 0 0 512')
  expect(disk.data.subarray(512, 512 + MIB).every((byte) => byte === 0xab)).toBe(true)
  expect(disk.flushes).toBeGreaterThan(0)
  await qemuIo('write -f -P 0xcd 2M 64k', 'discard 1M 512k', 'write -z 3M 1M')
  expect(disk.fuas).toBeGreaterThan(0)
  expect(disk.trims).toEqual([[MIB, MIB / 2]])
  await qemuIo(
    'aio_write -P 1 4M 4k',
    'aio_write -P 2 8M 64k',
    'aio_flush',
    'read -P 1 4M 4k',
    'read -P 2 8M 64k',
  )
  expect(await qemuIo('write -P 1 32M 512').catch((error) => String(error))).not.toContain(
    'wrote 512',
  )
})

it('qemu-img converts onto it, compares, and finds no difference', async () => {
  const image = join(dir, 'image.qcow2')
  const raw = join(dir, 'raw')
  writeFileSync(
    raw,
    Buffer.concat([randomBytes(5 * MIB), Buffer.alloc(20 * MIB), randomBytes(7 * MIB)]),
  )
  await run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', raw, image)
  await run('qemu-img', 'convert', '-n', '-W', '-m', '8', '-O', 'raw', image, server.uri)
  expect(await run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', raw, server.uri)).toContain(
    'identical',
  )
})

it('fio verifies what it wrote, with trims between', async () => {
  const uri = server.uri
  const common = [
    '--ioengine=nbd',
    `--uri=${uri}`,
    '--bsrange=512-64k',
    '--iodepth=32',
    '--size=32m',
  ]
  const verify = [
    '--verify=crc32c',
    '--verify_fatal=1',
    '--verify_state_save=0',
    '--do_verify=1',
    '--output-format=json',
  ]
  const written = await run('fio', '--name=w', '--rw=randwrite', '--fsync=64', ...common, ...verify)
  const { jobs } = JSON.parse(written.slice(written.indexOf('{')))
  expect(jobs[0].error).toBe(0)
  expect(jobs[0].read.total_ios).toBeGreaterThan(100)
  expect(disk.flushes).toBeGreaterThan(1)
  await run('fio', '--name=t', '--rw=randtrim', '--number_ios=200', ...common)
  expect(disk.trims.length).toBeGreaterThan(10)
})
