/** The addon's mock objects as JavaScript holds them: events, ends of every kind, worker threads, nothing left behind. */
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import type { Addon, LoadOptions, NativeMockBroker } from '../../lib/engine/addon.js'
import { loadAddon } from '../../lib/engine/load_addon.js'

const addon: Addon = loadAddon()
const patience = { timeout: 20_000 }
const descriptors = () => readdirSync('/proc/self/fd').length
const nothing = () => {}

let dir: string
let path: string
let events: string[]
let broker: NativeMockBroker

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'vbdkit-native-mock-'))
  path = join(dir, 'xen.sock')
  events = []
  broker = addon.startMockBroker(path, (event, domid) => events.push(`${event} ${domid}`))
})

afterEach(() => {
  broker.close()
  rmSync(dir, { recursive: true })
})

/** A load on a ring that no backend answers. */
function unanswered(memory: ArrayBuffer, port: number, poll: boolean): LoadOptions {
  const ring = new DataView(memory)
  ring.setUint32(4, 1, true)
  ring.setUint32(12, 1, true)
  return {
    queues: [{ ringOffset: 0, ringPages: 1, port, firstRef: 8, firstPage: 1 }],
    protocol: 'x86_64-abi',
    operation: 'read',
    pattern: 'random',
    depth: 4,
    segments: 1,
    indirect: false,
    diskSectors: 1024,
    durationMs: 60_000,
    poll,
    seed: 1,
    cpu: -1,
  }
}

test('domains come and go in order, and are told of even when a listener throws', async () => {
  const thrown: unknown[] = []
  const listeners = process.listeners('uncaughtException')
  process.removeAllListeners('uncaughtException')
  process.on('uncaughtException', (error) => thrown.push(error))
  const seen: string[] = []
  const second = addon.startMockBroker(join(dir, 'second.sock'), (event) => {
    seen.push(event)
    if (event === 'dying') throw new Error('from the listener')
  })
  try {
    second.createDomain(9, 4)
    expect(second.domains()).toEqual([
      { domid: 9, pages: 4, dying: false, grantsMapped: 0, portsBound: 0 },
    ])
    second.destroyDomain(9)
    await vi.waitFor(() => expect(seen).toEqual(['created', 'dying', 'destroyed']), patience)
    expect(thrown).toEqual([expect.objectContaining({ message: 'from the listener' })])
  } finally {
    second.close()
    process.removeAllListeners('uncaughtException')
    for (const listener of listeners) process.on('uncaughtException', listener)
  }
  expect(() => second.domains()).toThrow('closed')
})

test('mistakes are errors with a kind and an errno', () => {
  expect(() => addon.startMockBroker(path, nothing)).toThrow(
    expect.objectContaining({ kind: 'xen', errno: 98 }),
  )
  const guest = addon.connectMockGuest(path, 5, 64, nothing, nothing)
  const invalid = expect.objectContaining({ kind: 'invalid-argument' })
  expect(() => guest.grant(7, 1, 0, false)).toThrow(invalid)
  expect(() => guest.grant(8.5, 1, 0, false)).toThrow(invalid)
  expect(() => guest.grant(8, 64, 0, false)).toThrow(invalid)
  expect(() => guest.notify(77)).toThrow(expect.objectContaining({ kind: 'xen', errno: 107 }))
  expect(() => broker.setFaults([{ call: 'unplug' as 'map' }])).toThrow(invalid)
  expect(() => broker.setFaults([{ call: 'map', skip: -1 }])).toThrow(invalid)
  broker.setFaults([{ call: 'alloc-unbound', count: 1 }])
  expect(() => guest.allocUnbound(0)).toThrow(expect.objectContaining({ kind: 'xen', errno: 28 }))
  expect(guest.allocUnbound(0)).toBeGreaterThan(0)
  expect(() => guest.runLoad({} as LoadOptions)).toThrow(invalid)
  guest.close()
  guest.close()
  expect(() => guest.notify(1)).toThrow(invalid)
})

test('memory outlives the guest and the domain', async () => {
  const guest = addon.connectMockGuest(path, 5, 64, nothing, nothing)
  const memory = new Uint8Array(guest.memory)
  expect(memory.length).toBe(64 * 4096)
  guest.close()
  await vi.waitFor(() => expect(events).toContain('destroyed 5'), patience)
  memory.fill(7)
  expect(memory[64 * 4096 - 1]).toBe(7)
})

test('the ends of domain and broker are told, the own close is not', async () => {
  const told: string[] = []
  const guest = addon.connectMockGuest(path, 5, 4, nothing, () => told.push('guest 5'))
  addon.connectMockGuest(path, 6, 4, nothing, () => told.push('guest 6')).close()
  const xen = addon.connectMock(path, 0, () => told.push('xen'))
  addon.connectMock(path, 0, () => told.push('closed xen')).close()
  broker.destroyDomain(5)
  await vi.waitFor(() => expect(told).toEqual(['guest 5']), patience)
  guest.close()
  broker.close()
  await vi.waitFor(() => expect(told).toEqual(['guest 5', 'xen']), patience)
  expect(existsSync(path)).toBe(false)
  xen.close()
  expect(() => addon.connectMock(path, 0)).toThrow(expect.objectContaining({ errno: 2 }))
})

test.each([true, false])('a load ends with its guest (poll: %s)', async (poll) => {
  const before = descriptors()
  const guest = addon.connectMockGuest(path, 5, 64, nothing, nothing)
  const port = guest.allocUnbound(0)
  const load = guest.runLoad(unanswered(guest.memory, port, poll))
  const ring = new DataView(guest.memory)
  await vi.waitFor(() => expect(ring.getUint32(0, true)).toBe(4), patience)
  guest.close()
  await expect(load).rejects.toMatchObject({ kind: 'unsupported' })
  await vi.waitFor(() => expect(descriptors()).toBe(before), patience)
})

const WORKER = `
const { parentPort, workerData } = require('node:worker_threads')
const { addonPath, path, domid, load } = workerData
const addon = require(addonPath)
const broker = addon.startMockBroker(path + domid, () => {})
const guest = addon.connectMockGuest(path, domid, 64, () => {}, () => {})
addon.connectMock(path, 0, () => {})
const port = guest.allocUnbound(0)
const ring = new DataView(guest.memory)
ring.setUint32(4, 1, true)
ring.setUint32(12, 1, true)
guest.runLoad({ ...load, queues: [{ ...load.queues[0], port }] }).catch(() => {})
parentPort.once('message', () => process.exit(0))
for (let i = 1; i < 50; i++) {
  broker.createDomain(i, 1)
  broker.destroyDomain(i)
}
parentPort.postMessage('up')
`

test('workers that end in the middle of everything take their threads and domains along', async () => {
  const require = createRequire(import.meta.url)
  const addonPath = (require('node-gyp-build') as { path(root: string): string }).path(
    process.cwd(),
  )
  const before = descriptors()
  for (let round = 0; round < 12; round++) {
    const load = unanswered(new ArrayBuffer(4096), 0, round % 2 === 0)
    const workerData = { addonPath, path, domid: 100 + round, load }
    const worker = new Worker(WORKER, { eval: true, workerData })
    const exited = new Promise((resolve) => worker.once('exit', resolve))
    await new Promise((resolve, reject) => {
      worker.once('message', resolve)
      worker.once('error', reject)
    })
    if (round % 3 === 0) worker.postMessage('exit')
    else await worker.terminate()
    await exited
  }
  await vi.waitFor(() => expect(broker.domains()).toEqual([]), patience)
  await vi.waitFor(() => expect(descriptors()).toBeLessThanOrEqual(before + 4), patience)
})
