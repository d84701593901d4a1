/**
 * The addon in worker threads, and processes that end while they serve: every reactor is joined, every page given back,
 * and the exit code is the one that was asked for, never a signal.
 */
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { ENGINE } from '../support/engines.js'
import { tool } from '../support/product_tools.js'

/** Workers cannot run TypeScript: they, and the processes here, use the compiled library. */
const LIBRARY = new URL('../../dist/lib/index.js', import.meta.url).href
const TESTING = new URL('../../dist/lib/testing/index.js', import.meta.url).href
const missing = existsSync(fileURLToPath(LIBRARY)) ? undefined : 'dist/ is not built'

/** Runs a script in a process of its own; resolves with what it printed. */
async function script(body: string, code = 0): Promise<string> {
  const source = `
    import { Backend, file, memory, MockHost } from ${JSON.stringify(LIBRARY)}
    import { MockGuest } from ${JSON.stringify(TESTING)}
    import { Worker } from 'node:worker_threads'
    import { once } from 'node:events'
    import { mkdtempSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
    import { tmpdir } from 'node:os'
    const images = mkdtempSync(tmpdir() + '/vbdkit-images-')
    process.on('exit', () => rmSync(images, { recursive: true }))
    for (const vdev of ['xvda', 'xvdb', 'xvdc']) {
      writeFileSync(images + '/' + vdev, '')
      truncateSync(images + '/' + vdev, 4 << 20)
    }
    ${body}`
  const args = ['--input-type=module', '-e', source]
  const { stdout, stderr, signal } = await tool(process.execPath, args, {
    seconds: 100,
    codes: [code],
  })
  expect(signal).toBeNull()
  expect(stderr).toBe('')
  return stdout
}

/** A worker that opens a backend on DIR, serves three disks, and says so. */
const SERVING_WORKER = `
  const { parentPort, workerData } = require('node:worker_threads')
  import(workerData.library).then(async ({ Backend, memory, file }) => {
    const backend = await Backend.open({ engine: '${ENGINE}', xen: 'mock:' + workerData.dir, reactors: 2 })
    for (const vdev of ['xvda', 'xvdb', 'xvdc']) await backend.serve('1:' + vdev, file(workerData.images + '/' + vdev))
    parentPort.postMessage('serving')
  })`

/** A worker that opens disks, and closes them, for ever. */
const OPENING_WORKER = `
  const { parentPort, workerData } = require('node:worker_threads')
  import(workerData.library).then(async ({ Backend, file }) => {
    const backend = await Backend.open({ engine: '${ENGINE}', xen: 'mock', reactors: 1 })
    parentPort.postMessage('opening')
    for (;;) {
      for (const vdev of ['xvda', 'xvdb', 'xvdc']) await backend.serve('1:' + vdev, file(workerData.images + '/' + vdev))
      for (const vbd of backend.vbds()) await vbd.close()
    }
  })`

/** Guest 1 with three busy disks that outlive their backends. */
const BUSY_GUEST = `
  const guest = await MockGuest.join({ dir: mock.dir, domid: 1 })
  const disks = ['xvda', 'xvdb', 'xvdc'].map((vdev, i) =>
    guest.frontend(vdev, { queues: 1 + i, ringOrder: i, connectTimeoutMs: 0, closeTimeoutMs: 500, memoryBytes: 4 << 20 }))
  let done = 0
  let stop = false
  const data = Buffer.alloc(65536, 7)
  const busy = async (disk) => {
    await disk.connect()
    while (!stop) {
      await Promise.all([0, 1, 2, 3].map((k) => disk.write(k * 65536, data)))
      const back = await disk.read(65536, 65536)
      if (!back.equals(data)) throw new Error('a wrong byte')
      done++
    }
  }`

describe.skipIf(missing !== undefined)(
  `threads and processes${missing ? ` (${missing})` : ''}`,
  () => {
    it('40 workers are terminated one after the other while they serve', async () => {
      const out = await script(`
      const { startMockBroker } = (await import(${JSON.stringify(new URL('../../dist/lib/engine/load_addon.js', import.meta.url).href)})).loadAddon()
      const mock = await MockHost.start({ broker: startMockBroker })
      const descriptors = () => readdirSync('/proc/self/fd').length
      const before = descriptors()
      ${BUSY_GUEST}
      const fail = (error) => {
        if (stop) return
        console.log(error)
        process.exit(5)
      }
      const running = disks.map((disk) => busy(disk).catch(fail))
      const threads = () => readdirSync('/proc/self/task').length
      const seen = []
      for (let round = 0; round < 40; round++) {
        const worker = new Worker(${JSON.stringify(SERVING_WORKER)}, { eval: true, execArgv: [], workerData: { dir: mock.dir, images, library: ${JSON.stringify(LIBRARY)} } })
        worker.on('error', (error) => { console.log('worker failed:', error); process.exit(3) })
        await once(worker, 'message')
        // Now and then before anything is connected, mostly with I/O on every ring.
        const start = done
        while (round % 5 !== 0 && done < start + 1 + round % 3) await new Promise((resolve) => setTimeout(resolve, 1))
        await worker.terminate()
        // The broker hears of the closed connection on a thread of its own.
        const mapped = () => mock.domains().find(({ domid }) => domid === 1).grantsMapped
        for (let i = 0; mapped() !== 0; i++) {
          if (i === 5000) throw new Error(mapped() + ' grants stay mapped after round ' + round)
          await new Promise((resolve) => setTimeout(resolve, 1))
        }
        seen.push(threads())
      }
      stop = true
      await guest.close()
      await Promise.all(running)
      // The mock's own ends of what the last worker and the guest had close on its threads.
      for (let i = 0; descriptors() !== before && i < 5000; i++) await new Promise((resolve) => setTimeout(resolve, 1))
      const left = descriptors() - before
      await mock.close()
      console.log(JSON.stringify({ done, threads: seen.slice(5), left }))
    `)
      const { done, threads, left } = JSON.parse(out) as Record<string, unknown>
      expect(done).toBeGreaterThan(40)
      expect(new Set(threads as number[]).size, `threads: ${threads}`).toBe(1)
      expect(left, 'descriptors left').toBe(0)
    }, 110_000)

    it('a worker that is terminated while it opens disks keeps none of them open', async () => {
      const out = await script(`
      const { readlinkSync } = await import('node:fs')
      const worker = ${JSON.stringify(OPENING_WORKER)}
      const open = () => readdirSync('/proc/self/fd').filter((fd) => {
        try {
          return readlinkSync('/proc/self/fd/' + fd).startsWith(images)
        } catch {
          return false
        }
      })
      for (let round = 0; round < 40; round++) {
        const opening = new Worker(worker, { eval: true, execArgv: [], workerData: { images, library: ${JSON.stringify(LIBRARY)} } })
        opening.on('error', (error) => { console.log('worker failed:', error); process.exit(3) })
        await once(opening, 'message')
        // At any moment of it.
        for (let i = 0; i < (round * 7) % 40; i++) await new Promise((resolve) => setTimeout(resolve, 1))
        await opening.terminate()
      }
      console.log(open().length)
    `)
      expect(out.trim()).toBe('0')
    }, 110_000)

    const serving = `
    const backend = await Backend.open({ engine: '${ENGINE}', xen: 'mock', reactors: 2 })
    const mock = backend.mock
    for (const vdev of ['xvda', 'xvdb', 'xvdc']) await backend.serve('1:' + vdev, memory('4MiB'))
    ${BUSY_GUEST}
    for (const disk of disks) busy(disk).catch(() => {})
    while (done < 20) await new Promise((resolve) => setTimeout(resolve, 1))`

    it.each([
      ['process.exit(7)', 'process.exit(7)', 7],
      [
        'process.exit() from a callback of the guest',
        `disks[0].read(0, 512).then(() => process.exit(9))`,
        9,
      ],
      [
        'process.exit(5) from an event of the backend',
        `backend.on('resized', () => process.exit(5)); await backend.vbd('1:xvda').resize('8MiB')`,
        5,
      ],
      ['closing everything', 'stop = true; await guest.close(); await backend.close()', 0],
      ['closing the backend first', 'stop = true; await backend.close(); await guest.close()', 0],
    ])('%s while serving ends with that code', async (_, end, code) => {
      await script(`${serving}\n${end}`, code)
    })

    it('an exception while serving ends with code 1, not with a signal', async () => {
      const args = [
        '--input-type=module',
        '-e',
        `
      import { Backend, memory } from ${JSON.stringify(LIBRARY)}
      import { MockGuest } from ${JSON.stringify(TESTING)}
      import { readdirSync } from 'node:fs'
      ${serving}
      setTimeout(() => { throw new Error('boom') }, 5)`,
      ]
      const { code, signal, stderr } = await tool(process.execPath, args, { codes: [1] })
      expect({ code, signal }).toEqual({ code: 1, signal: null })
      expect(stderr).toContain('boom')
    })

    it('process.exit in a worker that serves ends that worker alone', async () => {
      const out = await script(`
      const { loadAddon } = await import(${JSON.stringify(new URL('../../dist/lib/engine/load_addon.js', import.meta.url).href)})
      const mock = await MockHost.start({ broker: loadAddon().startMockBroker })
      const code = ${JSON.stringify(SERVING_WORKER)}.replace("parentPort.postMessage('serving')", 'process.exit(4)')
      for (let i = 0; i < 5; i++) {
        const worker = new Worker(code, { eval: true, execArgv: [], workerData: { dir: mock.dir, images, library: ${JSON.stringify(LIBRARY)} } })
        const [exit] = await once(worker, 'exit')
        console.log(exit)
      }
      await mock.close()
    `)
      expect(out.trim().split('\n')).toEqual(['4', '4', '4', '4', '4'])
    })
  },
)
