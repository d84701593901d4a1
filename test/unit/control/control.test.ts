/** The control protocol, server and client against each other, against a hostile peer, and against a dead one. */
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { ControlClient } from '../../../lib/control/client.js'
import { controlFolder, controlSocket, controlSockets } from '../../../lib/control/path.js'
import {
  LineSplitter,
  MAX_CLIENTS,
  MAX_PENDING_PER_CLIENT,
  MAX_REQUEST_BYTES,
  parseLine,
  requestSchema,
  type Tuning,
} from '../../../lib/control/protocol.js'
import { ControlServer, type ControlTarget } from '../../../lib/control/server.js'
import { VbdError } from '../../../lib/errors.js'

class FakeTarget implements ControlTarget {
  readonly tuned: [string | undefined, Tuning][] = []
  readonly resized: [string, number][] = []
  stopped = 0
  ticks = 0
  ended = 0
  list() {
    return [{ id: '1:xvda' }]
  }
  info(vbd: string) {
    if (vbd !== '1:xvda')
      throw new VbdError('ERR_VBD_NOT_FOUND', `no disk ${vbd}`, { vbd, remedy: 'vbdkit list' })
    return { id: vbd, state: 'Connected' }
  }
  explain(vbd: string) {
    return { ...this.info(vbd), text: 'explained' }
  }
  stats(vbd: string) {
    this.info(vbd)
    return { tick: ++this.ticks }
  }
  async *stream(vbd: string, everyMs: number, signal: AbortSignal) {
    while (!signal.aborted) {
      yield this.stats(vbd)
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, everyMs)
        signal.addEventListener('abort', () => resolve(clearTimeout(timer)))
      })
    }
    this.ended++
  }
  async resize(vbd: string, sizeBytes: number) {
    this.resized.push([vbd, sizeBytes])
    return { sizeBytes }
  }
  readonly paused: string[] = []
  async pause(vbd: string) {
    this.paused.push(vbd)
    return {}
  }
  async resume(vbd: string) {
    this.paused.splice(this.paused.indexOf(vbd), 1)
    return {}
  }
  async swap(vbd: string, params: string, shrink: boolean) {
    return { vbd, params, shrink }
  }
  async snapshot(vbd: string) {
    return { layer: `${vbd}.1` }
  }
  async commit(vbd: string) {
    return { vbd }
  }
  async reset(vbd: string, force: boolean) {
    return { vbd, force }
  }
  async *trace(vbd: string) {
    this.info(vbd)
    yield { requests: [1, 2], dropped: 0 }
    yield { requests: [3], dropped: 4 }
  }
  tune(vbd: string | undefined, tuning: Tuning) {
    this.tuned.push([vbd, tuning])
    return tuning
  }
  stages(vbd: string, tune?: { stage: string; settings: Record<string, number> }) {
    return { stages: [{ vbd, ...tune }] }
  }
  stop() {
    this.stopped++
  }
}

let folder: string
let path: string
let target: FakeTarget
let server: ControlServer
const open: { close(): unknown }[] = []

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'vbdkit-control-'))
  path = join(folder, 'sub', 'x.sock')
  target = new FakeTarget()
  server = await ControlServer.listen(path, target)
})

afterEach(async () => {
  for (const client of open.splice(0)) client.close()
  await server.close()
  rmSync(folder, { recursive: true })
})

async function connect(): Promise<ControlClient> {
  const client = await ControlClient.connect(path)
  open.push(client)
  return client
}

/** A peer that writes what it likes; collects the lines that come back until the server hangs up. */
function raw(text: string | Buffer): Promise<Record<string, unknown>[]> {
  return new Promise((resolve, reject) => {
    const socket = net.connect(path)
    let got = ''
    socket.on('data', (chunk) => {
      got += chunk
    })
    socket.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EPIPE' && error.code !== 'ECONNRESET') reject(error)
    })
    socket.on('close', () =>
      resolve(
        got
          .split('\n')
          .filter(Boolean)
          .map((line) => JSON.parse(line)),
      ),
    )
    socket.end(text)
  })
}

describe('a control server', () => {
  it('answers each verb', async () => {
    const client = await connect()
    expect(await client.call({ verb: 'list' })).toEqual([{ id: '1:xvda' }])
    expect(await client.call({ verb: 'info', vbd: '1:xvda' })).toEqual({
      id: '1:xvda',
      state: 'Connected',
    })
    expect(await client.call({ verb: 'stats', vbd: '1:xvda' })).toEqual({ tick: 1 })
    expect(await client.call({ verb: 'resize', vbd: '1:xvda', sizeBytes: 4096 })).toEqual({
      sizeBytes: 4096,
    })
    expect(await client.call({ verb: 'tune', tuning: { pollUs: 0 } })).toEqual({ pollUs: 0 })
    expect(target.resized).toEqual([['1:xvda', 4096]])
    expect(target.tuned).toEqual([[undefined, { pollUs: 0 }]])
    await client.call({ verb: 'stop' })
    expect(target.stopped).toBe(1)
  })

  it('passes errors on with code, message and remedy', async () => {
    const client = await connect()
    const refused = client.call({ verb: 'info', vbd: '2:xvda' })
    await expect(refused).rejects.toMatchObject({
      code: 'ERR_VBD_NOT_FOUND',
      message: 'no disk 2:xvda',
      remedy: 'vbdkit list',
      exitCode: 2,
    })
  })

  it('streams statistics to several clients at once', async () => {
    const [a, b] = [await connect(), await connect()]
    const take = async (client: ControlClient, n: number) => {
      const seen: unknown[] = []
      for await (const event of client.stats('1:xvda', 50)) if (seen.push(event.tick) === n) break
      return seen
    }
    const [first, second] = await Promise.all([take(a, 3), take(b, 3)])
    expect(new Set([...first, ...second]).size).toBe(6)
    // The same connection goes on with other requests.
    expect(await a.call({ verb: 'list' })).toHaveLength(1)
  })

  it('ends the streams of a client that has gone', async () => {
    const client = await connect()
    await client.stats('1:xvda', 3_600_000).next()
    client.close()
    await expect.poll(() => target.ended, { timeout: 10_000 }).toBe(1)
  })

  it('ends a stream with the error of its disk', async () => {
    const client = await connect()
    const next = client.stats('9:xvda', 50).next()
    await expect(next).rejects.toMatchObject({ code: 'ERR_VBD_NOT_FOUND' })
  })

  it('is for its own user alone from its first moment', async () => {
    const path = join(folder, 'first.sock')
    const listening = ControlServer.listen(path, target)
    while (!existsSync(path)) await new Promise((resolve) => setImmediate(resolve))
    expect(statSync(path).mode & 0o777).toBe(0o600)
    await (await listening).close()
  })

  it('is for its own user alone, and removes its socket', async () => {
    expect(statSync(path).mode & 0o777).toBe(0o600)
    expect(statSync(join(folder, 'sub')).mode & 0o777).toBe(0o700)
    await server.close()
    expect(existsSync(path)).toBe(false)
  })

  it('refuses a socket in use, and a file in its place', async () => {
    await expect(ControlServer.listen(path, target)).rejects.toMatchObject({
      code: 'ERR_VBD_BUSY',
      path,
    })
    const file = join(folder, 'file')
    writeFileSync(file, 'precious')
    await expect(ControlServer.listen(file, target)).rejects.toMatchObject({
      code: 'ERR_VBD_ARGUMENT',
    })
    expect(existsSync(file)).toBe(true)
  })

  it('takes the place of a socket whose owner died', async () => {
    const stale = join(folder, 'stale.sock')
    const child = await import('node:child_process')
    // Killed, so that nothing removes the socket file.
    child.spawnSync(process.execPath, [
      '-e',
      `require('net').createServer().listen(${JSON.stringify(stale)}, () => process.kill(process.pid, 'SIGKILL'))`,
    ])
    expect(existsSync(stale)).toBe(true)
    const second = await ControlServer.listen(stale, target)
    await second.close()
  })

  it('refuses a path that is too long for a socket', async () => {
    const long = join(folder, 'x'.repeat(120))
    await expect(ControlServer.listen(long, target)).rejects.toMatchObject({
      code: 'ERR_VBD_ARGUMENT',
    })
  })
})

describe('a peer that breaks the protocol', () => {
  it.each([
    'nonsense\n',
    '{"id":1}\n',
    '{"id":1,"verb":"format"}\n',
    '{"id":-1,"verb":"list"}\n',
    '{"id":1,"verb":"list","more":1}\n',
    '{"id":1,"verb":"stats","vbd":"1:xvda","everyMs":1}\n',
    '{"id":1,"verb":"resize","vbd":"1:xvda","sizeBytes":1.5}\n',
    '{"id":1,"verb":"tune","tuning":{"pollUs":-1}}\n',
    '{"id":1,"verb":"tune","tuning":{"shoeSize":43}}\n',
  ])('is told so: %s', async (line) => {
    const [answer] = await raw(line)
    expect(answer).toMatchObject({ id: 0, ok: false, error: { code: 'ERR_VBD_ARGUMENT' } })
    expect(target.resized).toEqual([])
    expect(target.tuned).toEqual([])
  })

  it('may not write an endless line', async () => {
    const answers = await raw(Buffer.alloc(MAX_REQUEST_BYTES + 1, 'x'))
    expect(answers.at(-1)).toMatchObject({
      error: { message: expect.stringContaining('longer than') },
    })
  })

  it('may not ask without end', async () => {
    const line = '{"id":1,"verb":"stats","vbd":"1:xvda","everyMs":3600000}\n'
    const answers = await raw(line.repeat(MAX_PENDING_PER_CLIENT + 1))
    expect(answers.at(-1)).toMatchObject({ error: { code: 'ERR_VBD_BUSY' } })
  })

  it('may not take every place: one client too many is refused, and a place that was left is free', async () => {
    const clients = await Promise.all(Array.from({ length: MAX_CLIENTS }, connect))
    await Promise.all(clients.map((client) => client.call({ verb: 'list' })))
    const late = await connect()
    await expect(late.call({ verb: 'list' })).rejects.toMatchObject({ code: 'ERR_VBD_BUSY' })
    clients[0]?.close()
    await expect
      .poll(async () => (await connect()).call({ verb: 'list' }).catch((error) => error.code), {
        timeout: 10_000,
      })
      .toEqual([{ id: '1:xvda' }])
  })

  it('cannot make the parser throw anything but a VbdError', () => {
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.json()), (line) => {
        try {
          parseLine(requestSchema, line)
        } catch (thrown) {
          expect(thrown).toBeInstanceOf(VbdError)
          expect((thrown as VbdError).message).not.toContain('\n')
        }
      }),
    )
  })
})

describe('a control client', () => {
  it('says that nobody is there', async () => {
    await expect(ControlClient.connect(join(folder, 'none'))).rejects.toMatchObject({
      code: 'ERR_VBD_NOT_FOUND',
      exitCode: 2,
    })
  })

  it('rejects what waits when the server goes away', async () => {
    const client = await connect()
    const stream = client.stats('1:xvda', 3_600_000)
    await stream.next()
    const next = stream.next()
    await server.close()
    await expect(next).rejects.toMatchObject({ code: 'ERR_VBD_NOT_FOUND' })
    await expect(client.call({ verb: 'list' })).rejects.toMatchObject({ code: 'ERR_VBD_NOT_FOUND' })
  })

  it('rejects a server that speaks something else', async () => {
    const other = join(folder, 'other.sock')
    const impostor = net.createServer((socket) =>
      socket.resume().end('HTTP/1.1 400 Bad Request\r\n'),
    )
    await new Promise<void>((resolve) => impostor.listen(other, resolve))
    const client = await ControlClient.connect(other)
    await expect(client.call({ verb: 'list' })).rejects.toMatchObject({ code: 'ERR_VBD_PROTOCOL' })
    await new Promise((resolve) => impostor.close(resolve))
  })

  it('does not wait for ever', async () => {
    const other = join(folder, 'silent.sock')
    const silent = net.createServer((socket) => socket.resume())
    await new Promise<void>((resolve) => silent.listen(other, resolve))
    const client = await ControlClient.connect(other)
    await expect(client.call({ verb: 'list' }, 20)).rejects.toMatchObject({
      code: 'ERR_VBD_TIMEOUT',
    })
    client.close()
    await new Promise((resolve) => silent.close(resolve))
  })
})

describe('a client that reads nothing', () => {
  let socket: net.Socket

  /** A peer that says `text` and never looks at what comes back. */
  async function deaf(text: string): Promise<void> {
    socket = net.connect(path)
    socket.on('error', () => {})
    socket.pause()
    await new Promise<void>((resolve) => socket.once('connect', resolve))
    open.push({ close: () => socket.destroy() })
    socket.write(text)
  }

  it('does not hold up the end of the server', async () => {
    target.info = (vbd) => ({ id: vbd, state: 'x'.repeat(4 * 1024 * 1024) })
    await deaf('{"id":1,"verb":"info","vbd":"1:xvda"}\n')
    const client = await connect()
    await client.call({ verb: 'list' })
    await server.close()
  })

  it('is not read on: what waits for it is bounded', async () => {
    const asked = 6400
    let served = 0
    target.info = (vbd) => {
      served++
      return { id: vbd, state: 'x'.repeat(1024) }
    }
    await deaf('')
    const client = await connect()
    for (let sent = 0; sent < asked; sent += MAX_PENDING_PER_CLIENT / 2) {
      socket.write('{"id":1,"verb":"info","vbd":"1:xvda"}\n'.repeat(MAX_PENDING_PER_CLIENT / 2))
      // The server reads everybody in turn.
      await client.call({ verb: 'list' })
    }
    expect(served).toBeGreaterThan(500)
    expect(served).toBeLessThan(asked / 2)
  })
})

describe('LineSplitter', () => {
  it('gives the same lines however the bytes are cut', () => {
    fc.assert(
      fc.property(
        fc.array(fc.string().map((s) => s.replaceAll('\n', ''))),
        fc.array(fc.nat(20)),
        (lines, cuts) => {
          const bytes = Buffer.from(lines.map((line) => `${line}\n`).join(''))
          const splitter = new LineSplitter(1000)
          const got: string[] = []
          let at = 0
          for (const cut of cuts) {
            got.push(...splitter.push(bytes.subarray(at, at + cut)))
            at = Math.min(bytes.length, at + cut)
          }
          got.push(...splitter.push(bytes.subarray(at)))
          expect(got).toEqual(lines)
        },
      ),
    )
  })
})

describe('control sockets', () => {
  it('are found in the folder of their mock', async () => {
    expect(controlSockets(folder)).toEqual([])
    const mine = await ControlServer.listen(controlSocket(folder, 1, 51712), target)
    expect(controlSockets(folder)).toEqual([join(folder, 'control-1-51712.sock')])
    await mine.close()
    expect(controlSockets(folder)).toEqual([])
  })

  it('are in the runtime folder of the user otherwise', () => {
    const before = process.env.XDG_RUNTIME_DIR
    process.env.XDG_RUNTIME_DIR = '/run/user/1000'
    expect(controlFolder(undefined)).toBe('/run/user/1000/vbdkit')
    if (before === undefined) delete process.env.XDG_RUNTIME_DIR
    else process.env.XDG_RUNTIME_DIR = before
  })
})
