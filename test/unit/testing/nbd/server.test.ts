import { randomBytes } from 'node:crypto'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { VbdError } from '../../../../lib/errors.js'
import { NbdServer, type NbdServerOptions } from '../../../../lib/testing/nbd/server.js'
import { BufferDisk } from '../../../support/buffer_disk.js'
import { NbdClient, u32 } from '../../../support/nbd_client.js'

const MIB = 1024 * 1024
let dir: string
let path: string
let disk: BufferDisk
let server: NbdServer

async function start(options: Partial<NbdServerOptions> = {}): Promise<NbdServer> {
  server = await NbdServer.listen({ path }, { disk, ...options })
  return server
}

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'vbdkit-nbd-'))
  path = join(dir, 'nbd.sock')
  disk = new BufferDisk(4 * MIB)
})

afterEach(async () => {
  disk.release()
  await server?.close()
  expect(existsSync(path)).toBe(false)
  expect(server?.connections ?? 0).toBe(0)
  rmSync(dir, { recursive: true })
})

/** A client in transmission. */
async function client(structured = false): Promise<NbdClient> {
  const one = await NbdClient.connect(path)
  await one.greet()
  if (structured) {
    one.option(8)
    expect((await one.optionReply()).type).toBe(1)
  }
  await one.go()
  return one
}

describe('handshake', () => {
  it('greets as fixed newstyle', async () => {
    await start()
    const one = await NbdClient.connect(path)
    expect((await one.greet()).toString('hex')).toBe('4e42444d4147494349484156454f50540003')
  })

  it('OPT_GO tells size, flags and block sizes', async () => {
    await start()
    const one = await NbdClient.connect(path)
    await one.greet()
    const { size, flags, blocks } = await one.go()
    expect(size).toBe(BigInt(4 * MIB))
    // has flags, flush, FUA, trim, write zeroes, multi-conn
    expect(flags).toBe(1 | 4 | 8 | 32 | 64 | 256)
    expect(blocks).toEqual([512, 4096, 32 * MIB])
  })

  it('a read-only disk says so, and offers nothing that writes', async () => {
    disk.readOnly = true
    await start()
    const one = await NbdClient.connect(path)
    await one.greet()
    expect((await one.go()).flags).toBe(1 | 2 | 4 | 256)
    one.send('')
    one.request(1, 1n, 0, 512)
    one.send(Buffer.alloc(512))
    expect(await one.simpleReply()).toEqual({ error: 1, cookie: 1n })
    one.request(4, 2n, 0, 512)
    expect((await one.simpleReply()).error).toBe(1)
  })

  it.each([
    [3, 10],
    [1, 134],
  ])('OPT_EXPORT_NAME, client flags %i: %i bytes', async (flags, length) => {
    await start()
    const one = await NbdClient.connect(path)
    await one.greet(flags)
    one.option(1)
    const reply = await one.take(length)
    expect(reply.readBigUInt64BE(0)).toBe(BigInt(4 * MIB))
    one.request(3, 9n, 0, 0)
    expect(await one.simpleReply()).toEqual({ error: 0, cookie: 9n })
  })

  it('closes on an unknown name where it cannot answer, and answers where it can', async () => {
    await start({ exportName: 'disk' })
    const deaf = await NbdClient.connect(path)
    await deaf.greet()
    deaf.option(1, Buffer.from('other'))
    await deaf.closed()
    const one = await NbdClient.connect(path)
    await one.greet()
    await expect(one.go('other')).rejects.toThrow(String(2 ** 31 + 6))
    expect((await one.go('disk')).size).toBe(BigInt(4 * MIB))
  })

  it('lists its export, and answers every other option', async () => {
    await start({ exportName: 'disk' })
    const one = await NbdClient.connect(path)
    await one.greet()
    one.option(3)
    const entry = await one.optionReply()
    expect([entry.type, entry.data.toString('hex')]).toEqual([2, '000000046469736b'])
    expect((await one.optionReply()).type).toBe(1)
    const answers: [number, Buffer, number][] = [
      [3, Buffer.from('x'), 2 ** 31 + 3],
      [5, Buffer.alloc(0), 2 ** 31 + 1],
      [7, Buffer.alloc(3), 2 ** 31 + 3],
      [7, Buffer.from('ffffffff0000', 'hex'), 2 ** 31 + 3],
      [10, Buffer.alloc(8), 2 ** 31 + 3],
      [77, Buffer.from('junk'), 2 ** 31 + 1],
      [77, Buffer.alloc(100_000), 2 ** 31 + 9],
      [8, Buffer.alloc(0), 1],
      [10, Buffer.alloc(8), 1],
    ]
    for (const [option, data, type] of answers) {
      one.option(option, data)
      expect(await one.optionReply()).toMatchObject({ option, type })
    }
    one.option(2)
    expect((await one.optionReply()).type).toBe(1)
    await one.closed()
  })

  it.each([
    ['no magic', Buffer.alloc(16, 0x55)],
    ['an endless option', Buffer.from('49484156454f5054000000070fffffff', 'hex')],
  ])('hangs up on %s', async (_, bytes) => {
    await start()
    const one = await NbdClient.connect(path)
    await one.greet()
    one.send(bytes)
    await one.closed()
  })

  it('hangs up on unknown client flags, and on who never speaks', async () => {
    await start({ handshakeMs: 50 })
    const odd = await NbdClient.connect(path)
    await odd.greet(0x80)
    await odd.closed()
    const silent = await NbdClient.connect(path)
    await silent.closed()
  })

  it('takes bytes one at a time', async () => {
    await start()
    const one = await NbdClient.connect(path)
    await one.take(18)
    const bytes = Buffer.from(
      '00000003 49484156454f5054 00000001 00000000'.replaceAll(' ', ''),
      'hex',
    )
    for (const byte of bytes) {
      one.send(Buffer.of(byte))
      await new Promise(setImmediate)
    }
    expect((await one.take(10)).readBigUInt64BE(0)).toBe(BigInt(4 * MIB))
  })
})

describe('transmission', () => {
  it.each([false, true])('moves data, structured %s', async (structured) => {
    await start()
    const one = await client(structured)
    const data = randomBytes(3 * MIB)
    one.request(1, 5n, 512, data.length)
    one.send(data)
    expect(await one.simpleReply()).toEqual({ error: 0, cookie: 5n })
    one.request(0, 0xffff_ffff_ffff_ffffn, 512, data.length)
    if (structured) {
      const { flags, type, cookie, data: read } = await one.chunk()
      expect([flags, type, cookie]).toEqual([1, 1, 0xffff_ffff_ffff_ffffn])
      expect(read.readBigUInt64BE(0)).toBe(512n)
      expect(read.subarray(8).equals(data)).toBe(true)
    } else {
      expect(await one.simpleReply()).toEqual({ error: 0, cookie: 0xffff_ffff_ffff_ffffn })
      expect((await one.take(data.length)).equals(data)).toBe(true)
    }
  })

  it('answers out of order, and keeps each answer with its request', async () => {
    await start()
    const one = await client()
    for (let i = 0; i < 200; i++) disk.data.writeUInt32LE(i, i * 512)
    for (let i = 0; i < 200; i++) one.request(0, BigInt(i), i * 512, 512)
    const order: number[] = []
    for (let i = 0; i < 200; i++) {
      const { cookie, error } = await one.simpleReply()
      expect(error).toBe(0)
      expect((await one.take(512)).readUInt32LE(0)).toBe(Number(cookie))
      order.push(Number(cookie))
    }
    expect(disk.mostActive).toBeGreaterThan(10)
    expect(order).not.toEqual([...order].sort((a, b) => a - b))
  })

  it('FUA, flush, trim, write zeroes', async () => {
    await start()
    const one = await client()
    disk.data.fill(0xff)
    one.request(1, 1n, 0, 512, 1)
    one.send(Buffer.alloc(512, 1))
    await one.simpleReply()
    expect(disk.fuas).toBe(1)
    one.request(3, 2n, 0, 0)
    await one.simpleReply()
    expect(disk.flushes).toBe(1)
    one.request(4, 3n, 512, 1024, 1)
    await one.simpleReply()
    expect(disk.trims).toEqual([[512, 1024]])
    expect(disk.flushes).toBe(2)
    one.request(6, 4n, 2048, 3 * MIB, 1 | 2)
    expect(await one.simpleReply()).toEqual({ error: 0, cookie: 4n })
    expect(disk.data.subarray(2048, 2048 + 3 * MIB).every((byte) => byte === 0)).toBe(true)
    expect(disk.data[2048 + 3 * MIB]).toBe(0xff)
    expect(disk.flushes).toBe(3)
  })

  const refused: [string, [number, number, number, number], number][] = [
    ['a read beyond the end', [0, 4 * MIB, 512, 0], 22],
    ['a write beyond the end', [1, 4 * MIB - 512, 1024, 0], 28],
    ['zeroes beyond the end', [6, 0, 8 * MIB, 0], 28],
    ['a trim beyond the end', [4, 4 * MIB - 512, 1024, 0], 22],
    ['an unaligned offset', [0, 100, 512, 0], 22],
    ['an unaligned length', [1, 0, 100, 0], 22],
    ['a read that is too long', [0, 0, 64 * MIB, 0], 22],
    ['an unknown command', [5, 0, 512, 0], 22],
    ['an unknown flag', [0, 0, 512, 0x80], 22],
    ['FUA on a read', [0, 0, 512, 1], 22],
    ['an offset beyond 2^53', [0, 2 ** 60, 512, 0], 22],
  ]
  it.each(refused)('%s is refused, and the connection lives', async (_, request, error) => {
    await start()
    const one = await client()
    const [command, offset, length, flags] = request
    one.request(command, 1n, offset, length, flags)
    if (command === 1) one.send(Buffer.alloc(length))
    expect(await one.simpleReply()).toEqual({ error, cookie: 1n })
    one.request(3, 2n, 0, 0)
    expect(await one.simpleReply()).toEqual({ error: 0, cookie: 2n })
  })

  it.each([
    ['ERR_VBD_IO', 5],
    ['ERR_VBD_UNSUPPORTED', 95],
    ['ERR_VBD_BUSY', 12],
    ['ERR_VBD_STATE', 108],
    ['ERR_VBD_ARGUMENT', 22],
  ] as const)('%s of the disk is error %i', async (code, error) => {
    const told: unknown[] = []
    await start({ onError: (failure) => told.push(failure) })
    disk.failure = new VbdError(code, 'broken')
    const plain = await client()
    plain.request(0, 1n, 0, 512)
    expect((await plain.simpleReply()).error).toBe(error)
    const one = await client(true)
    one.request(0, 1n, 0, 512)
    const { type, flags, data } = await one.chunk()
    expect([type, flags, data.readUInt32BE(0)]).toEqual([2 ** 15 + 1, 1, error])
    expect(data.toString('utf8', 6)).toBe('broken')
    expect(told).toHaveLength(2)
  })

  it('any other failure is EIO', async () => {
    await start()
    disk.failure = new TypeError('oops')
    const one = await client()
    one.request(3, 1n, 0, 0)
    expect((await one.simpleReply()).error).toBe(5)
  })

  it('reads of nothing are answered', async () => {
    await start()
    const one = await client(true)
    one.request(0, 1n, 0, 0)
    expect(await one.chunk()).toMatchObject({ flags: 1, type: 0 })
    one.request(1, 2n, 0, 0)
    expect((await one.simpleReply()).error).toBe(0)
  })

  it('hangs up on what is no request', async () => {
    await start()
    const one = await client()
    one.send(Buffer.alloc(28, 7))
    await one.closed()
  })

  it('a disconnecting client gets its last answers first', async () => {
    await start()
    const one = await client()
    disk.hold()
    one.request(1, 1n, 0, 512)
    one.send(Buffer.alloc(512, 3))
    one.request(2, 0n, 0, 0)
    disk.release()
    expect((await one.simpleReply()).cookie).toBe(1n)
    await one.closed()
    expect(disk.data[0]).toBe(3)
  })

  it('stops reading from a client that asks for more than it takes', async () => {
    await start()
    const one = await client()
    disk.hold()
    const total = 4000
    for (let i = 0; i < total; i++) one.request(0, BigInt(i), 0, 512)
    await new Promise<void>((resolve) => {
      const look = () => (disk.active >= 128 ? resolve() : setImmediate(look))
      look()
    })
    for (let i = 0; i < 50; i++) await new Promise(setImmediate)
    expect(disk.mostActive).toBe(128)
    disk.release()
    for (let i = 0; i < total; i++) {
      await one.simpleReply()
      await one.take(512)
    }
  })

  it('survives clients that vanish in the middle of anything', async () => {
    await start()
    for (let i = 0; i < 20; i++) {
      const one = await client(i % 2 === 0)
      one.request(1, 1n, 0, MIB)
      one.send(Buffer.alloc(i * 40_000))
      for (let k = 0; k < i; k++) one.request(0, 2n, 0, MIB)
      one.socket.destroy()
    }
    const last = await client()
    last.request(3, 1n, 0, 0)
    expect((await last.simpleReply()).error).toBe(0)
  })

  it('new connections see a new size', async () => {
    await start()
    const before = await client()
    disk.data = Buffer.concat([disk.data, Buffer.alloc(MIB)])
    const after = await NbdClient.connect(path)
    await after.greet()
    expect((await after.go()).size).toBe(BigInt(5 * MIB))
    before.request(0, 1n, 0, 512)
    expect((await before.simpleReply()).error).toBe(0)
  })
})

describe('the socket', () => {
  it('in use is ERR_VBD_BUSY, stale is replaced, and no socket is left alone', async () => {
    await start()
    const busy = NbdServer.listen({ path }, { disk })
    await expect(busy).rejects.toMatchObject({ code: 'ERR_VBD_BUSY' })
    const file = join(dir, 'file')
    writeFileSync(file, '')
    const other = NbdServer.listen({ path: file }, { disk })
    await expect(other).rejects.toMatchObject({ code: 'ERR_VBD_ARGUMENT' })
    expect(existsSync(file)).toBe(true)
    const missing = NbdServer.listen({ path: join(dir, 'no', 'such') }, { disk })
    await expect(missing).rejects.toMatchObject({ code: 'ERR_VBD_ARGUMENT' })
  })

  it('serves TCP on this machine', async () => {
    const tcp = await NbdServer.listen({ port: 0 }, { disk })
    expect(tcp.uri).toBe(`nbd://127.0.0.1:${tcp.port}`)
    const taken = NbdServer.listen({ port: tcp.port }, { disk })
    await expect(taken).rejects.toMatchObject({ code: 'ERR_VBD_BUSY' })
    await tcp.close()
    const free = createServer()
    await new Promise<void>((resolve) => free.listen(tcp.port, '127.0.0.1', resolve))
    free.close()
    await start()
  })

  it('takes no more clients than it may', async () => {
    await start({ maxConnections: 2 })
    const [one, two] = [await client(), await client()]
    const three = await NbdClient.connect(path)
    await three.closed()
    one.socket.destroy()
    two.request(3, 1n, 0, 0)
    await two.simpleReply()
  })

  it('closes with requests under way, after answering them', async () => {
    await start()
    const one = await client()
    disk.hold()
    one.request(3, 4n, 0, 0)
    one.send(u32(0x25609513))
    await new Promise<void>((resolve) => {
      const look = () => (disk.active > 0 ? resolve() : setImmediate(look))
      look()
    })
    const closing = server.close()
    disk.release()
    expect((await one.simpleReply()).cookie).toBe(4n)
    await one.closed()
    await closing
  })
})
