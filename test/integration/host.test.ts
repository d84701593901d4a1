/** The addon's way to this machine's Xen, on machines that have none: what it says, its xenbus device on a pipe, and the service manager. */
import { execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import type { DiskSpec } from '../../lib/disk/spec.js'
import type {
  NativeEngine,
  NativeMockBroker,
  NativeMockGuest,
  NativeVbd,
} from '../../lib/engine/addon.js'
import { type Connection, DEFAULT_TUNABLES, type EngineEvent } from '../../lib/engine/engine.js'
import {
  isControlDomain,
  notifyServiceManager,
  openHostXen,
  openXenbusDevice,
  probeHost,
} from '../../lib/engine/host.js'
import { loadAddon } from '../../lib/engine/load_addon.js'
import { createNativeEngine, type NativeStages, openMockXen } from '../../lib/engine/native.js'
import { FrontRing } from '../../lib/testing/front_ring.js'
import { encodeRequest, LAYOUTS } from '../../lib/testing/wire.js'
import { dialDevice } from '../../lib/xenstore/device_transport.js'
import { encodePacket, MESSAGE } from '../../lib/xenstore/wire.js'
import { PATIENT } from '../support/patience.js'

/** Names of this process's threads that begin with `prefix`. */
function threads(prefix: string): string[] {
  const names: string[] = []
  for (const task of readdirSync('/proc/self/task')) {
    try {
      names.push(readFileSync(`/proc/self/task/${task}/comm`, 'latin1').trim())
    } catch {
      // It ended in between.
    }
  }
  return names.filter((name) => name.startsWith(prefix))
}

let dir: string
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'vbdkit-host-'))
})
afterEach(() => {
  rmSync(dir, { recursive: true })
})

describe('this machine', () => {
  it('is looked at without a throw, and every problem is named', () => {
    const probe = probeHost()
    expect(probe.gnttab.soname).toBe('libxengnttab.so.1')
    expect(probe.evtchn.soname).toBe('libxenevtchn.so.1')
    expect(probe.devices.map(({ path }) => path)).toEqual(['/dev/xen/gntdev', '/dev/xen/evtchn'])
    const expected =
      Number(probe.gnttab.error !== '') +
      Number(probe.evtchn.error !== '') +
      probe.devices.filter(({ errno }) => errno !== 0).length
    expect(probe.problems).toHaveLength(expected)
  })

  it('opens, or says all that is missing and what to do', () => {
    const { problems } = probeHost()
    if (problems.length === 0) {
      const xen = openHostXen({ domid: 0, onSlow: () => {} })
      expect(xen.kind).toBe('host')
      xen.close()
      xen.close()
      return
    }
    const refused = expect.objectContaining({
      code: 'ERR_VBD_NO_XEN',
      message: expect.stringContaining(problems.join('; ')),
      remedy: expect.stringContaining('mock'),
    })
    expect(() => openHostXen({ domid: 0 })).toThrow(refused)
    expect(() => openHostXen({ domid: 0, onSlow: () => {} })).toThrow(refused)
  })

  it('is the control domain where the kernel says so', () => {
    expect(isControlDomain(join(dir, 'none'))).toBe(false)
    expect(isControlDomain('/proc/self/comm')).toBe(false)
  })
})

describe('the xenbus device', () => {
  const packet = encodePacket({ type: MESSAGE.READ, reqId: 1, txId: 0, payload: '/a\0' })

  it('carries packets both ways, and leaves no thread', async () => {
    // A pipe that is open for reading and writing gives back what is written.
    const pipe = join(dir, 'pipe')
    execFileSync('mkfifo', [pipe])
    const chunks: Buffer[] = []
    const dial = dialDevice(pipe, openXenbusDevice, { patienceMs: 0 })
    const transport = await dial(
      { data: (chunk) => chunks.push(chunk), lost() {} },
      new AbortController().signal,
    )
    await vi.waitFor(() => expect(threads('vbdkit-xs-')).toHaveLength(2), PATIENT) // they name themselves
    for (let i = 0; i < 100; i++) transport.send(packet)
    const all = Buffer.concat(Array.from({ length: 100 }, () => packet))
    await vi.waitFor(() => expect(Buffer.concat(chunks).equals(all)).toBe(true), PATIENT)
    await transport.close()
    transport.send(packet)
    await transport.close()
    expect(threads('vbdkit-xs-')).toEqual([])
  })

  it('takes megabytes that JavaScript is slow to read', async () => {
    const received: number[] = []
    // /dev/zero never ends, and swallows what is written.
    const device = openXenbusDevice('/dev/zero', {
      data: (chunk) => received.push(chunk.length),
      refused() {},
      lost() {},
    })
    const until = Date.now() + 200
    while (Date.now() < until); // the thread reads on, up to its bound
    await vi.waitFor(() => expect(received.length).toBeGreaterThan(3), PATIENT)
    device.close()
    expect(Math.max(...received)).toBeLessThan(2 * 1024 * 1024)
    const { length } = received
    await new Promise((resolve) => setImmediate(resolve))
    expect(received).toHaveLength(length)
  })

  it('tells of a write that failed, and of its end', async () => {
    const refused: [string, number][] = []
    const full = openXenbusDevice('/dev/full', {
      data() {},
      refused: (given, errno) => refused.push([given.toString('hex'), errno]),
      lost() {},
    })
    full.write(packet)
    await vi.waitFor(
      () => expect(refused).toEqual([[packet.toString('hex'), constants.errno.ENOSPC]]),
      PATIENT,
    )
    full.close()
    const lost: number[] = []
    const empty = openXenbusDevice('/dev/null', {
      data() {},
      refused() {},
      lost: (errno) => lost.push(errno),
    })
    await vi.waitFor(() => expect(lost).toEqual([0]), PATIENT)
    empty.close()
  })

  it('throws the errno of what cannot be opened', () => {
    const silent = { data() {}, refused() {}, lost() {} }
    expect(() => openXenbusDevice(join(dir, 'none'), silent)).toThrow(
      expect.objectContaining({ kind: 'xen', errno: constants.errno.ENOENT }),
    )
  })
})

describe('the service manager', () => {
  const RECEIVER = `
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1].replace('@', '\\0', 1) if sys.argv[1][0] == '@' else sys.argv[1])
print('ready', flush=True)
print(s.recv(4096).decode(), flush=True)
`
  it.each(['path', 'abstract'])('is told through its socket: %s', async (kind) => {
    const socket = kind === 'path' ? join(dir, 'notify') : `@vbdkit-test-${process.pid}`
    const receiver = spawn('python3', ['-c', RECEIVER, socket], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const lines = createInterface({ input: receiver.stdout })[Symbol.asyncIterator]()
    expect((await lines.next()).value).toBe('ready')
    expect(notifyServiceManager('READY=1 héllo', { NOTIFY_SOCKET: socket })).toBe(true)
    expect((await lines.next()).value).toBe('READY=1 héllo')
  })

  it('is no concern where there is none', () => {
    expect(notifyServiceManager('READY=1', {})).toBe(false)
    for (const socket of [join(dir, 'none'), 'relative', '@', `/${'x'.repeat(200)}`, 'vsock:1:2']) {
      expect(notifyServiceManager('READY=1', { NOTIFY_SOCKET: socket })).toBe(false)
    }
  })
})

describe('reactors', () => {
  let broker: NativeMockBroker
  let guest: NativeMockGuest
  let engine: NativeEngine

  beforeEach(() => {
    const addon = loadAddon()
    const socket = join(dir, 'xen.sock')
    broker = addon.startMockBroker(socket, () => {})
    guest = addon.connectMockGuest(
      socket,
      7,
      8,
      () => {},
      () => {},
    )
    engine = addon.createEngine({
      xen: addon.connectMock(socket, 0),
      reactors: 2,
      placement: 'shared',
      tunables: DEFAULT_TUNABLES,
      name: 'vbdkit',
    })
  })
  afterEach(async () => {
    await engine.close()
    guest.close()
    broker.close()
    expect(threads('vbdkit-dom')).toEqual([])
  })

  it('open no disk whose numbers do not fit', async () => {
    const whole = { driver: 'memory', sizeBytes: 1 << 20 } as const
    const wrong = [
      { ...whole, sectorSize: 2 ** 32 + 512 },
      { driver: 'verify', base: whole, blockBytes: 2 ** 32 + 4096, reportOnly: false },
      { driver: 'throttle', base: whole, iops: 1, bps: 0, burstSeconds: 1e15 },
    ] as const
    for (const spec of wrong) expect(() => engine.openDisk(spec)).toThrow('not a valid')
    const disk = await engine.openDisk({ ...whole, sectorSize: 512 })
    await disk.close()
  })

  it('have a beat at every call, also when they sleep', async () => {
    let before = engine.heartbeats()
    expect(before).toMatchObject([
      { name: 'vbdkit-0', inGuestCall: false },
      { name: 'vbdkit-1', inGuestCall: false },
    ])
    for (let i = 0; i < 3; i++) {
      let now = before
      await vi.waitFor(() => {
        now = engine.heartbeats()
        expect(now.every(({ beats }, j) => beats > before[j]!.beats)).toBe(true)
      }, PATIENT)
      before = now
    }
  })

  /** The guest's one ring, freshly granted. */
  function connection(): Connection {
    guest.grant(8, 0, 0, false)
    return {
      domid: 7,
      protocol: 'x86_64-abi',
      persistent: false,
      rings: [{ ringRefs: [8], eventChannel: guest.allocUnbound(0) }],
    }
  }
  const features = {
    transfer: 'copy',
    maxIndirectSegments: 0,
    flush: true,
    barrier: false,
    discard: false,
    secureDiscard: false,
    onFlushFailure: 'hold',
  } as const
  const portsBound = () => broker.domains().find(({ domid }) => domid === 7)?.portsBound

  it('serve a guest apart on one of its own', async () => {
    const given = connection()
    const disk = await engine.openDisk({ driver: 'null', sizeBytes: 1 << 20 })
    const vbd = engine.createVbd('7:51712', disk, features, DEFAULT_TUNABLES, () => {})
    await vbd.connect(given)
    expect(threads('vbdkit-dom')).toEqual([])
    await vbd.disconnect()
    // The same ring again, elsewhere: so a guest is moved.
    await vbd.connect({ ...given, apart: true })
    expect(threads('vbdkit-dom')).toEqual(['vbdkit-dom7'])
    expect(engine.resources().reactors).toBe(3)
    expect(engine.heartbeats().map(({ name }) => name)).toContain('vbdkit-dom7')
    await vbd.disconnect()
    expect(threads('vbdkit-dom')).toEqual([])
    expect(engine.resources().reactors).toBe(2)
    await vbd.connect({ ...given, apart: true })
    expect(threads('vbdkit-dom')).toEqual(['vbdkit-dom7'])
    await vbd.close()
    await disk.close()
  })

  it('sleep in a call for their guest without a beat, and say that it is that', async () => {
    const own = loadAddon().createEngine({
      xen: loadAddon().connectMock(join(dir, 'xen.sock'), 0),
      reactors: 2,
      placement: 'guest',
      tunables: DEFAULT_TUNABLES,
      name: 'own',
    })
    expect(own.heartbeats()).toEqual([])
    const given = connection()
    const disk = await own.openDisk({ driver: 'null', sizeBytes: 1 << 20 })
    const vbd = own.createVbd('7:51712', disk, features, DEFAULT_TUNABLES, () => {})
    broker.setFaults([{ call: 'map', domid: 7, delayMs: 400 }])
    const connected = vbd.connect(given)
    await vi.waitFor(() => expect(own.heartbeats()).toMatchObject([{ inGuestCall: true }]), PATIENT)
    const [asleep] = own.heartbeats()
    await connected
    await vi.waitFor(() => {
      const [awake] = own.heartbeats()
      expect(awake).toMatchObject({ id: asleep?.id, name: 'vbdkit-dom7', inGuestCall: false })
      expect(awake?.beats).toBeGreaterThan(asleep?.beats ?? 0)
    }, PATIENT)
    await vbd.close()
    expect(own.heartbeats()).toEqual([])
    await disk.close()
    await own.close()
    expect(own.heartbeats()).toEqual([])
  })

  it('let go of a guest whose grant calls sleep: it moves to one of its own', async () => {
    let slow: ((domid: number) => void) | undefined
    const xen = openMockXen(join(dir, 'xen.sock'))
    const onSlowGuest = (listener: (domid: number) => void) => {
      slow = listener
    }
    const adapter = createNativeEngine({
      xen: { ...xen, onSlowGuest },
      reactors: 1,
      tunables: DEFAULT_TUNABLES,
      name: 'moving',
    })
    const events: EngineEvent[] = []
    const disk = await adapter.openDisk({ driver: 'null', sizeBytes: 1 << 20 })
    const tunables = DEFAULT_TUNABLES
    const onEvent = (event: EngineEvent) => void events.push(event)
    const vbd = adapter.createVbd({ name: '7:51712', disk, features, tunables, onEvent })
    const given = connection()
    await vbd.connect(given)
    slow?.(8) // another guest's
    slow?.(7)
    slow?.(7)
    await vi.waitFor(() => {
      expect(threads('vbdkit-dom')).toEqual(['vbdkit-dom7'])
      expect(portsBound()).toBe(1)
    }, PATIENT)
    await vbd.disconnect()
    expect(portsBound()).toBe(0)
    // It is known from now on.
    await vbd.connect(given)
    expect(threads('vbdkit-dom')).toEqual(['vbdkit-dom7'])
    expect(events).toEqual([])
    await vbd.close()
    await adapter.close()
    xen.close()
  })

  /** A guest on a shared reactor whose disk is `base`, and what the addon's vbd is asked for. */
  async function served(base: DiskSpec) {
    const xen = openMockXen(join(dir, 'xen.sock'))
    let slow: (domid: number) => void = () => {}
    const onSlowGuest = (listener: (domid: number) => void) => {
      slow = listener
    }
    const options = { reactors: 1, tunables: DEFAULT_TUNABLES, name: 'staying' }
    const adapter = createNativeEngine({ xen: { ...xen, onSlowGuest }, ...options })
    const created = vi.spyOn((adapter as unknown as NativeStages).engine, 'createVbd')
    const events: EngineEvent[] = []
    const disk = await adapter.openDisk(base)
    const vbd = adapter.createVbd({
      name: '7:51712',
      disk,
      features: { ...features, flush: true },
      tunables: DEFAULT_TUNABLES,
      onEvent: (event) => void events.push(event),
    })
    const native: NativeVbd = created.mock.results[0]!.value
    const [connect, disconnect] = [vi.spyOn(native, 'connect'), vi.spyOn(native, 'disconnect')]
    const close = async () => {
      await vbd.close()
      await adapter.close()
      xen.close()
    }
    return { vbd, slow: () => slow(7), events, connect, disconnect, close }
  }

  it('keep a guest that has a flush which is never answered, also in a later connection', async () => {
    const failing = { ops: ['flush'], errno: 5, probability: 1, seed: 0, offsetBytes: 0, skip: 0 }
    const base = { driver: 'null', sizeBytes: 1 << 20 } as const
    const { vbd, slow, events, connect, close } = await served({
      driver: 'fault',
      base,
      ...failing,
    })
    const ring = new FrontRing(guest.memory, 0, 1, LAYOUTS['x86_64-abi'])
    ring.initialise()
    const given = connection()
    await vbd.connect(given)
    const flush = { operation: 'flush', id: { lo: 1, hi: 0 }, sector: 0, handle: 0 } as const
    encodeRequest(ring.view, ring.reserve(), ring.layout, { ...flush, segments: [] })
    ring.publish()
    guest.notify(given.rings[0]!.eventChannel)
    await vi.waitFor(() => expect(events).toMatchObject([{ type: 'flush-failed' }]), PATIENT)
    expect(await vbd.disconnect()).toBe(false)
    await vbd.connect(given)
    slow()
    await vbd.disconnect()
    expect(connect).toHaveBeenCalledTimes(2)
    expect(ring.waiting).toBe(0)
    expect(events).toHaveLength(1)
    await close()
  })

  it('do not take a ring up again on which not all was answered, and say so', async () => {
    const { vbd, slow, events, connect, disconnect, close } = await served({
      driver: 'null',
      sizeBytes: 1 << 20,
    })
    await vbd.connect(connection())
    disconnect.mockResolvedValueOnce(false)
    slow()
    await vi.waitFor(() => expect(events).toHaveLength(1), PATIENT)
    expect(events[0]).toMatchObject({
      type: 'ring-corrupt',
      message: expect.stringContaining('not all was answered'),
    })
    expect(connect).toHaveBeenCalledTimes(1)
    await close()
  })
})
