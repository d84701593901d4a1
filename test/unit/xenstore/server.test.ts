/** The server on its sockets: guards, slow and hostile clients, faults, files left by the dead. */
import {
  existsSync,
  linkSync,
  mkdtempSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { XenstoreServer } from '../../../lib/xenstore/server.js'
import { storeSocketPath } from '../../../lib/xenstore/socket_file.js'
import { encodePacket, MESSAGE, messageName } from '../../../lib/xenstore/wire.js'
import { SocketClient } from '../../xenstored/raw_client.js'

const ROOT = { domid: 0 }

let dir: string
let server: XenstoreServer
beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'vbdkit-server-'))
  server = await XenstoreServer.listen(dir)
})
afterEach(async () => {
  await server.close()
  rmSync(dir, { recursive: true })
})

const connect = (domid = 0) => SocketClient.connect(storeSocketPath(dir, domid))
const closed = (client: SocketClient) =>
  new Promise<void>((resolve) => client.socket.once('close', () => resolve()))

describe('server', () => {
  it('guards its sockets, and takes them away when it closes', async () => {
    await server.addDomain(7)
    for (const domid of [0, 7]) {
      expect(statSync(storeSocketPath(dir, domid)).mode & 0o777).toBe(0o600)
    }
    const client = await connect(7)
    const gone = closed(client)
    await server.removeDomain(7)
    await gone
    expect(existsSync(storeSocketPath(dir, 7))).toBe(false)
    expect(server.store.domainExists(7)).toBe(false)
    await server.close()
    await server.close()
    expect(existsSync(storeSocketPath(dir))).toBe(false)
  })

  it('drops who sends more than 4096 bytes', async () => {
    const client = await connect()
    expect((await client.ask('WRITE', `/big\0${'x'.repeat(4091)}`))?.payload).toBe('OK\0')
    expect(await client.ask('WRITE', `/big\0${'y'.repeat(4092)}`)).toBeUndefined()
    expect(server.store.read(ROOT, '/big')).toBe('x'.repeat(4091))
  })

  it('serves bytes that come one at a time, and survives half a message', async () => {
    const client = await connect()
    const bytes = encodePacket({ type: MESSAGE.READ, reqId: 5, txId: 0, payload: '/tool\0' })
    const answer = new Promise<Buffer>((resolve) => client.socket.once('data', resolve))
    for (const byte of bytes) client.socket.write(Buffer.from([byte]))
    expect((await answer).readUInt32LE(4)).toBe(5)
    client.socket.end(bytes.subarray(0, 10))
    await closed(client)
    const next = await connect()
    expect((await next.ask('READ', '/tool\0'))?.payload).toBe('')
    await next.close()
  })

  it('forgets the watches and transactions of who leaves', async () => {
    const client = await connect()
    await client.ask('WATCH', '/w\0t\0')
    await client.ask('TRANSACTION_START', '\0')
    await client.close()
    const next = await connect()
    expect(messageName((await next.ask('READ', '/tool\0', 1))!.type)).toBe('ERROR')
    expect((await next.ask('WATCH', '/w\0t\0'))?.payload).toBe('OK\0')
    await next.close()
  })

  it('keeps one of each event for who does not read, and loses no kind of them', async () => {
    const client = await connect()
    await client.ask('WATCH', '/w\0t\0')
    await client.take()
    client.socket.pause()
    const value = 'x'
    // More than the kernel and Node hold for a reader that sleeps.
    for (let i = 0; i < 100_000; i++) server.store.write(ROOT, `/w/${i % 10}`, value)
    client.socket.resume()
    const events = (await client.take()).filter(({ type }) => type === MESSAGE.WATCH_EVENT)
    expect(events.length).toBeLessThan(50_000)
    expect(new Set(events.map(({ payload }) => payload)).size).toBe(10)
    await client.close()
  })

  it('stops serving a guest that takes no answers, and serves on when it does', async () => {
    await server.addDomain(5)
    server.store.write(ROOT, '/local/domain/5/big', 'x'.repeat(4000))
    server.store.setPermissions(ROOT, '/local/domain/5', [{ access: 'n', domid: 5 }])
    server.store.setPermissions(ROOT, '/local/domain/5/big', [{ access: 'n', domid: 5 }])
    const client = await connect(5)
    client.socket.pause()
    for (let i = 0; i < 2000; i++) client.send('READ', 'big\0')
    const last = client.ask('GET_DOMAIN_PATH', '9\0')
    client.socket.resume()
    expect((await last)?.payload).toBe('/local/domain/9\0')
    expect(await client.take()).toHaveLength(2001)
    await client.close()
  })

  it('fails requests as it is told', async () => {
    await server.addDomain(5)
    server.setFaults([
      { operation: 'READ', domid: 0, skip: 1, count: 2, errno: 'EAGAIN' },
      { operation: 'MKDIR' },
    ])
    const client = await connect()
    const answers: string[] = []
    for (let i = 0; i < 4; i++) answers.push((await client.ask('READ', '/tool\0'))!.payload)
    expect(answers).toEqual(['', 'EAGAIN\0', 'EAGAIN\0', ''])
    expect((await client.ask('MKDIR', '/m\0'))!.payload).toBe('EIO\0')
    server.setFaults([])
    expect((await client.ask('MKDIR', '/m\0'))!.payload).toBe('OK\0')
    await client.close()
  })

  it('drops connections before or after a request took effect', async () => {
    server.setFaults([{ operation: 'WRITE', drop: 'before', count: 1 }])
    const first = await connect()
    first.send('WRITE', '/a\0x')
    expect(await first.ask('WRITE', '/b\0x')).toBeUndefined()
    expect(server.store.list(ROOT, '/').children).toEqual(['tool'])
    server.setFaults([{ operation: 'WRITE', drop: 'after', count: 1 }])
    const second = await connect()
    expect(await second.ask('WRITE', '/a\0x')).toBeUndefined()
    expect(server.store.list(ROOT, '/').children).toEqual(['tool', 'a'])
  })
})

describe('socket files', () => {
  it('are not shared by two servers', async () => {
    await expect(XenstoreServer.listen(dir)).rejects.toMatchObject({
      code: 'ERR_VBD_BUSY',
      path: storeSocketPath(dir),
      exitCode: 2,
    })
    const client = await connect()
    expect((await client.ask('READ', '/tool\0'))?.payload).toBe('')
    await client.close()
  })

  it('are replaced when their process has died', async () => {
    const path = storeSocketPath(dir, 9)
    // As after kill -9: bound once, listened to by nobody.
    const dead = createServer()
    await new Promise<void>((resolve) => dead.listen({ path }, () => resolve()))
    linkSync(path, `${path}.kept`)
    await new Promise((resolve) => dead.close(resolve))
    renameSync(`${path}.kept`, path)
    expect(existsSync(path)).toBe(true)
    await server.addDomain(9)
    const client = await connect(9)
    expect((await client.ask('GET_DOMAIN_PATH', '9\0'))?.payload).toBe('/local/domain/9\0')
    await client.close()
  })

  it('do not replace what is no socket', async () => {
    writeFileSync(storeSocketPath(dir, 9), 'precious')
    await expect(server.addDomain(9)).rejects.toMatchObject({ code: 'ERR_VBD_ARGUMENT' })
  })

  it('have short paths', async () => {
    const long = join(dir, 'd'.repeat(100))
    await expect(XenstoreServer.listen(long)).rejects.toMatchObject({
      code: 'ERR_VBD_ARGUMENT',
      remedy: expect.stringContaining('shorter'),
    })
    await expect(XenstoreServer.listen(join(dir, 'none'))).rejects.toMatchObject({
      code: 'ERR_VBD_ARGUMENT',
      message: expect.stringContaining('ENOENT'),
    })
  })
})
