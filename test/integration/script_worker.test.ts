/**
 * Script disks and threads: disks whose module runs on a thread of its own, and processes and threads that end while
 * scripts serve. The processes here use the compiled library: threads cannot run TypeScript.
 */
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { ENGINE } from '../support/engines.js'
import { tool } from '../support/product_tools.js'

const LIBRARY = new URL('../../dist/lib/index.js', import.meta.url).href
const TESTING = new URL('../../dist/lib/testing/index.js', import.meta.url).href
const LOAD_ADDON = new URL('../../dist/lib/engine/load_addon.js', import.meta.url).href
const missing = existsSync(fileURLToPath(LIBRARY)) ? undefined : 'dist/ is not built'

/** A disk that does what the offset that is read says. */
const MODULE = `
import { isMainThread } from 'node:worker_threads'
const data = Buffer.alloc(4 << 20)
export default ({ greeting, deadline }) => ({
  name: 'apart',
  size: data.length,
  deadline,
  open() {
    if (greeting === 'refuse') throw new Error('not today')
  },
  read(buf, offset) {
    if (offset === 4096) throw new Error(greeting + ' from ' + (isMainThread ? 'here' : 'there'))
    if (offset === 8192) for (const start = Date.now(); Date.now() < start + 2000; );
    if (offset === 12288) process.exit(3)
    if (offset === 16384) return new Promise(() => setTimeout(() => { throw new Error('late') }))
    data.copy(buf, 0, offset, offset + buf.length)
  },
  write(buf, offset) {
    buf.copy(data, offset)
  },
  resize() {},
  close() {
    console.log('closed')
  },
})`

/**
 * VBDKIT_SANITIZED: a folder with an addon that was built with AddressSanitizer, whose runtime LD_PRELOAD brings into the
 * processes here. What that finds is on their stderr, which has to be empty.
 */
const PATIENCE_S = process.env.VBDKIT_SANITIZED === undefined ? 100 : 400
const sanitized: NodeJS.ProcessEnv =
  process.env.VBDKIT_SANITIZED === undefined
    ? {}
    : {
        VBDKIT_PREBUILD: process.env.VBDKIT_SANITIZED,
        LD_PRELOAD: process.env.VBDKIT_SANITIZER_RUNTIME,
        // What Node.js itself never gives back is no concern of ours.
        ASAN_OPTIONS: 'detect_leaks=0:abort_on_error=0',
      }

/** Runs a script in a process of its own; resolves with the lines that it printed. */
async function script(body: string, code = 0): Promise<string[]> {
  const source = `
    import { Backend, defineDisk, MockHost } from ${JSON.stringify(LIBRARY)}
    import { MockGuest } from ${JSON.stringify(TESTING)}
    import { loadAddon } from ${JSON.stringify(LOAD_ADDON)}
    import { Worker } from 'node:worker_threads'
    import { once } from 'node:events'
    import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
    import { tmpdir } from 'node:os'
    const folder = mkdtempSync(tmpdir() + '/vbdkit-script-')
    process.on('exit', () => rmSync(folder, { recursive: true }))
    const module = folder + '/disk.mjs'
    writeFileSync(module, ${JSON.stringify(MODULE)})
    const log = (...words) => console.log(words.join(' '))
    ${body}`
  const args = ['--input-type=module', '-e', source]
  const { stdout, stderr, signal } = await tool(process.execPath, args, {
    seconds: PATIENCE_S,
    codes: [code],
    env: sanitized,
  })
  expect(signal).toBeNull()
  expect(stderr).toBe('')
  return stdout.split('\n').filter((line) => line !== '')
}

const SERVING = `
  const backend = await Backend.open({ engine: '${ENGINE}', xen: 'mock' })
  const errors = []
  backend.on('error', ({ error }) => errors.push(error.message))
  const settled = async (message) => {
    while (!errors.some((one) => one.includes(message))) await new Promise((resolve) => setTimeout(resolve, 1))
    log(errors.splice(0).join())
  }
  const options = { greeting: 'hello', deadline: '1s' }
  const vbd = await backend.serve('1:xvda', defineDisk({ module, options }))
  const guest = await MockGuest.join({ dir: backend.mock.dir, domid: 1 })
  const disk = await guest.disk('xvda')
  const read = (offset) => disk.read(offset, 512).then((data) => 'read ' + data[0], () => 'failed')
  // On a busy machine the deadline may strike here, too.
  while (!(await disk.write(0, Buffer.alloc(512, 7)).then(() => true, () => false)));
  errors.splice(0)`

const END = 'await guest.close(); await backend.close(); log("done")'

describe.skipIf(missing !== undefined)(`threads${missing ? ` (${missing})` : ''}`, () => {
  it('a disk on its own thread serves while the main loop is busy, and its errors come here', async () => {
    const lines = await script(`${SERVING}
      log(vbd.disk.description)
      const reading = read(0)
      for (const start = Date.now(); Date.now() < start + 500; );
      log(await reading)
      log(await read(4096))
      await settled('hello')
      await vbd.resize('8MiB')
      log(vbd.disk.sizeBytes)
      log(await read(8192))
      await settled('within')
      while (await read(0) === 'failed');
      ${END}`)
    expect(lines).toEqual([
      'script(apart, own thread)',
      'read 7',
      'failed',
      'the disk apart failed a read of 512 bytes at 4096: hello from there',
      `${8 << 20}`,
      'failed',
      'the disk apart did not answer a read of 512 bytes at 8192 within 1s',
      'closed',
      'done',
    ])
  })

  it.each([
    ['exits', 12288, 'the thread of the disk apart has ended with code 3'],
    ['crashes', 16384, 'the thread of the disk apart has ended: late'],
  ])(
    'a thread that %s fails its requests and those to come, and nothing else',
    async (_, offset, message) => {
      const lines = await script(`${SERVING}
      log(await read(${offset}))
      await settled('ended')
      log(await read(0))
      ${END}`)
      expect(lines).toEqual(['failed', message, 'failed', 'done'])
    },
  )

  it('a module that cannot be used says why, and leaves no thread', async () => {
    const lines = await script(`
      const backend = await Backend.open({ engine: '${ENGINE}', xen: 'mock' })
      const complain = (disk) => backend.serve('1:xvda', disk).catch((error) => log(error.code, error.message))
      writeFileSync(folder + '/empty.mjs', '')
      writeFileSync(folder + '/wrong.mjs', 'export default 1 +')
      writeFileSync(folder + '/huge.mjs', 'export default { name: "huge", size: 1000, read() {} }')
      writeFileSync(folder + '/exits.mjs', 'process.exit(4)')
      for (const name of ['none', 'empty', 'wrong', 'huge', 'exits']) await complain(defineDisk({ module: folder + '/' + name + '.mjs' }))
      await complain(defineDisk({ module, options: { greeting: 'refuse' } }))
      await backend.close()`)
    const expected = [
      /ERR_VBD_BACKING none.mjs cannot be loaded: Cannot find module/,
      /ERR_VBD_BACKING empty.mjs exports no disk/,
      /ERR_VBD_BACKING wrong.mjs cannot be loaded: Unexpected/,
      /ERR_VBD_ARGUMENT the disk huge cannot have 1000 bytes/,
      /ERR_VBD_BACKING the thread of the disk exits.mjs has ended with code 4/,
      /ERR_VBD_BACKING the disk apart could not be opened: not today/,
    ]
    expect(lines).toHaveLength(expected.length)
    for (const [i, pattern] of expected.entries()) expect(lines[i]).toMatch(pattern)
  })

  it.each([
    ['process.exit(7) while a thread serves', `read(8192); process.exit(7)`, 7],
    [
      'process.exit() from a function of the disk',
      `
      const other = defineDisk({ name: 'exits', size: '1MiB', read() { process.exit(9) } })
      await backend.serve('1:xvdb', other)
      await (await guest.disk('xvdb')).read(0, 512)`,
      9,
    ],
  ])('%s ends with that code', async (_, end, code) => {
    await script(`${SERVING}\n${end}`, code)
  })

  it(
    '40 threads are terminated one after the other while their scripts serve',
    async () => {
      const lines = await script(TERMINATIONS)
      const { done, threads } = JSON.parse(lines.at(-1)!) as { done: number; threads: number[] }
      expect(done).toBeGreaterThan(40)
      expect(new Set(threads).size, `threads: ${threads}`).toBe(1)
    },
    (PATIENCE_S + 10) * 1000,
  )
})

/** A thread that serves three disks: by functions that are not async, by async ones, and by a thread of its own. */
const SERVING_THREAD = `
  const { parentPort, workerData } = require('node:worker_threads')
  import(workerData.library).then(async ({ Backend, defineDisk }) => {
    const backend = await Backend.open({ engine: '${ENGINE}', xen: 'mock:' + workerData.dir, reactors: 2 })
    const data = Buffer.alloc(4 << 20)
    const read = (buf, offset) => void data.copy(buf, 0, offset, offset + buf.length)
    const write = (buf, offset) => void buf.copy(data, offset)
    const common = { name: 'ram', size: data.length, flush() {} }
    const later = (act) => async (...args) => {
      await new Promise((resolve) => setImmediate(resolve))
      act(...args)
    }
    await backend.serve('1:xvda', defineDisk({ ...common, read, write }))
    await backend.serve('1:xvdb', defineDisk({ ...common, read: later(read), write: later(write) }))
    await backend.serve('1:xvdc', defineDisk({ module: workerData.module, options: {} }))
    parentPort.postMessage('serving')
  })`

const TERMINATIONS = `
  const mock = await MockHost.start({ broker: loadAddon().startMockBroker })
  const guest = await MockGuest.join({ dir: mock.dir, domid: 1 })
  const disks = ['xvda', 'xvdb', 'xvdc'].map((vdev, i) =>
    guest.frontend(vdev, { queues: 1 + i, connectTimeoutMs: 0, closeTimeoutMs: 500, memoryBytes: 4 << 20 }))
  let done = 0
  let stop = false
  const data = Buffer.alloc(65536, 7)
  const busy = async (disk) => {
    await disk.connect()
    while (!stop) {
      // A thread that ends fails what its scripts have.
      await Promise.all([5, 6, 7, 8].map((k) => disk.write(k * 65536, data).catch(() => {})))
      await disk.read(5 * 65536, 65536).catch(() => {})
      done++
    }
  }
  const running = disks.map((disk) => busy(disk).catch((error) => { if (!stop) { console.log(error); process.exit(5) } }))
  const { readdirSync } = await import('node:fs')
  const seen = []
  for (let round = 0; round < 40; round++) {
    const worker = new Worker(${JSON.stringify(SERVING_THREAD)}, {
      eval: true, execArgv: [], workerData: { dir: mock.dir, module, library: ${JSON.stringify(LIBRARY)} } })
    worker.on('error', (error) => { console.log('thread failed:', error); process.exit(3) })
    await once(worker, 'message')
    const start = done
    while (round % 5 !== 0 && done < start + 1 + round % 3) await new Promise((resolve) => setTimeout(resolve, 1))
    await worker.terminate()
    const mapped = () => mock.domains().find(({ domid }) => domid === 1).grantsMapped
    for (let i = 0; mapped() !== 0; i++) {
      if (i === 5000) throw new Error(mapped() + ' grants stay mapped after round ' + round)
      await new Promise((resolve) => setTimeout(resolve, 1))
    }
    seen.push(readdirSync('/proc/self/task').length)
  }
  stop = true
  await guest.close()
  await Promise.all(running)
  await mock.close()
  console.log(JSON.stringify({ done, threads: seen.slice(5) }))`
