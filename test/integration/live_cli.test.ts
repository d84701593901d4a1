/**
 * pause, resume, trace and replay as an operator has them: processes on a mock, real programs on the disk.
 */
import { execFile } from 'node:child_process'
import { copyFile, readFile, truncate, writeFile } from 'node:fs/promises'
import { promisify } from 'node:util'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { jsonLines, Scene } from './cli_process.js'

const MIB = 1024 * 1024
const program = promisify(execFile)

let scene: Scene
let image: string
let socket: string

beforeEach(async () => {
  scene = await Scene.make()
  image = scene.path('disk.img')
  socket = scene.path('nbd.sock')
  await writeFile(image, '')
  await truncate(image, 16 * MIB)
  await scene.mock()
  await scene.serve('1:xvda', 'file', image)
  const guest = await scene.guest('1:xvda', '--nbd', socket)
  await guest.says(/exported as/)
})

afterEach(() => scene.close())

function ask(...args: string[]) {
  return scene.run(...args, '--xen', scene.xen)
}

function qemuIo(...commands: string[]) {
  return qemuIoAt(socket, ...commands)
}

function qemuIoAt(nbd: string, ...commands: string[]) {
  const args = commands.flatMap((command) => ['-c', command])
  return program('qemu-io', ['-f', 'raw', `nbd+unix:///?socket=${nbd}`, ...args])
}

describe('pause and resume', () => {
  it('hold a write back and let it go', async () => {
    expect(await ask('pause', '1:xvda')).toMatchObject({ code: 0, out: '1:xvda: paused\n' })
    const list = JSON.parse((await ask('list', '--json')).out)
    expect(list[0]).toMatchObject({ vbd: '1:xvda', paused: true })
    const writing = qemuIo('write -P 0x11 0 4k', 'flush')
    const before = await readFile(image)
    expect(await ask('resume', '1:xvda')).toMatchObject({ code: 0, out: '1:xvda: resumed\n' })
    await writing
    expect(before.every((byte) => byte === 0)).toBe(true)
    expect((await readFile(image))[0]).toBe(0x11)
  })
})

describe('swap', () => {
  it('to a copy of the image that was made while paused', async () => {
    await qemuIo('write -P 0x22 0 64k', 'flush')
    const copy = scene.path('copy.img')
    await ask('pause', '1:xvda')
    await copyFile(image, copy)
    const swapped = await ask('swap', '1:xvda', 'file', copy, '--direct', 'off')
    expect(swapped).toMatchObject({ code: 0, err: '' })
    expect(swapped.out).toContain(`now file(${copy}`)
    await ask('resume', '1:xvda')
    await qemuIo('read -P 0x22 0 64k', 'write -P 0x33 0 4k', 'flush')
    expect((await readFile(copy))[0]).toBe(0x33)
    expect((await readFile(image))[0]).toBe(0x22)
  })

  it('what cannot be is said in a line, and the old disk is served on', async () => {
    const { code, err } = await ask('swap', '1:xvda', 'memory', '1MiB')
    expect(code).toBe(2)
    expect(err).toContain('fewer than')
    expect((await ask('swap', '1:xvda', 'file', scene.path('none.img'))).code).toBe(2)
    await qemuIo('write -P 0x44 0 4k', 'flush')
    expect((await readFile(image))[0]).toBe(0x44)
  })
})

describe('trace and replay', () => {
  it('a trace is replayed with other transfers and speeds to the same bytes', async () => {
    const path = scene.path('load.trace')
    const tracing = scene.start('trace', '--xen', scene.xen, '1:xvda', '--to', path)
    await tracing.says(/tracing into/)
    // Until it is there; then the load.
    while (!(await readFile(path, 'utf8').catch(() => '')).includes('\n'))
      await qemuIo('read 0 512')
    await qemuIo('write -P 1 0 1M', 'write -P 2 512k 64k', 'read 0 1M', 'discard 4M 1M', 'flush')
    await qemuIo('write -P 3 8M 4k', 'flush')
    // What is answered is in the file a moment later.
    while (!(await readFile(path, 'utf8')).includes(`"offset":${8 * MIB}`))
      await qemuIo('read 0 512')
    const { code } = await tracing.kill('SIGTERM')
    expect(code).toBe(0)
    const [header, ...requests] = jsonLines(await readFile(path, 'utf8')) as Record<
      string,
      unknown
    >[]
    expect(header).toMatchObject({ vbdkitTrace: 1, vbd: '1:xvda', sizeBytes: 16 * MIB })
    const operations = new Set(requests.map(({ operation }) => operation))
    expect(operations).toEqual(new Set(['read', 'write', 'barrier', 'flush', 'discard']))
    const written = requests.filter(
      ({ operation }) => operation === 'write' || operation === 'barrier',
    )
    expect(written.reduce((sum, { length }) => sum + Number(length), 0)).toBe(MIB + 68 * 1024)

    const images: Buffer[] = []
    for (const [name, ...options] of [['a'], ['b', '--speed', '1000', '--transfer', 'copy']]) {
      const target = scene.path(`${name}.img`)
      await writeFile(target, '')
      await truncate(target, 16 * MIB)
      const replayed = scene.start('replay', path, 'file', target, '--json', ...options)
      const ended = await replayed.ended
      expect(ended.err).toBe('')
      expect(ended.code).toBe(0)
      const result = JSON.parse(ended.out.trim().split('\n').at(-1)!)
      expect(result).toMatchObject({ requests: requests.length, errors: 0, skipped: 0 })
      images.push(await readFile(target))
    }
    expect(images[0]!.equals(images[1]!)).toBe(true)
    expect(images[0]!.subarray(0, MIB).some((byte) => byte !== 0)).toBe(true)
  })

  it('what is no trace is said in a line', async () => {
    const path = scene.path('bad.trace')
    await writeFile(
      path,
      '{"vbdkitTrace":1,"vbd":"1:xvda","sizeBytes":512,"sectorSize":512}\n{"x":1}\n',
    )
    const { code, err } = await scene.run('replay', path, 'memory', '1MiB')
    expect(code).toBe(2)
    expect(err).toContain(`line 2 of ${path} is no line of a trace`)
  })
})

describe('snapshot, reset and commit', () => {
  const byteAt = async (path: string, offset: number) => (await readFile(path))[offset]

  it('of an overlay, also after the daemon of the disk was killed', async () => {
    const [below, scratch, nbd] = ['base.img', 'scratch', 'second.sock'].map((name) =>
      scene.path(name),
    )
    await writeFile(below!, Buffer.alloc(4 * MIB, 1))
    const words = ['2:xvda', 'file', below!, '--filter', `overlay:${scratch}`]
    const first = await scene.serve(...words)
    const guest = await scene.guest('2:xvda', '--nbd', nbd!)
    await guest.says(/exported as/)
    const io = (...commands: string[]) => qemuIoAt(nbd!, ...commands)
    await io('write -P 2 0 64k', 'flush')
    expect(await ask('snapshot', '2:xvda')).toMatchObject({
      code: 0,
      out: `2:xvda: ${scratch}.1\n`,
    })
    await io('write -P 3 0 64k', 'flush')
    first.child.kill('SIGKILL')
    await first.ended
    await scene.serve(...words)
    await io('read -P 3 0 64k', 'read -P 1 64k 64k')

    const unforced = await ask('reset', '2:xvda')
    expect(unforced).toMatchObject({ code: 1, err: expect.stringContaining('with force') })
    expect(await ask('reset', '2:xvda', '--force')).toMatchObject({
      code: 0,
      out: '2:xvda: reset\n',
    })
    await io('read -P 2 0 64k')
    expect(await byteAt(below!, 0)).toBe(1)
    expect((await ask('commit', '2:xvda')).code).toBe(0)
    expect(await byteAt(below!, 0)).toBe(2)
    const refused = await ask('snapshot', '1:xvda')
    expect(refused.code).toBe(2)
    expect(refused.err).toContain('overlay')
  })
})
