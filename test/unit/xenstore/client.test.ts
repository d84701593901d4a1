/** The client where no real daemon would go: injected faults, and a daemon that answers out of a script. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { connectXenstore, type XenstoreClient } from '../../../lib/xenstore/client.js'
import { XenstoreServer } from '../../../lib/xenstore/server.js'
import { storeSocketPath } from '../../../lib/xenstore/socket_file.js'
import type { Dial, TransportEvents } from '../../../lib/xenstore/transport.js'
import { defaultXenstorePath } from '../../../lib/xenstore/transport.js'
import { encodePacket, MESSAGE, type Packet, PacketParser } from '../../../lib/xenstore/wire.js'
import type { XenstoreError } from '../../../lib/xenstore/xenstore.js'
import { PATIENT } from '../../support/patience.js'

const errnoOf = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => 'no error',
    (error: XenstoreError) => error.errno ?? String(error),
  )

describe('client and faulty server', () => {
  let dir: string
  let server: XenstoreServer
  let xs: XenstoreClient

  beforeEach(async () => {
    dir = mkdtempSync(join(tmpdir(), 'vbdkit-client-'))
    server = await XenstoreServer.listen(dir)
    xs = await connectXenstore({ path: storeSocketPath(dir) })
  })
  afterEach(async () => {
    await xs.close()
    await server.close()
    rmSync(dir, { recursive: true })
  })

  it('runs a transaction again for every EAGAIN of its end', async () => {
    server.setFaults([{ operation: 'TRANSACTION_END', errno: 'EAGAIN', skip: 1, count: 2 }])
    const runs: number[] = []
    for (let i = 0; i < 2; i++) {
      let count = 0
      await xs.transaction(async (tx) => tx.write(`/n${i}`, `${++count}`))
      runs.push(count)
    }
    expect(runs).toEqual([1, 3])
    expect(await xs.read('/n1')).toBe('3')
  })

  it.each(['ENOENT', 'EIO'])(
    'takes %s at the end for a transaction that the daemon forgot',
    async (errno) => {
      server.setFaults([{ operation: 'TRANSACTION_END', errno, count: 1 }])
      let runs = 0
      await xs.transaction(async () => void runs++)
      expect(runs).toBe(2)
    },
  )

  it('does not run a transaction again for other refusals', async () => {
    server.setFaults([{ operation: 'TRANSACTION_END', errno: 'ENOSPC' }])
    let runs = 0
    expect(await errnoOf(xs.transaction(async () => void runs++))).toBe('ENOSPC')
    server.setFaults([{ operation: 'TRANSACTION_START', errno: 'ENOSPC' }])
    expect(await errnoOf(xs.transaction(async () => void runs++))).toBe('ENOSPC')
    expect(runs).toBe(1)
  })

  it('says that it does not know whether a commit took effect', async () => {
    server.setFaults([{ operation: 'TRANSACTION_END', drop: 'after', count: 1 }])
    let runs = 0
    const commit = xs.transaction(async (tx) => {
      runs++
      await tx.write('/maybe', 'x')
    })
    expect(await errnoOf(commit)).toBe('ECONNRESET')
    expect(runs).toBe(1)
    expect(await xs.read('/maybe')).toBe('x')
  })

  it('runs a transaction again whose connection was lost inside', async () => {
    server.setFaults([{ operation: 'WRITE', drop: 'before', count: 1 }])
    let runs = 0
    await xs.transaction(async (tx) => {
      runs++
      await tx.write('/inside', `${runs}`)
    })
    expect(runs).toBe(2)
  })

  it('rejects what was under way when the connection went, and serves what comes after', async () => {
    const states: string[] = []
    const unsubscribe = xs.onConnection((state) => states.push(state))
    server.setFaults([{ operation: 'WRITE', drop: 'after', count: 1 }])
    const outcomes = await Promise.all([
      errnoOf(xs.write('/a', 'x')),
      errnoOf(xs.read('/tool')),
      errnoOf(xs.watch('/w', () => {})),
    ])
    expect(outcomes).toEqual(['ECONNRESET', 'ECONNRESET', 'ECONNRESET'])
    expect(states).toEqual(['lost'])
    expect(await xs.read('/a')).toBe('x')
    expect(states).toEqual(['lost', 'connected'])
    unsubscribe()
    server.dropConnections()
    await xs.read('/a').catch(() => {})
    expect(states).toHaveLength(2)
  })

  it('registers its watches again, and tries on when a daemon refuses one', async () => {
    const paths: string[] = []
    await xs.watch('/w', (path) => paths.push(path))
    await vi.waitFor(() => expect(paths).toHaveLength(1), PATIENT)
    server.setFaults([{ operation: 'WATCH', errno: 'E2BIG', count: 1 }])
    server.dropConnections()
    await vi.waitFor(() => expect(paths).toHaveLength(2), PATIENT)
    server.store.write({ domid: 0 }, '/w/x', '')
    await vi.waitFor(() => expect(paths).toEqual(['/w', '/w', '/w/x']), PATIENT)
    expect(server.connections()).toBe(1)
  })

  it('does not bring back a watch that closes while it is registered again', async () => {
    const paths: string[] = []
    const watch = await xs.watch('/w', (path) => paths.push(path))
    await vi.waitFor(() => expect(paths).toHaveLength(1), PATIENT)
    const lost = new Promise<void>((resolve) => xs.onConnection(() => resolve()))
    server.dropConnections()
    await lost
    await watch.close()
    await xs.read('/tool')
    server.store.write({ domid: 0 }, '/w', '')
    await xs.read('/tool')
    await new Promise(setImmediate)
    expect(paths).toHaveLength(1)
  })

  it('reports what a refusal was about', async () => {
    server.setFaults([{ operation: 'READ', errno: 'EACCES' }])
    await expect(xs.read('/some/path')).rejects.toMatchObject({
      errno: 'EACCES',
      path: '/some/path',
      message: 'xenstore refused READ /some/path: EACCES',
      exitCode: 1,
    })
  })
})

describe('where the daemon is', () => {
  it('follows the environment as libxenstore does', () => {
    expect(defaultXenstorePath({})).toBe('/run/xenstored/socket')
    expect(defaultXenstorePath({ XENSTORED_RUNDIR: '/r' })).toBe('/r/socket')
    expect(defaultXenstorePath({ XENSTORED_RUNDIR: '/r', XENSTORED_PATH: '/p' })).toBe('/p')
  })

  it('is an error of the operator when nobody is there', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'vbdkit-client-'))
    const path = storeSocketPath(dir)
    await expect(connectXenstore({ path })).rejects.toMatchObject({
      code: 'ERR_VBD_NO_XEN',
      path,
      exitCode: 2,
      remedy: expect.stringContaining('xenstored'),
    })
    const waiting = connectXenstore({ path, awaitSocket: true })
    const server = await XenstoreServer.listen(dir)
    const xs = await waiting
    expect(await xs.list('/')).toEqual(['tool'])
    await xs.close()
    await server.close()
    rmSync(dir, { recursive: true })
  })
})

/** A daemon of a few lines: it is given every request, and says what it likes. */
class ScriptedDaemon {
  readonly requests: Packet[] = []
  closed = 0
  #events: TransportEvents | undefined
  #onRequest: (packet: Packet) => void

  constructor(onRequest: (packet: Packet, daemon: ScriptedDaemon) => void = () => {}) {
    this.#onRequest = (packet) => onRequest(packet, this)
  }

  readonly dial: Dial = async (events) => {
    this.#events = events
    const parser = new PacketParser()
    return {
      maxPayload: 4096,
      send: (bytes) =>
        parser.push(bytes, (packet) => {
          this.requests.push(packet)
          this.#onRequest(packet)
        }),
      close: async () => {
        this.closed++
      },
    }
  }

  /** What it says comes later, as from a socket. */
  say(packet: Packet): void {
    this.bytes(encodePacket(packet, 1 << 20))
  }

  bytes(chunk: Buffer): void {
    const events = this.#events
    setImmediate(() => events?.data(chunk))
  }

  answer(request: Packet, payload: string): void {
    this.say({ ...request, payload })
  }
}

describe('client and scripted daemon', () => {
  it('has no more requests outstanding than it may', async () => {
    const daemon = new ScriptedDaemon()
    const xs = await connectXenstore({ dial: daemon.dial, maxOutstanding: 3 })
    const reads = Array.from({ length: 10 }, (_, i) => xs.read(`/${i}`))
    let answered = 0
    while (answered < 10) {
      await new Promise(setImmediate)
      expect(daemon.requests.length - answered).toBeLessThanOrEqual(3)
      if (daemon.requests.length > answered) {
        const request = daemon.requests[answered++]!
        daemon.answer(request, request.payload)
      }
    }
    expect(await Promise.all(reads)).toEqual(Array.from({ length: 10 }, (_, i) => `/${i}\0`))
    const ids = daemon.requests.map(({ reqId }) => reqId)
    expect(new Set(ids).size).toBe(10)
    expect(ids).not.toContain(0)
    await xs.close()
  })

  it('matches answers that come in another order, between events and strangers', async () => {
    const daemon = new ScriptedDaemon((_request, self) => {
      if (self.requests.length < 3) return
      for (const request of [...self.requests].reverse()) {
        self.say({ type: MESSAGE.WATCH_EVENT, reqId: request.reqId, txId: 77, payload: '/w\0?\0' })
        self.say({ type: MESSAGE.READ, reqId: 0x7777_7777, txId: 0, payload: 'nobody asked' })
        self.answer(request, request.payload)
      }
    })
    const xs = await connectXenstore({ dial: daemon.dial })
    const values = await Promise.all(['/a', '/b', '/c'].map((path) => xs.read(path)))
    expect(values).toEqual(['/a\0', '/b\0', '/c\0'])
    await xs.close()
  })

  it('knows its watch before the daemon has answered', async () => {
    const daemon = new ScriptedDaemon((request, self) => {
      if (request.type !== MESSAGE.WATCH) return
      self.say({ type: MESSAGE.WATCH_EVENT, reqId: 0xdead, txId: 0xbeef, payload: request.payload })
      self.answer(request, 'OK\0')
    })
    const xs = await connectXenstore({ dial: daemon.dial })
    const paths: string[] = []
    await xs.watch('/early', (path) => paths.push(path))
    await vi.waitFor(() => expect(paths).toEqual(['/early']), PATIENT)
    await xs.close()
  })

  it('begins a directory anew that changes while it is read in parts', async () => {
    const parts = ['1\0a\0b\0', '2\0c\0\0', '2\0x\0', '2\0y\0\0']
    const daemon = new ScriptedDaemon((request, self) => {
      if (request.type === MESSAGE.DIRECTORY)
        self.say({ ...request, type: MESSAGE.ERROR, payload: 'E2BIG\0' })
      else self.answer(request, parts.shift()!)
    })
    const xs = await connectXenstore({ dial: daemon.dial })
    expect(await xs.list('/d')).toEqual(['x', 'y'])
    const offsets = daemon.requests.slice(1).map(({ payload }) => payload.split('\0')[1])
    expect(offsets).toEqual(['0', '4', '0', '2'])
    await xs.close()
  })

  it('gives up a directory that never stops changing', async () => {
    let generation = 0
    const daemon = new ScriptedDaemon((request, self) => {
      if (request.type === MESSAGE.DIRECTORY)
        self.say({ ...request, type: MESSAGE.ERROR, payload: 'E2BIG\0' })
      else self.answer(request, `${generation++}\0a\0`)
    })
    const xs = await connectXenstore({ dial: daemon.dial })
    expect(await errnoOf(xs.list('/d'))).toBe('EAGAIN')
    await xs.close()
  })

  it('accepts a directory longer than the protocol allows', async () => {
    const names = Array.from({ length: 3000 }, (_, i) => `name-${i}`)
    const daemon = new ScriptedDaemon((request, self) =>
      self.answer(request, `${names.join('\0')}\0`),
    )
    const xs = await connectXenstore({ dial: daemon.dial })
    expect(await xs.list('/d')).toEqual(names)
    await xs.close()
  })

  it.each<[string, (request: Packet, daemon: ScriptedDaemon) => void, string]>([
    [
      'answers with another type',
      (request, self) => self.say({ ...request, type: MESSAGE.MKDIR }),
      'EIO',
    ],
    [
      'announces more than 1 MiB',
      (_request, self) => self.bytes(Buffer.from('0200000001000000000000000000ff00', 'hex')),
      'ECONNRESET',
    ],
    ['says nothing for too long', () => {}, 'ECONNRESET'],
  ])('gives up a daemon that %s', async (_name, onRequest, errno) => {
    const daemon = new ScriptedDaemon(onRequest)
    const xs = await connectXenstore({ dial: daemon.dial, answerMs: 50 })
    const states: string[] = []
    xs.onConnection((state) => states.push(state))
    expect(await errnoOf(xs.read('/a'))).toBe(errno)
    await vi.waitFor(() => expect(states[0]).toBe('lost'), PATIENT)
    expect(daemon.closed).toBe(1)
    await xs.close()
  })

  it('never sends a message without payload', async () => {
    const daemon = new ScriptedDaemon((request, self) =>
      self.answer(request, request.type === MESSAGE.TRANSACTION_START ? '5\0' : 'OK\0'),
    )
    const xs = await connectXenstore({ dial: daemon.dial })
    await xs.transaction(async (tx) => tx.write('/a', ''))
    await xs.domainPath(0)
    await xs.remove('/a')
    expect(daemon.requests).toHaveLength(5)
    for (const { payload } of daemon.requests) expect(payload.length).toBeGreaterThan(0)
    expect(daemon.requests.map(({ txId }) => txId)).toEqual([0, 5, 5, 0, 0])
    await xs.close()
  })

  it('refuses options that make no sense', async () => {
    const { dial } = new ScriptedDaemon()
    await expect(connectXenstore({ dial, maxOutstanding: 0 })).rejects.toMatchObject({
      code: 'ERR_VBD_ARGUMENT',
    })
  })
})
