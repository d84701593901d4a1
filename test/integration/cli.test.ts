/**
 * The command line as its users have it: mock, serve and guest in three processes, the commands that ask a running serve,
 * real programs on the disk, and every one of the three killed.
 */
import { execFile } from 'node:child_process'
import { existsSync, readdirSync, statSync } from 'node:fs'
import { chmod, mkdir, readFile, truncate, writeFile } from 'node:fs/promises'
import { promisify } from 'node:util'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { jsonLines, Scene } from './cli_process.js'

const MIB = 1024 * 1024
const program = promisify(execFile)

let scene: Scene
let image: string

beforeEach(async () => {
  scene = await Scene.make()
  image = scene.path('disk.img')
  await writeFile(image, '')
  await truncate(image, 16 * MIB)
})

afterEach(() => scene.close())

/** Runs qemu-io commands on the guest's disk; rejects when one fails, a verification too. */
function qemuIo(socket: string, ...commands: string[]) {
  const args = commands.flatMap((command) => ['-c', command])
  return program('qemu-io', ['-f', 'raw', `nbd+unix:///?socket=${socket}`, ...args])
}

describe('mock, serve and guest', () => {
  it('carry bytes from NBD to the image and back, and leave nothing', async () => {
    const mock = await scene.mock()
    const server = await scene.serve('1:xvda', 'file', image)
    const socket = scene.path('nbd.sock')
    const guest = await scene.guest('1:xvda', '--nbd', socket)
    await guest.says(/exported as/)
    await qemuIo(socket, 'write -P 0x5a 4096 65536', 'read -P 0x5a 4096 65536', 'flush')
    const bytes = await readFile(image)
    expect(bytes.subarray(4096, 4096 + 65_536).every((byte) => byte === 0x5a)).toBe(true)
    expect(bytes.subarray(4096 + 65_536).every((byte) => byte === 0)).toBe(true)

    expect((await guest.kill('SIGINT')).code).toBe(130)
    expect((await server.kill('SIGTERM')).code).toBe(0)
    expect((await mock.kill('SIGTERM')).code).toBe(0)
    expect(readdirSync(scene.folder)).toEqual(['disk.img'])
  })

  it('speak JSON lines with --json', async () => {
    const mock = await scene.mock('--json', '--trace')
    const server = await scene.serve('--json', '1:xvda', 'memory', '8MiB', '--transfer', 'map')
    const guest = await scene.guest('--json', '1:xvda', '--protocol', 'x86_32-abi', '--queues', '2')
    await server.says(/"connected"/)
    const ends = [
      await guest.kill('SIGINT'),
      await server.kill('SIGINT'),
      await mock.kill('SIGINT'),
    ]
    expect(ends.map(({ code }) => code)).toEqual([130, 130, 130])
    const [guestLines, serverLines, mockLines] = ends.map(({ out }) => jsonLines(out))
    expect(serverLines?.find(({ event }) => event === 'connected')).toMatchObject({
      vbd: '1:xvda',
      connection: { protocol: 'x86_32-abi', transfer: 'map', queues: 2 },
    })
    expect(guestLines?.find(({ event }) => event === 'connected')).toMatchObject({
      connection: { sizeBytes: 8 * MIB, sectorSize: 512 },
    })
    const states = mockLines
      ?.filter(({ path }) => path === '/local/domain/0/backend/vbd/1/51712/state')
      .map(({ value }) => value)
    expect(states).toEqual(['1', '2', '4', '5', '6'])
    const removed = mockLines?.filter(({ value }) => value === null).map(({ path }) => path)
    expect(removed).toContain('/local/domain/0/backend/vbd/1/51712')
  })

  it('serve a file that a real filesystem was made on', async () => {
    const files = scene.path('files')
    await mkdir(files)
    const content = Buffer.from(Array.from({ length: 300_000 }, (_, i) => (i * 7) & 0xff))
    await writeFile(`${files}/data.bin`, content)
    const plain = scene.path('plain.img')
    const tools = { env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` } }
    await program('mke2fs', ['-q', '-t', 'ext4', '-d', files, plain, '16M'], tools)
    await scene.mock()
    const server = await scene.serve('1:xvda', 'file', image)
    const socket = scene.path('nbd.sock')
    const guest = await scene.guest('1:xvda', '--nbd', socket, '--ring-order', '2')
    await guest.says(/exported as/)
    await program('nbdcopy', ['--flush', plain, `nbd+unix:///?socket=${socket}`])
    expect((await guest.kill('SIGTERM')).code).toBe(0)
    expect((await server.kill('SIGTERM')).code).toBe(0)
    await program('e2fsck', ['-fn', image], tools)
    const { stdout } = await program('debugfs', ['-R', 'cat data.bin', image], {
      ...tools,
      encoding: 'buffer',
      maxBuffer: MIB,
    })
    expect(stdout.equals(content)).toBe(true)
  })
})

describe('commands that ask a running serve', () => {
  it('list, stats, resize, tune, and see each other’s work', async () => {
    await scene.mock()
    const server = await scene.serve('1:xvda', 'file', image)
    const socket = scene.path('nbd.sock')
    const guest = await scene.guest('1:xvda', '--nbd', socket)
    await guest.says(/exported as/)
    const ask = async (...args: string[]) => {
      const [command = '', ...more] = args
      const { code, out, err } = await scene.run(command, '--json', '--xen', scene.xen, ...more)
      expect({ code, err }).toEqual({ code: 0, err: '' })
      return JSON.parse(out)
    }
    expect(await ask('list')).toMatchObject([
      { vbd: '1:xvda', state: 'Connected', sizeBytes: 16 * MIB },
    ])

    await qemuIo(socket, 'write -P 1 0 1M', 'read -P 1 0 1M', 'discard 0 64k', 'flush')
    const stats = await ask('stats', '1:xvda')
    expect(stats).toMatchObject({
      connected: true,
      write: { bytes: MIB, errors: 0 },
      read: { bytes: MIB, errors: 0 },
    })
    expect(stats.flush.requests).toBeGreaterThan(0)
    expect(stats.discard.requests).toBeGreaterThan(0)

    expect(await ask('resize', '1:xvda', '+16MiB')).toMatchObject({
      sizeBytes: 32 * MIB,
      previousBytes: 16 * MIB,
    })
    await guest.says(/16MiB → 32MiB/)
    expect(statSync(image).size).toBe(32 * MIB)
    await qemuIo(socket, 'write -P 2 31M 1M', 'read -P 2 31M 1M')

    expect(await ask('tune', '1:xvda', '--poll-us', '7')).toMatchObject({ pollUs: 7 })
    expect(await ask('tune', '1:xvda')).toMatchObject({ pollUs: 7, maxPersistentGrants: 1056 })
    await ask('tune', '1:xvda', '--log-stats', '1')
    await expect.poll(() => server.err, { timeout: 20_000 }).toMatch(/1:xvda: oo .*rd .*wr .*pg: /)
  })

  it('stream statistics, as many lines as were asked for', async () => {
    await scene.mock()
    await scene.serve('1:xvda', 'null', '1GiB')
    const { code, out } = await scene.run(
      'stats',
      '--json',
      '--xen',
      scene.xen,
      '--every',
      '50ms',
      '--count',
      '3',
    )
    expect(code).toBe(0)
    expect(jsonLines(out).map(({ vbd }) => vbd)).toEqual(['1:xvda', '1:xvda', '1:xvda'])
    const endless = scene.start('stats', '--xen', scene.xen, '1:xvda', '--every', '50ms')
    await endless.says(/rd\/s/)
    expect((await endless.kill('SIGINT')).code).toBe(130)
  })

  it('refuse to serve a disk twice', async () => {
    await scene.mock()
    await scene.serve('1:xvda', 'null', '1GiB')
    const again = await scene.run('serve', '--xen', scene.xen, '1:51712', 'null', '1GiB')
    expect(again.code).toBe(2)
    expect(again.err).toMatch(
      /^vbdkit: 1:(xvda|51712) is served already by another vbdkit serve\nvbdkit: .*\n$/,
    )
  })
})

describe('what cannot be', () => {
  const expectOneLine = (ended: { code: number | null; err: string }, pattern: RegExp) => {
    expect(ended.err).toMatch(pattern)
    expect(ended.err.trimEnd().split('\n').length).toBeLessThanOrEqual(2)
    expect(ended.err).not.toMatch(/^\s+at /m)
    expect(ended.code).toBe(2)
  }

  it('is said in one line with exit code 2: images', async () => {
    await scene.mock()
    const serve = (path: string, ...more: string[]) =>
      scene.run('serve', '--xen', scene.xen, '1:xvda', 'file', path, ...more)
    expectOneLine(await serve(scene.path('none.img')), /none\.img does not exist/)
    expectOneLine(await serve(scene.folder), /is a directory/)
    await chmod(image, 0o444)
    expectOneLine(await serve(image), /is a read-only file/)
    await truncate(image, 1000)
    expectOneLine(await serve(image, '--read-only'), /has 1000 bytes, not a multiple of 512/)
  })

  it('is said in one line with exit code 2: sockets and mocks', async () => {
    expectOneLine(
      await scene.run('serve', '--xen', scene.xen, '1:xvda', 'null', '1G'),
      /no mock Xen/,
    )
    expectOneLine(await scene.run('guest', '--xen', scene.xen, '1:xvda'), /no mock Xen/)
    expectOneLine(await scene.run('list', '--xen', scene.xen), /no mock Xen/)
    // None of them has made what it did not find.
    expect(existsSync(scene.path('xen'))).toBe(false)
    await scene.mock()
    expectOneLine(await scene.run('mock', scene.path('xen')), /in use|runs/)
    const taken = scene.path('taken')
    await writeFile(taken, 'a file')
    expectOneLine(await scene.run('guest', '--xen', scene.xen, '1:xvda', '--nbd', taken), /taken/)
    const control = ['serve', '--xen', scene.xen, '1:xvda', 'null', '1G', '--control', taken]
    expectOneLine(await scene.run(...control), /taken/)
    const missing = scene.path('no/such/mock')
    expectOneLine(await scene.run('mock', missing), /cannot make the directory/)
    expectOneLine(await scene.run('serve', '1:xvda', 'null', '1G'), /cannot serve Xen guests/)
  })
})

describe('a process that is killed', () => {
  it('backend: the guest lives on, and a new backend serves it again', async () => {
    await scene.mock()
    const server = await scene.serve('1:xvda', 'file', image)
    const socket = scene.path('nbd.sock')
    const guest = await scene.guest('1:xvda', '--nbd', socket)
    await guest.says(/exported as/)
    await qemuIo(socket, 'write -P 3 0 4096')
    await server.kill('SIGKILL')
    // It goes on with the ring where nothing was under way, else the guest connects anew.
    const next = await scene.serve('1:xvda', 'file', image)
    await next.says(/: connected, /)
    await qemuIo(socket, 'read -P 3 0 4096', 'write -P 4 0 4096', 'read -P 4 0 4096')
    expect((await guest.kill('SIGTERM')).code).toBe(0)
  })

  it('guest: the backend lets go of it, and serves the next', async () => {
    await scene.mock()
    const server = await scene.serve('1:xvda', 'file', image)
    const guest = await scene.guest('1:xvda')
    await server.says(/: connected/)
    await guest.kill('SIGKILL')
    await server.says(/disconnected/)
    await scene.guest('1:xvda')
    expect((await server.kill('SIGTERM')).code).toBe(0)
  })

  it('mock: guest and backend end, and say why', async () => {
    const mock = await scene.mock()
    const server = await scene.serve('1:xvda', 'file', image)
    const guest = await scene.guest('1:xvda')
    await server.says(/: connected/)
    await mock.kill('SIGKILL')
    const [served, guested] = await Promise.all([server.ended, guest.ended])
    expect(served).toMatchObject({
      code: 1,
      err: expect.stringContaining('the mock Xen has ended'),
    })
    expect(guested.code).toBe(1)
    expect(guested.err).toMatch(/^vbdkit: .*gone/m)
  })

  it('mock, and started again: everything works as before', async () => {
    const mock = await scene.mock()
    await mock.kill('SIGKILL')
    expect(existsSync(scene.path('xen/xenstored.sock'))).toBe(true)
    await scene.mock()
    await scene.serve('1:xvda', 'file', image)
    await scene.guest('1:xvda')
  })
})
