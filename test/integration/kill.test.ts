/**
 * SIGKILL for each of the three processes, at any moment: while nothing happens, during the handshake, under load. Those
 * that are left end in a clear state with one clear message or go on, nobody hangs, and what was written is there.
 */
import { existsSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { loadAddon } from '../../lib/engine/load_addon.js'
import { MockHost } from '../../lib/mock/mock_host.js'
import { MockGuest } from '../../lib/testing/guest.js'
import { JOURNALED } from '../support/engines.js'
import { PATIENT } from '../support/patience.js'
import { fio, missingTools, qemuIo, tool } from '../support/product_tools.js'
import { Random, VerifiedDisk } from '../support/product_verify.js'
import { bounded, MIB } from '../support/product_world.js'
import { type Running, Scene } from './cli_process.js'

/** The command runs what is compiled. */
const built = existsSync(fileURLToPath(new URL('../../dist/lib/cli/main.js', import.meta.url)))
const missing =
  missingTools('fio', 'qemu-io', 'nbdinfo') ?? (built ? undefined : 'dist/ is not built')
const SIZE = 16 * MIB

let scene: Scene
let image: string

beforeEach(async () => {
  scene = await Scene.make()
  image = scene.path('disk.img')
  writeFileSync(image, '')
  truncateSync(image, SIZE)
})
afterEach(() => scene.close())

function hostIn(dir: string): Promise<MockHost> {
  return MockHost.start({ dir, broker: (...args) => loadAddon().startMockBroker(...args) })
}

function uriOf(socket: string): string {
  return `nbd+unix:///?socket=${socket}`
}

/** What a process said when it ended by itself: no stack trace, a message and at most one remedy. */
function expectOneMessage(err: string, pattern: RegExp): void {
  expect(err).not.toMatch(/^\s+at /m)
  const lines = err.trim().split('\n')
  expect(lines.length, err).toBeLessThanOrEqual(2)
  expect(lines[0]).toMatch(pattern)
  for (const line of lines) expect(line).toMatch(/^vbdkit: /)
}

/** Ends within the time, or the test says who did not. */
function endOf(running: Running, who: string) {
  return bounded(running.ended, 20, () => ({ who, out: running.out, err: running.err }))
}

describe.skipIf(missing !== undefined)(
  `the backend is killed${missing ? ` (${missing})` : ''}`,
  () => {
    it('again and again at random moments: its guest loses nothing, and no page stays mapped', async () => {
      const host = await hostIn(scene.path('xen'))
      const guest = await MockGuest.join({ dir: host.dir, domid: 1 })
      const frontend = guest.frontend('xvda', { queues: 2, ringOrder: 2, connectTimeoutMs: 0 })
      const random = new Random(11)
      const disk = new VerifiedDisk(frontend, { seed: 11, sectors: SIZE / 512 })
      const stopping = new AbortController()
      let connected = 0
      frontend.on('connected', () => connected++)

      let backend = scene.start('serve', '--xen', scene.xen, '1:xvda', 'file', image)
      await frontend.connect()
      const running = disk.run({ depth: 16, signal: stopping.signal })
      for (let round = 0; round < 8; round++) {
        const before = { done: disk.done, connected }
        // Every third one dies before or while it takes over from the last one.
        if (round % 3 === 2) await sleep(random.below(500))
        else
          await vi.waitFor(
            () => expect(disk.done).toBeGreaterThan(before.done + random.below(300)),
            PATIENT,
          )
        await backend.kill('SIGKILL')
        await vi.waitFor(() => {
          const { grantsMapped, portsBound } = host.domains()[0]!
          expect({ grantsMapped, portsBound }).toEqual({ grantsMapped: 0, portsBound: 0 })
        }, PATIENT)
        expect(frontend.failure).toBeUndefined()
        backend = scene.start('serve', '--xen', scene.xen, '1:xvda', 'file', image)
      }
      const last = disk.done
      await vi.waitFor(() => expect(disk.done).toBeGreaterThan(last + 100), PATIENT)
      stopping.abort()
      await running
      await disk.check()
      await frontend.flush()
      // Each went on where the last one died, if that had a journal.
      if (JOURNALED) expect(connected).toBe(1)
      else expect(connected).toBeGreaterThan(1)
      expect(frontend.violations).toEqual([])
      await guest.close()
      expect((await backend.kill('SIGTERM')).code).toBe(0)
      expect(backend.err.trim()).toMatch(/^(vbdkit: 1:xvda: an earlier backend died [^\n]*)?$/)
      await host.close()
    }, 120_000)

    it('under a tool that knows nothing of it: fio waits, goes on and finds every byte', async () => {
      await scene.mock()
      let backend = await scene.serve('1:xvda', 'file', image)
      const socket = scene.path('nbd.sock')
      const guest = await scene.guest('1:xvda', '--nbd', socket, '--queues', '2')
      await guest.says(/exported as/)
      const load = fio(uriOf(socket), {
        rw: 'randwrite',
        bs: '16k',
        size: '8M',
        iodepth: 8,
        // As long as a few lives of a backend.
        rate_iops: 120,
        verify: 'crc32c',
      })
      let over = false
      const done = load.finally(() => {
        over = true
      })
      let kills = 0
      while (!over && kills < 4) {
        await Promise.race([sleep(700), done])
        await backend.kill('SIGKILL')
        backend = await scene.serve('1:xvda', 'file', image)
        kills++
      }
      const result = await bounded(done, 60, () => ({
        guest: guest.out.slice(-900),
        err: guest.err,
        backend: backend.out.slice(-900),
      }))
      expect(result.errors).toBe(0)
      expect(result.reads).toBeGreaterThanOrEqual(result.writes)
      // Where a new life takes as long as the load, it is one.
      expect(kills).toBeGreaterThan(0)
      expect((await guest.kill('SIGTERM')).code).toBe(0)
      expect((await backend.kill('SIGTERM')).code).toBe(0)
    }, 120_000)

    it('for good: the guest says so, and ends when it is told to', async () => {
      await scene.mock()
      const backend = await scene.serve('1:xvda', 'file', image)
      const socket = scene.path('nbd.sock')
      const guest = await scene.guest('1:xvda', '--nbd', socket)
      await guest.says(/exported as/)
      await backend.kill('SIGKILL')
      const waiting = tool('qemu-io', ['-f', 'raw', '-c', 'write 0 64k', uriOf(socket)], {
        codes: [0, 1],
      })
      await guest.says(/no answer/)
      const { code, err } = await bounded(guest.kill('SIGTERM'), 15, () => guest.out)
      expect({ code, err }).toEqual({ code: 0, err: '' })
      await waiting
    }, 60_000)
  },
)

describe.skipIf(missing !== undefined)('the guest is killed', () => {
  it('again and again at random moments: the backend lets go, and the next finds what was flushed', async () => {
    const host = await hostIn(scene.path('xen'))
    const backend = await scene.serve('1:xvda', 'file', image)
    const random = new Random(7)
    const socket = scene.path('nbd.sock')
    for (let round = 1; round <= 9; round++) {
      const phase = (['handshake', 'idle', 'load'] as const)[round % 3]!
      const guest = scene.start('guest', '--xen', scene.xen, '1:xvda', '--nbd', socket)
      let load: Promise<unknown> = Promise.resolve()
      if (phase === 'handshake') await sleep(150 + random.below(250))
      else {
        await guest.says(/exported as/)
        await qemuIo(uriOf(socket), `write -P ${round} 0 1M`, 'flush', `read -P ${round} 0 1M`)
      }
      if (phase === 'load') {
        load = fio(uriOf(socket), {
          rw: 'randrw',
          bs: '4k',
          offset: '2M',
          size: '8M',
          iodepth: 32,
          time_based: 1,
          runtime: 20,
        }).catch(() => {})
        await backendIsBusy(round)
        await sleep(random.below(100))
      }
      await guest.kill('SIGKILL')
      await load
      await vi.waitFor(() => expect(host.domains()).toEqual([]), PATIENT)
      if (phase !== 'handshake') {
        const next = await scene.guest('1:xvda', '--nbd', socket)
        await next.says(/exported as/)
        await qemuIo(uriOf(socket), `read -P ${round} 0 1M`)
        expect((await next.kill('SIGTERM')).code).toBe(0)
        await vi.waitFor(() => expect(host.domains()).toEqual([]), PATIENT)
      }
    }
    expect((await backend.kill('SIGTERM')).code).toBe(0)
    expect(
      readFileSync(image)
        .subarray(0, MIB)
        .every((byte) => byte === 8),
    ).toBe(true)
    await host.close()

    async function backendIsBusy(round: number): Promise<void> {
      const writes = async () => {
        const { stdout } = await tool(process.execPath, [
          BIN,
          'stats',
          '--xen',
          scene.xen,
          '1:xvda',
          '--json',
        ])
        return JSON.parse(stdout.split('\n')[0]!).write.requests as number
      }
      const start = await writes()
      await vi.waitFor(
        async () => expect(await writes(), `round ${round}`).toBeGreaterThan(start + 50),
        PATIENT,
      )
    }
  }, 180_000)
})

const BIN = fileURLToPath(new URL('../../bin/vbdkit.js', import.meta.url))

describe.skipIf(missing !== undefined)('the mock is killed', () => {
  it.each(['idle', 'handshake', 'load', 'load'])(
    '%s: backend and guest end, each with one message, and all can start again',
    async (phase) => {
      const mock = await scene.mock()
      const backend = await scene.serve('1:xvda', 'file', image)
      const socket = scene.path('nbd.sock')
      const guest = scene.start('guest', '--xen', scene.xen, '1:xvda', '--nbd', socket)
      let load: Promise<unknown> = Promise.resolve()
      if (phase === 'handshake') {
        await sleep(200 + Math.floor(Math.random() * 150))
      } else {
        await guest.says(/exported as/)
        await qemuIo(uriOf(socket), 'write -P 9 0 1M', 'flush')
      }
      if (phase === 'load') {
        load = fio(uriOf(socket), {
          rw: 'randrw',
          bs: '4k',
          offset: '2M',
          size: '8M',
          iodepth: 32,
          time_based: 1,
          runtime: 20,
        }).catch(() => {})
        await sleep(1000 + Math.floor(Math.random() * 300))
      }
      await mock.kill('SIGKILL')
      const [served, guested] = await Promise.all([
        endOf(backend, 'backend'),
        endOf(guest, 'guest'),
      ])
      await load
      expect(served.code).toBe(1)
      expectOneMessage(served.err, /the mock Xen has ended/)
      // Before it has joined it finds no mock, or no xenstore any more, which is the operator's mistake.
      expect(phase === 'handshake' ? [1, 2] : [1]).toContain(guested.code)
      expectOneMessage(guested.err, /gone|mock Xen|no xenstore/)
      expect(existsSync(socket)).toBe(false)

      await scene.mock()
      const again = await scene.serve('1:xvda', 'file', image)
      const next = await scene.guest('1:xvda', '--nbd', socket)
      await next.says(/exported as/)
      if (phase !== 'handshake') await qemuIo(uriOf(socket), 'read -P 9 0 1M')
      expect((await next.kill('SIGTERM')).code).toBe(0)
      expect((await again.kill('SIGTERM')).code).toBe(0)
    },
    90_000,
  )
})
