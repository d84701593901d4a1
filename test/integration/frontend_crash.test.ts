/** A guest whose backend is a process of its own that dies in the middle of its work: `vbdkit serve`, kill -9. */
import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { EventEmitter, once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { loadAddon } from '../../lib/engine/load_addon.js'
import { MockHost } from '../../lib/mock/mock_host.js'
import type { Frontend } from '../../lib/testing/frontend.js'
import { MockGuest } from '../../lib/testing/guest.js'
import { runGuest } from '../../lib/testing/run_guest.js'
import { ENGINE } from '../support/engines.js'

const MIB = 1024 * 1024
const BIN = fileURLToPath(new URL('../../bin/vbdkit.js', import.meta.url))

let dir: string
let image: string
let mock: MockHost
const children: ChildProcess[] = []

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'vbdkit-crash-'))
  image = join(dir, 'image')
  writeFileSync(image, Buffer.alloc(16 * MIB))
  mock = await MockHost.start({ broker: loadAddon().startMockBroker })
})

afterEach(async () => {
  for (const child of children.splice(0)) await end(child, 'SIGKILL')
  await mock.close()
  rmSync(dir, { recursive: true })
})

function serve(...options: string[]): ChildProcess {
  const args = [BIN, 'serve', '--xen', `mock:${mock.dir}`, '1:xvda', 'file', image, ...options]
  const child = spawn(process.execPath, args, {
    stdio: 'ignore',
    env: { ...process.env, VBDKIT_ENGINE: ENGINE },
  })
  children.push(child)
  return child
}

async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  child.kill(signal)
  await once(child, 'exit')
}

/** Writes without end, never two writes of one place at a time, and knows what must be there. */
class Writer {
  readonly expected = Buffer.alloc(16 * MIB)
  readonly #disk: Frontend
  #stopped = false
  #turns = 0
  /** Rejects with the first write that fails. */
  readonly ended: Promise<unknown>

  constructor(disk: Frontend) {
    this.#disk = disk
    this.ended = Promise.all(Array.from({ length: 16 }, (_, lane) => this.#write(lane * MIB)))
    this.ended.catch(() => {})
  }

  get turns(): number {
    return this.#turns
  }

  async #write(start: number): Promise<void> {
    while (!this.#stopped) {
      const at = start + 512 * Math.floor(Math.random() * 1024)
      const data = randomBytes(512 * (1 + Math.floor(Math.random() * 512)))
      data.copy(this.expected, at)
      await this.#disk.write(at, data)
      this.#turns++
    }
  }

  /** Resolves when so many more writes are done. */
  async more(count: number): Promise<void> {
    const until = this.#turns + count
    while (this.#turns < until) await new Promise((resolve) => setTimeout(resolve, 5))
  }

  async stop(): Promise<void> {
    this.#stopped = true
    await this.ended
  }
}

// A native backend keeps a journal: the next one goes on with the same rings. Without one the guest begins again.
it.each([
  ['persistent', 'native'],
  ['copy', 'native'],
  ['map', 'native'],
  ['persistent', 'js'],
  ['map', 'js'],
])('survives kill -9 of its backend, transfer %s, engine %s', async (transfer, engine) => {
  const words = ['--transfer', transfer, '--engine', engine]
  const first = serve(...words)
  await using guest = await MockGuest.join({ dir: mock.dir, domid: 1 })
  const disk = await guest.disk('xvda', { queues: 2, ringOrder: 1 })
  const again: unknown[] = []
  disk.on('connected', (event) => again.push(event))
  const writer = new Writer(disk)
  let backend = first
  for (let round = 0; round < 3; round++) {
    await writer.more(200)
    await end(backend, 'SIGKILL')
    backend = serve(...words)
  }
  await writer.more(200)
  const anew = expect.objectContaining({ reconnected: true, queues: 2 })
  expect(again).toEqual(engine === 'native' ? [] : [anew, anew, anew])
  await writer.stop()
  await disk.flush()
  expect((await disk.read(0, 16 * MIB)).equals(writer.expected)).toBe(true)
  await disk.close()
  expect(disk.violations).toEqual([])
  expect(guest.memory.use).toEqual({ pages: 0, grants: 0, quarantined: 0 })
  await end(backend, 'SIGTERM')
  expect(backend.exitCode).toBe(0)
  expect(readFileSync(image).equals(writer.expected)).toBe(true)
})

it('says that its backend is silent, and that it is back', async () => {
  const first = serve()
  const events = new EventEmitter()
  await using running = await runGuest({
    dir: mock.dir,
    domid: 1,
    vdev: 'xvda',
    stallMs: 200,
    onEvent: (event) => events.emit(event.type, event),
  })
  await end(first, 'SIGKILL')
  const stalled = once(events, 'stalled')
  const read = running.frontend.read(0, 512)
  expect((await stalled)[0]).toMatchObject({ requests: 1 })
  const resumed = once(events, 'resumed')
  serve()
  await Promise.all([read, resumed])
  await running.close()
  await running.done
})

it('closes in time although its backend was killed', async () => {
  const backend = serve()
  await using guest = await MockGuest.join({ dir: mock.dir, domid: 1 })
  const disk = await guest.disk('xvda', { closeTimeoutMs: 300 })
  await disk.write(0, Buffer.alloc(MIB, 1))
  await end(backend, 'SIGKILL')
  const read = disk.read(0, 512)
  await Promise.all([expect(read).rejects.toMatchObject({ code: 'ERR_VBD_STATE' }), disk.close()])
  expect(guest.memory.use).toEqual({ pages: 0, grants: 0, quarantined: 0 })
})

it('a mock that ends takes the guest with it, with a reason', async () => {
  serve()
  const guest = await MockGuest.join({ dir: mock.dir, domid: 1 })
  const disk = await guest.disk('xvda')
  const writer = new Writer(disk)
  await writer.more(50)
  const closed = once(guest, 'closed')
  await mock.close()
  expect((await closed)[0]).toMatchObject({
    code: expect.stringMatching(/^ERR_VBD_(STATE|XENSTORE)$/),
  })
  await expect(writer.ended).rejects.toMatchObject({ code: 'ERR_VBD_STATE' })
  expect(disk.state).toBe('closed')
  await guest.close()
})
