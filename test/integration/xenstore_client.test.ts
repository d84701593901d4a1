/**
 * One conformance suite for the xenstore client, run against the in-memory server, Debian's C xenstored and Debian's
 * oxenstored: whatever they do differently, a user of the client sees the same.
 */
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import { connectXenstore, type XenstoreClient } from '../../lib/xenstore/client.js'
import type { XenstoreError } from '../../lib/xenstore/xenstore.js'
import { PATIENT } from '../support/patience.js'
import { whyNot } from '../xenstored/daemon.js'
import { SocketClient } from '../xenstored/raw_client.js'
import { ownTarget, realTarget, type Target } from '../xenstored/target.js'

const servers = {
  'in-memory server': { start: ownTarget, missing: undefined },
  'C xenstored': { start: () => realTarget('xenstored'), missing: await whyNot('xenstored') },
  oxenstored: { start: () => realTarget('oxenstored'), missing: await whyNot('oxenstored') },
}

const errnoOf = async (promise: Promise<unknown>): Promise<string> =>
  await promise.then(
    () => 'no error',
    (error: XenstoreError) => error.errno ?? String(error),
  )

for (const [name, { start, missing }] of Object.entries(servers)) {
  describe.skipIf(missing !== undefined)(
    `xenstore client on ${name}${missing ? ` (${missing})` : ''}`,
    () => {
      let target: Target
      const clients: XenstoreClient[] = []

      beforeAll(async () => {
        target = await start()
      })
      afterEach(async () => {
        for (const client of clients.splice(0)) await client.close()
      })
      afterAll(() => target?.close())

      async function connect(options = {}): Promise<XenstoreClient> {
        const client = await connectXenstore({ path: target.socket, ...options })
        clients.push(client)
        return client
      }

      /** Events of a watch, with a way to wait until one satisfies. */
      function recorder() {
        const paths: string[] = []
        return { paths, onEvent: (path: string) => void paths.push(path) }
      }

      it('writes, reads, lists and removes', async () => {
        const xs = await connect()
        await xs.write('/t/a/b', 'value')
        expect(await xs.read('/t/a/b')).toBe('value')
        expect(await xs.read('/t/a')).toBe('')
        await xs.mkdir('/t/c')
        await xs.mkdir('/t/c')
        expect((await xs.list('/t')).sort()).toEqual(['a', 'c'])
        expect(await xs.list('/t/c')).toEqual([])
        await xs.remove('/t/a')
        expect(await xs.tryRead('/t/a/b')).toBeUndefined()
        expect(await xs.list('/t')).toEqual(['c'])
        await xs.remove('/t')
        await xs.remove('/t')
        await xs.remove('/t/none/at/all')
        expect(await xs.tryList('/t')).toEqual([])
      })

      it('carries bytes, not text', async () => {
        const xs = await connect()
        const bytes = Array.from({ length: 256 }, (_, code) => String.fromCharCode(code)).join('')
        await xs.write('/bytes', bytes)
        expect(await xs.read('/bytes')).toBe(bytes)
        await xs.write('/bytes', '')
        expect(await xs.read('/bytes')).toBe('')
        expect(await errnoOf(xs.write('/bytes', 'snowman ☃'))).toBe('EINVAL')
        expect(await xs.read('/bytes')).toBe('')
      })

      it('reports failures by their errno', async () => {
        const xs = await connect()
        await expect(xs.read('/none')).rejects.toMatchObject({
          code: 'ERR_VBD_XENSTORE',
          errno: 'ENOENT',
          path: '/none',
        })
        expect(await errnoOf(xs.list('/none'))).toBe('ENOENT')
        expect(await errnoOf(xs.getPermissions('/none'))).toBe('ENOENT')
        expect(await errnoOf(xs.write('/bad path', ''))).toBe('EINVAL')
        expect(await errnoOf(xs.tryRead('/bad path'))).toBe('EINVAL')
        expect(await errnoOf(xs.write('/end/', ''))).toBe('EINVAL')
        expect(await errnoOf(xs.read(''))).toBe('EINVAL')
        expect(await errnoOf(xs.write('/nul\0x', ''))).toBe('EINVAL')
        expect(await errnoOf(xs.write('/big', 'x'.repeat(4092)))).toBe('E2BIG')
        expect(await errnoOf(xs.read(`/${'x'.repeat(3072)}`))).toBe('EINVAL')
      })

      it('never removes the root', async () => {
        const xs = await connect()
        await xs.write('/keep', 'me')
        expect(await errnoOf(xs.remove('/'))).toBe('EINVAL')
        expect(await xs.read('/keep')).toBe('me')
      })

      it('sets and gets permissions', async () => {
        const xs = await connect()
        await xs.write('/perms/below', '')
        await xs.setPermissions('/perms', [
          { access: 'n', domid: 0 },
          { access: 'r', domid: 3 },
          { access: 'b', domid: 4 },
        ])
        expect(await xs.getPermissions('/perms')).toEqual([
          { access: 'n', domid: 0 },
          { access: 'r', domid: 3 },
          { access: 'b', domid: 4 },
        ])
        await xs.write('/perms/new', '')
        expect(await xs.getPermissions('/perms/new')).toHaveLength(3)
        expect(await errnoOf(xs.setPermissions('/perms', []))).toBe('EINVAL')
      })

      it('lists a directory of more than 4096 bytes of names', async () => {
        const xs = await connect()
        const names = Array.from({ length: 1200 }, (_, i) => `child-${`${i}`.padStart(5, '0')}`)
        await Promise.all(names.map((child) => xs.write(`/long/${child}`, '')))
        expect((await xs.list('/long')).sort()).toEqual(names)
        const inside = await xs.transaction(async (tx) => {
          await tx.write('/long/child-99999', '')
          return await tx.list('/long')
        })
        expect(inside).toHaveLength(1201)
        await xs.remove('/long')
      })

      it('matches a thousand pipelined requests with their answers', async () => {
        const xs = await connect()
        const indices = Array.from({ length: 1000 }, (_, i) => i)
        await Promise.all(indices.map((i) => xs.write(`/many/${i}`, `value ${i}`)))
        const values = await Promise.all(
          indices.map((i) => xs.tryRead(`/many/${i % 2 ? i : `none/${i}`}`)),
        )
        expect(values).toEqual(indices.map((i) => (i % 2 ? `value ${i}` : undefined)))
        await xs.remove('/many')
      })

      it('keeps the order of requests', async () => {
        const xs = await connect()
        const values = Array.from({ length: 50 }, (_, i) => `${i}`)
        for (const value of values) void xs.write('/order', value)
        expect(await xs.read('/order')).toBe('49')
      })

      it('knows domains', async () => {
        const xs = await connect()
        expect(await xs.domainPath(7)).toBe('/local/domain/7')
        expect(await xs.isDomainIntroduced(0)).toBe(true)
        expect(await xs.isDomainIntroduced(4242)).toBe(false)
      })

      it('commits a transaction at once and returns its value', async () => {
        const xs = await connect()
        const other = await connect()
        const value = await xs.transaction(async (tx) => {
          await tx.write('/tx/a', '1')
          await tx.write('/tx/b', '2')
          expect(await tx.read('/tx/a')).toBe('1')
          expect(await tx.tryRead('/tx/none')).toBeUndefined()
          expect(await other.tryRead('/tx/a')).toBeUndefined()
          return 'done'
        })
        expect(value).toBe('done')
        expect(await other.read('/tx/b')).toBe('2')
      })

      it('aborts when the body throws', async () => {
        const xs = await connect()
        const failing = xs.transaction(async (tx) => {
          await tx.write('/aborted', 'x')
          throw new RangeError('my own')
        })
        await expect(failing).rejects.toThrow(RangeError)
        expect(await xs.tryRead('/aborted')).toBeUndefined()
        // A daemon that still held it would refuse the next one sooner or later.
        for (let i = 0; i < 40; i++) await xs.transaction(() => Promise.resolve())
      })

      it('runs a transaction again after a conflict', async () => {
        const xs = await connect()
        const other = await connect()
        await xs.write('/counter', '0')
        let runs = 0
        await xs.transaction(async (tx) => {
          runs++
          const seen = Number(await tx.read('/counter'))
          if (runs <= 3) await other.write('/counter', `${seen + 10}`)
          await tx.write('/counter', `${seen + 1}`)
        })
        expect(runs).toBe(4)
        expect(await xs.read('/counter')).toBe('31')
      })

      it('gives up after 16 conflicts', async () => {
        const xs = await connect()
        const other = await connect()
        await xs.write('/contended', '0')
        let runs = 0
        const hopeless = xs.transaction(async (tx) => {
          runs++
          const seen = Number(await tx.read('/contended'))
          await other.write('/contended', `${seen + 10}`)
          await tx.write('/contended', `${seen + 1}`)
        })
        expect(await errnoOf(hopeless)).toBe('EAGAIN')
        expect(runs).toBe(16)
        expect(await xs.read('/contended')).toBe('160')
      })

      it('loses no update between competing transactions', async () => {
        const rivals = await Promise.all([connect(), connect(), connect()])
        await rivals[0]!.write('/sum', '0')
        const add = (xs: XenstoreClient) =>
          xs.transaction(async (tx) => tx.write('/sum', `${Number(await tx.read('/sum')) + 1}`))
        for (let i = 0; i < 10; i++) await Promise.all(rivals.map(add))
        expect(await rivals[0]!.read('/sum')).toBe('30')
      })

      it('refuses an operation of a transaction that has ended', async () => {
        const xs = await connect()
        const late = await xs.transaction(async (tx) => tx)
        expect(late).toBeDefined()
        await expect(late.read('/tool')).rejects.toMatchObject({ code: 'ERR_VBD_STATE' })
      })

      it('fires a watch once when registered, and for changes at and below it', async () => {
        const xs = await connect()
        const other = await connect()
        const { paths, onEvent } = recorder()
        const watch = await xs.watch('/w/node', onEvent)
        await vi.waitFor(() => expect(paths).toEqual(['/w/node']), PATIENT)
        await other.write('/w/node/deep/er', 'x')
        await vi.waitFor(() => expect(paths.at(-1)).toBe('/w/node/deep/er'), PATIENT)
        await other.write('/w/nodes', 'beside')
        await other.remove('/w/node')
        await vi.waitFor(() => expect(paths.at(-1)).toBe('/w/node'), PATIENT)
        expect(paths).not.toContain('/w/nodes')
        await watch.close()
        await watch.close()
        const before = paths.length
        await other.write('/w/node', 'again')
        // The daemon has told everybody of that write by the time it answers this.
        await xs.read('/w/node')
        await new Promise(setImmediate)
        expect(paths).toHaveLength(before)
      })

      it('fires once for what was created under an ancestor that is removed', async () => {
        const xs = await connect()
        await xs.write('/r/a/b/c', 'x')
        const { paths, onEvent } = recorder()
        await xs.watch('/r/a/b', onEvent)
        await vi.waitFor(() => expect(paths).toEqual(['/r/a/b']), PATIENT)
        await xs.remove('/r')
        await vi.waitFor(() => expect(paths).toEqual(['/r/a/b', '/r/a/b']), PATIENT)
      })

      it('calls back after the last change of a burst, however it came', async () => {
        const xs = await connect()
        const other = await connect()
        const seen: (string | undefined)[] = []
        const reads: Promise<unknown>[] = []
        let calls = 0
        const watch = await xs.watch('/burst', () => {
          calls++
          reads.push(xs.tryRead('/burst/1').then((value) => seen.push(value)))
        })
        await vi.waitFor(() => expect(calls).toBe(1), PATIENT)
        const writes = Array.from({ length: 500 }, (_, i) => other.write(`/burst/${i % 3}`, `${i}`))
        await Promise.all(writes)
        await vi.waitFor(() => expect(seen.at(-1)).toBe('499'), PATIENT)
        expect(calls).toBeLessThanOrEqual(501)
        // The last one need not be the last: another may have found the same.
        await watch.close()
        await Promise.all(reads)
      })

      it('serves two watches on one path alike', async () => {
        const xs = await connect()
        const first = recorder()
        const second = recorder()
        await xs.watch('/twice', first.onEvent)
        const watch = await xs.watch('/twice', second.onEvent)
        await vi.waitFor(
          () => expect([first.paths.length, second.paths.length]).toEqual([1, 1]),
          PATIENT,
        )
        await watch.close()
        await xs.write('/twice', 'x')
        await vi.waitFor(() => expect(first.paths).toHaveLength(2), PATIENT)
        expect(second.paths).toHaveLength(1)
      })

      it('refuses a watch that the daemon refuses, and forgets it', async () => {
        const xs = await connect()
        const { paths, onEvent } = recorder()
        expect(await errnoOf(xs.watch('/bad path', onEvent))).toBe('EINVAL')
        await xs.read('/')
        await new Promise(setImmediate)
        expect(paths).toEqual([])
      })

      it('hears of domains that come and go', async () => {
        const xs = await connect()
        const introduced = recorder()
        const released = recorder()
        await xs.watch('@introduceDomain', introduced.onEvent)
        await xs.watch('@releaseDomain', released.onEvent)
        await vi.waitFor(() => expect(released.paths).toHaveLength(1), PATIENT)
        await target.addDomain(9)
        await xs.write('/local/domain/9', '')
        await introduce(target, 9)
        await vi.waitFor(() => expect(introduced.paths.length).toBeGreaterThan(1), PATIENT)
        expect(await xs.isDomainIntroduced(9)).toBe(true)
        await target.removeDomain(9)
        await vi.waitFor(() => expect(released.paths.length).toBeGreaterThan(1), PATIENT)
        expect(await xs.isDomainIntroduced(9)).toBe(false)
      })

      it('comes back after the daemon was killed, with its watches, and fires them', async () => {
        const xs = await connect()
        const states: string[] = []
        xs.onConnection((state) => states.push(state))
        const kept = recorder()
        const closed = recorder()
        await xs.watch('/kept', kept.onEvent)
        const watch = await xs.watch('/closed', closed.onEvent)
        await xs.write('/kept', 'before')
        await vi.waitFor(() => expect(kept.paths.length).toBeGreaterThan(1), PATIENT)
        await target.stop()
        await vi.waitFor(() => expect(states).toEqual(['lost']), PATIENT)
        await watch.close()
        const waiting = xs.tryRead('/kept')
        const watching = xs.watch('/while/away', kept.onEvent)
        const counted = kept.paths.length
        await target.start()
        expect(await waiting).toBeUndefined()
        await watching
        await vi.waitFor(() => expect(states).toEqual(['lost', 'connected']), PATIENT)
        await vi.waitFor(() => expect(kept.paths.slice(counted)).toContain('/kept'), PATIENT)
        await vi.waitFor(() => expect(kept.paths.slice(counted)).toContain('/while/away'), PATIENT)
        await xs.write('/kept', 'after')
        await vi.waitFor(() => expect(kept.paths.at(-1)).toBe('/kept'), PATIENT)
        expect(closed.paths).toHaveLength(1)
      })

      it('runs a transaction again whose connection went before its end', async () => {
        const xs = await connect()
        let runs = 0
        await xs.transaction(async (tx) => {
          runs++
          await tx.write('/again', `run ${runs}`)
          if (runs === 1) {
            await target.stop()
            await target.start()
          }
          await tx.write('/again/b', 'x')
        })
        expect(runs).toBe(2)
        expect(await xs.read('/again')).toBe('run 2')
      })

      it('rejects what waits too long for the daemon, and all that waits at its end', async () => {
        const xs = await connect({ waitMs: 60 })
        const patient = await connect({ waitMs: 60_000 })
        const lost = Promise.all(
          [xs, patient].map(
            (one) =>
              new Promise<void>((resolve) => {
                one.onConnection(() => resolve())
              }),
          ),
        )
        await target.stop()
        await lost
        expect(await errnoOf(xs.read('/tool'))).toBe('ECONNRESET')
        const pending = errnoOf(patient.read('/tool'))
        await patient.close()
        await patient.close()
        expect(await pending).toBe('ECONNRESET')
        expect(await errnoOf(patient.read('/tool'))).toBe('ECONNRESET')
        await target.start()
      })
    },
  )
}

/** What a toolstack does; the client itself has no need of it. */
async function introduce(target: Target, domid: number): Promise<void> {
  const raw = await SocketClient.connect(target.socket)
  const answer = await raw.ask('INTRODUCE', `${domid}\x001\x005\0`)
  expect(answer?.payload).toBe('OK\0')
  await raw.close()
}
