/** The xenbus device as the kernel serves it, made of a store behind a socket: its quirks, and what the client makes of them. */
import { mkdtempSync, rmSync } from 'node:fs'
import { createConnection, type Socket } from 'node:net'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { connectXenstore, type XenstoreClient } from '../../../lib/xenstore/client.js'
import {
  DEVICE_PAYLOAD_MAX,
  dialDevice,
  dialXenstore,
  type OpenXenbusDevice,
  type XenbusDevice,
  type XenbusDeviceEvents,
} from '../../../lib/xenstore/device_transport.js'
import { XenstoreServer } from '../../../lib/xenstore/server.js'
import { storeSocketPath } from '../../../lib/xenstore/socket_file.js'
import type { Dial, Transport } from '../../../lib/xenstore/transport.js'
import {
  encodePacket,
  errnoOf,
  HEADER_BYTES,
  MESSAGE,
  type Packet,
  PacketParser,
} from '../../../lib/xenstore/wire.js'
import { PATIENT } from '../../support/patience.js'

const PROMPT = { patienceMs: 0 }
const { EACCES, EINVAL, EIO, ENOENT } = constants.errno

const failing = (errno: number): Error => Object.assign(new Error('open'), { errno })

/** drivers/xen/xenbus/xenbus_dev_frontend.c, as far as a client can tell. */
class Kernel implements XenbusDevice {
  readonly #socket: Socket
  readonly #events: XenbusDeviceEvents
  readonly #parser = new PacketParser()
  readonly #watching = new Map<number, Buffer>()
  /** Answers to WATCH, which follow the watch's first event. */
  #late: Packet[] = []
  writes = 0
  closed = false

  constructor(socketPath: string, events: XenbusDeviceEvents) {
    this.#events = events
    this.#socket = createConnection({ path: socketPath })
    this.#socket.on('data', (chunk) =>
      this.#parser.push(chunk as Buffer, (packet) => this.#fromDaemon(packet)),
    )
    this.#socket.on('close', () => {
      if (!this.closed) events.lost(EIO)
    })
  }

  write(bytes: Uint8Array): void {
    this.writes++
    const written = Buffer.from(bytes)
    if (written.length > 4096) {
      this.#events.refused(written, EINVAL)
      return
    }
    // The first packet of a write is executed, the rest is lost.
    const packet = written.subarray(0, HEADER_BYTES + written.readUInt32LE(12))
    const type = packet.readUInt32LE(0)
    if (type === MESSAGE.WATCH || type === MESSAGE.UNWATCH) {
      this.#watching.set(packet.readUInt32LE(4), packet)
    }
    this.#socket.write(packet)
  }

  close(): void {
    this.closed = true
    this.#socket.destroy()
  }

  #fromDaemon(packet: Packet): void {
    const request = this.#watching.get(packet.reqId)
    if (packet.type === MESSAGE.WATCH_EVENT) {
      this.#deliver({ ...packet, reqId: 0xdeadbeef, txId: 1 })
      for (const late of this.#late.splice(0)) this.#deliver(late)
    } else if (request === undefined) {
      this.#deliver(packet)
    } else {
      this.#watching.delete(packet.reqId)
      if (packet.type !== MESSAGE.ERROR) this.#late.push(packet)
      else if (errnoOf(packet.payload) === 'EEXIST') this.#deliver({ ...packet, ...accepted })
      else this.#events.refused(request, constants.errno[errnoOf(packet.payload) as 'EINVAL'])
      if (packet.type === MESSAGE.UNWATCH)
        for (const late of this.#late.splice(0)) this.#deliver(late)
    }
  }

  /** Header and payload are read apart. */
  #deliver(packet: Packet): void {
    if (this.closed) return
    const bytes = encodePacket(packet)
    this.#events.data(bytes.subarray(0, HEADER_BYTES))
    if (bytes.length > HEADER_BYTES) this.#events.data(bytes.subarray(HEADER_BYTES))
  }
}
const accepted = { type: MESSAGE.WATCH, payload: 'OK\0' }

describe('the client on the xenbus device', () => {
  let dir: string
  let server: XenstoreServer
  let kernels: Kernel[]
  let xs: XenstoreClient
  const open: OpenXenbusDevice = (_path, events) => {
    const kernel = new Kernel(storeSocketPath(dir), events)
    kernels.push(kernel)
    return kernel
  }

  beforeEach(async () => {
    dir = mkdtempSync(join(tmpdir(), 'vbdkit-xenbus-'))
    server = await XenstoreServer.listen(dir)
    kernels = []
    xs = await connectXenstore({ dial: dialDevice('/dev/xen/xenbus', open, PROMPT) })
  })
  afterEach(async () => {
    await xs.close()
    expect(kernels.every(({ closed }) => closed)).toBe(true)
    await server.close()
    rmSync(dir, { recursive: true })
  })

  it('reads, writes and commits, one packet per write', async () => {
    await Promise.all([1, 2, 3, 4, 5].map((i) => xs.write(`/a/${i}`, `${i}`)))
    expect(await xs.list('/a')).toHaveLength(5)
    await xs.transaction(async (tx) => tx.write('/a/1', await tx.read('/a/2')))
    expect(await xs.read('/a/1')).toBe('2')
    expect(kernels[0]?.writes).toBe(5 + 1 + 4 + 1)
  })

  it('watches, although the event comes before the answer and with a garbage request number', async () => {
    const seen: string[] = []
    const watch = await xs.watch('/w', (path) => seen.push(path))
    await xs.write('/w/x', '1')
    await vi.waitFor(() => expect(seen).toContain('/w/x'), PATIENT)
    await watch.close()
    expect(seen[0]).toBe('/w')
  })

  it('rejects a watch that the kernel refuses without an answer, and goes on', async () => {
    await expect(xs.watch('/no such', () => {})).rejects.toMatchObject({ errno: 'EINVAL' })
    await xs.write('/still', 'here')
    expect(await xs.read('/still')).toBe('here')
  })

  it('sends at most what the device can hold', async () => {
    const value = 'v'.repeat(DEVICE_PAYLOAD_MAX - '/big\0'.length)
    await xs.write('/big', value)
    expect(await xs.read('/big')).toBe(value)
    const { writes } = kernels[0]!
    await expect(xs.write('/big', `${value}.`)).rejects.toMatchObject({ errno: 'E2BIG' })
    expect(kernels[0]?.writes).toBe(writes)
  })

  it('opens the device again when it is lost, and watches again', async () => {
    const seen: string[] = []
    await xs.watch('/w', (path) => seen.push(path))
    await server.close()
    await vi.waitFor(() => expect(kernels[0]?.closed).toBe(true), PATIENT)
    server = await XenstoreServer.listen(dir)
    await xs.write('/w/y', '1')
    await vi.waitFor(() => expect(seen).toContain('/w/y'), PATIENT)
    expect(kernels.length).toBeGreaterThan(1)
  })
})

describe('the device transport', () => {
  const answer = encodePacket({ type: MESSAGE.READ, reqId: 3, txId: 0, payload: 'value' })
  const request = encodePacket({ type: MESSAGE.WATCH, reqId: 9, txId: 5, payload: 'bad path\0t\0' })

  async function transportOf(): Promise<{
    device: XenbusDeviceEvents
    transport: Transport
    packets: Packet[]
    written: Uint8Array[]
    lost: (string | undefined)[]
  }> {
    let device: XenbusDeviceEvents | undefined
    const packets: Packet[] = []
    const written: Uint8Array[] = []
    const lost: (string | undefined)[] = []
    const parser = new PacketParser()
    const dial = dialDevice(
      '/d',
      (_path, events) => {
        device = events
        return { write: (packet) => void written.push(packet), close() {} }
      },
      PROMPT,
    )
    const transport = await dial(
      {
        data: (chunk) => parser.push(chunk, (packet) => void packets.push(packet)),
        lost: (cause) => void lost.push((cause as NodeJS.ErrnoException).code),
      },
      new AbortController().signal,
    )
    return { device: device!, transport, packets, written, lost }
  }

  it('makes the answer up to what was refused', async () => {
    const { device, packets } = await transportOf()
    device.refused(request, EINVAL)
    expect(packets).toEqual([{ type: MESSAGE.ERROR, reqId: 9, txId: 5, payload: 'EINVAL\0' }])
    device.refused(request, 0)
    expect(packets[1]?.payload).toBe('EIO\0')
  })

  it.each([1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 2, answer.length - 1])(
    'does not put it into a packet of which %i bytes have come',
    async (bytes) => {
      const { device, packets } = await transportOf()
      device.data(answer)
      device.data(answer.subarray(0, bytes))
      device.refused(request, EINVAL)
      device.refused(request, ENOENT)
      expect(packets).toHaveLength(1)
      device.data(Buffer.concat([answer.subarray(bytes), answer]))
      expect(packets.map(({ payload }) => payload)).toEqual([
        'value',
        'value',
        'value',
        'EINVAL\0',
        'ENOENT\0',
      ])
    },
  )

  it('knows packets without a payload', async () => {
    const { device, packets } = await transportOf()
    device.data(encodePacket({ type: MESSAGE.DIRECTORY, reqId: 1, txId: 0, payload: '' }))
    device.refused(request, EINVAL)
    expect(packets).toHaveLength(2)
  })

  it('says once that it was lost, and nothing after that', async () => {
    const { device, transport, packets, written, lost } = await transportOf()
    device.lost(EIO)
    device.data(answer)
    device.refused(request, EINVAL)
    transport.send(request)
    expect(lost).toEqual(['EIO'])
    expect(packets).toEqual([])
    expect(written).toEqual([])
  })

  it('says nothing after close', async () => {
    const { device, transport, packets, lost } = await transportOf()
    await transport.close()
    device.data(answer)
    device.lost(EIO)
    expect(packets).toEqual([])
    expect(lost).toEqual([])
  })
})

describe('which way to xenstore', () => {
  const dialled: string[] = []
  const openDevice: OpenXenbusDevice = (path) => {
    dialled.push(path)
    return { write() {}, close() {} }
  }
  const events = { data() {}, lost() {} }
  const { signal } = new AbortController()
  let dir: string
  let server: XenstoreServer
  const by = (path: string | undefined, opener?: OpenXenbusDevice): ReturnType<Dial> =>
    dialXenstore({ ...PROMPT, path, openDevice: opener })(events, signal)

  beforeEach(async () => {
    dialled.length = 0
    dir = mkdtempSync(join(tmpdir(), 'vbdkit-way-'))
    server = await XenstoreServer.listen(dir)
  })
  afterEach(async () => {
    vi.unstubAllEnvs()
    await server.close()
    rmSync(dir, { recursive: true })
  })

  it('takes a path for what it is', async () => {
    await (await by('/dev/null', openDevice)).close()
    expect(dialled).toEqual(['/dev/null'])
    const socket = await by(storeSocketPath(dir), openDevice)
    expect(socket.maxPayload).toBe(4096)
    await socket.close()
    expect(dialled).toHaveLength(1)
  })

  it('takes the usual place, which the environment may say to be a device', async () => {
    vi.stubEnv('XENSTORED_PATH', '/dev/null')
    const transport = await by(undefined, openDevice)
    expect(transport.maxPayload).toBe(4080)
    expect(dialled).toEqual(['/dev/null'])
    vi.stubEnv('XENSTORED_PATH', storeSocketPath(dir))
    await (await by(undefined, openDevice)).close()
    expect(dialled).toHaveLength(1)
  })

  it('has a clear word where there is neither', async () => {
    const nowhere = join(dir, 'nowhere')
    await expect(by(nowhere, openDevice)).rejects.toMatchObject({
      code: 'ERR_VBD_NO_XEN',
      path: nowhere,
    })
    await expect(by('/dev/null')).rejects.toMatchObject({ code: 'ERR_VBD_NO_XEN' })
  })

  it.each([
    [ENOENT, 'ENOENT', /xenstored/],
    [EACCES, 'EACCES', /root/],
  ])('says why the device does not open: %i', async (errno, name, remedy) => {
    const refusing = (): never => {
      throw failing(errno)
    }
    const dial = dialDevice('/dev/xen/xenbus', refusing, PROMPT)
    await expect(dial(events, signal)).rejects.toMatchObject({
      code: 'ERR_VBD_NO_XEN',
      message: `no xenstore at /dev/xen/xenbus (${name})`,
      remedy: expect.stringMatching(remedy),
    })
  })

  it('waits for a device that cannot be opened yet', async () => {
    let tries = 0
    const slow: OpenXenbusDevice = (path, given) => {
      if (++tries < 3) throw failing(ENOENT)
      return openDevice(path, given)
    }
    await dialDevice('/d', slow, { patienceMs: 10_000, awaitSocket: true })(events, signal)
    expect(dialled).toEqual(['/d'])
  })
})
