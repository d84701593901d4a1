/**
 * The examples, run as they say that they are run, and used by real programs through a guest's NBD export.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { mockPaths } from '../../lib/mock/mock_paths.js'
import { MockGuest } from '../../lib/testing/guest.js'
import { connectXenstore } from '../../lib/xenstore/client.js'
import { Xl } from '../support/xl.js'
import { jsonLines, type Running, Scene } from './cli_process.js'

const MIB = 1024 * 1024
const program = promisify(execFile)

let scene: Scene

beforeEach(async () => {
  scene = await Scene.make()
  await scene.mock()
})
afterEach(() => scene.close())

function example(name: string): string {
  return fileURLToPath(new URL(`../../examples/${name}.ts`, import.meta.url))
}

/** Serves an example to a guest, whose disk is an NBD export. */
async function serve(name: string, ...options: string[]): Promise<Running> {
  const server = await scene.serve('1:xvda', example(name), ...options)
  const guest = await scene.guest('1:xvda', '--nbd', scene.path('nbd.sock'))
  await guest.says(/exported as/)
  return server
}

async function qemuIo(...commands: string[]): Promise<string> {
  const uri = `nbd+unix:///?socket=${scene.path('nbd.sock')}`
  const args = commands.flatMap((command) => ['-c', command])
  return (await program('qemu-io', ['-f', 'raw', uri, ...args])).stdout
}

/** The disk as its guest has it. */
async function contents(): Promise<Buffer> {
  const copy = scene.path('copy')
  await program('nbdcopy', [`nbd+unix:///?socket=${scene.path('nbd.sock')}`, copy])
  return readFileSync(copy)
}

describe('clock', () => {
  it('tells the time', async () => {
    await serve('clock')
    const [line] = (await contents()).toString('latin1').split('\n')
    expect(Math.abs(Date.now() - Date.parse(line!))).toBeLessThan(60_000)
    await expect(qemuIo('write 0 512')).rejects.toThrow()
  })
})

describe('journal', () => {
  it('writes a line for each change, in order', async () => {
    const path = scene.path('writes.jsonl')
    await serve('journal', 'size=4MiB', `journal=${path}`)
    await qemuIo('write -P 7 8k 4k', 'discard 64k 64k', 'flush', 'read -P 7 8k 4k')
    const changes = jsonLines(readFileSync(path, 'utf8'))
    expect(changes.map(({ op }) => op)).toEqual(
      expect.arrayContaining(['write', 'discard', 'flush']),
    )
    expect(changes.find(({ op }) => op === 'write')).toMatchObject({
      vbd: '1:xvda',
      offset: 8192,
      length: 4096,
    })
    expect(changes.find(({ op }) => op === 'discard')).toMatchObject({
      offset: 65_536,
      length: 65_536,
    })
  })
})

describe('chaos', () => {
  it('fails as often as it is told to, and never lies', async () => {
    await serve('chaos', 'size=1MiB', 'errors=0.3', 'late=0', 'seed=7')
    let failed = 0
    for (let i = 0; i < 20; i++) {
      // Until it is written; then until it is read.
      await qemuIo(`write -P ${i + 1} ${i * 4}k 4k`).catch(() => failed++)
    }
    expect(failed).toBeGreaterThan(0)
    expect(failed).toBeLessThan(20)
  })
})

describe('sqlite', () => {
  it('keeps what was flushed in a database, and takes no room for zeroes', async () => {
    const database = scene.path('disk.db')
    const server = await serve('sqlite', `database=${database}`, 'size=16MiB')
    await qemuIo('write -P 5 1M 64k', 'write -P 0 2M 64k', 'discard 1M 4k', 'flush')
    await server.kill('SIGTERM')
    const { default: sqlite } = await import('node-sqlite3-wasm')
    const db = new sqlite.Database(database)
    expect(db.get('SELECT count(*) AS n FROM block')).toEqual({ n: 15 })
    db.close()
    // The same again from another process.
    await scene.serve('2:xvda', example('sqlite'), `database=${database}`)
    const guest = await scene.guest('2:xvda', '--nbd', scene.path('nbd2.sock'))
    await guest.says(/exported as/)
    await program('qemu-io', [
      ...['-f', 'raw', `nbd+unix:///?socket=${scene.path('nbd2.sock')}`],
      ...['-c', 'read -P 5 1028k 60k', '-c', 'read -P 0 1M 4k'],
    ])
  })
})

describe('mirror', () => {
  it('writes both, and brings the one that was away up to date', async () => {
    const [a, b] = [scene.path('a.raw'), scene.path('b.raw')]
    writeFileSync(a, Buffer.alloc(4 * MIB))
    writeFileSync(b, Buffer.alloc(4 * MIB))
    const server = await serve('mirror', `a=${a}`, `b=${b}`)
    await qemuIo('write -P 9 1M 128k', 'flush')
    await server.kill('SIGTERM')
    expect(readFileSync(a).equals(readFileSync(b))).toBe(true)
    expect(readFileSync(a)[MIB]).toBe(9)

    // One side comes back as it was before: another disk in its place, and its label with it.
    writeFileSync(b, Buffer.alloc(4 * MIB))
    writeFileSync(`${b}.mirror`, JSON.stringify({ generation: 0, clean: true }))
    const again = await scene.serve('2:xvda', example('mirror'), `a=${a}`, `b=${b}`)
    await again.kill('SIGTERM')
    expect(readFileSync(a)[MIB]).toBe(9)
    expect(readFileSync(a).equals(readFileSync(b))).toBe(true)
  })
})

describe('http', () => {
  let server: Server
  const image = randomBytes(3 * MIB)
  const asked: string[] = []

  beforeEach(async () => {
    asked.length = 0
    server = createServer((request, response) => {
      const headers = { 'accept-ranges': 'bytes', etag: '"v1"' }
      const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '')
      if (range === null) {
        response.writeHead(200, { ...headers, 'content-length': image.length }).end()
        return
      }
      asked.push(range[0])
      response.writeHead(206, headers).end(image.subarray(Number(range[1]), Number(range[2]) + 1))
    }).listen(0, '127.0.0.1')
    await once(server, 'listening')
  })
  afterEach(() => {
    server.closeAllConnections()
    server.close()
  })

  it('fetches each block once, also over a restart', async () => {
    const { port } = server.address() as AddressInfo
    const options = [`url=http://127.0.0.1:${port}/x.raw`, `cache=${scene.path('cache.raw')}`]
    const first = await serve('http', ...options)
    expect((await contents()).equals(image)).toBe(true)
    expect((await contents()).equals(image)).toBe(true)
    expect(asked.sort()).toEqual([
      'bytes=0-1048575',
      'bytes=1048576-2097151',
      'bytes=2097152-3145727',
    ])
    await first.kill('SIGTERM')
    await scene.serve('2:xvda', example('http'), ...options)
    const guest = await scene.guest('2:xvda', '--nbd', scene.path('nbd2.sock'))
    await guest.says(/exported as/)
    await program('nbdcopy', [
      `nbd+unix:///?socket=${scene.path('nbd2.sock')}`,
      scene.path('again'),
    ])
    expect(readFileSync(scene.path('again')).equals(image)).toBe(true)
    expect(asked.length).toBe(3)
  })
})

describe('golden', () => {
  const running: ChildProcess[] = []
  afterEach(() => {
    for (const child of running.splice(0)) child.kill('SIGKILL')
  })

  async function start(image: string): Promise<ChildProcess> {
    const args = ['--import', 'vbdkit/typescript', example('golden'), image, scene.folder]
    const child = spawn(process.execPath, args, {
      env: { ...process.env, VBDKIT_XEN: scene.xen },
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    running.push(child)
    await once(child.stdout!, 'data')
    return child
  }

  it('gives each guest an overlay by its name, kept for the next time', async () => {
    const image = scene.path('golden.raw')
    const bytes = randomBytes(MIB)
    writeFileSync(image, bytes)
    const store = await connectXenstore({ path: mockPaths(scene.path('xen')).xenstore })
    const xl = new Xl(store)
    try {
      for (const domid of [1, 2]) {
        const backend = await start(image)
        const guest = await MockGuest.join({ dir: scene.path('xen'), domid })
        for (const [target, vdev] of [
          ['web1', 'xvda'],
          ['web2', 'xvdb'],
        ] as const) {
          await xl.attach(domid, { vdev, target, script: 'block-vbdkit' })
          const disk = await guest.disk(vdev)
          if (domid === 1) await disk.write(4096, Buffer.from(target.padEnd(512)))
          expect((await disk.read(4096, 512)).toString().trim()).toBe(target)
          expect((await disk.read(8192, 4096)).equals(bytes.subarray(8192, 12288))).toBe(true)
        }
        await guest.close()
        const ended = once(backend, 'exit')
        backend.kill('SIGTERM')
        expect(await ended).toEqual([0, null])
        await store.remove(`/local/domain/0/backend/vbd/${domid}`)
      }
      expect(readFileSync(image).equals(bytes)).toBe(true)
    } finally {
      await store.close()
    }
  })
})
