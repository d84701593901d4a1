import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { FrontRing, passesEvent } from '../../../lib/testing/front_ring.js'
import { LAYOUTS } from '../../../lib/testing/wire.js'

describe('passesEvent', () => {
  it.each([
    [10, 12, 11, true],
    [10, 12, 13, false],
    [10, 12, 10, false],
    [0xffffffff, 1, 0, true],
    [0xffffffff, 1, 1, true],
    [0xffffffff, 1, 2, false],
    [5, 5, 5, false],
  ])('from %i to %i with the event at %i: %s', (old, now, event, expected) => {
    expect(passesEvent(old, now, event)).toBe(expected)
  })

  it('is true exactly when the event index is among the new ones', () => {
    const u32 = fc.integer({ min: 0, max: 0xffffffff })
    fc.assert(
      fc.property(u32, fc.integer({ min: 0, max: 600 }), fc.integer(), (old, count, offset) => {
        const event = (old + offset) >>> 0
        const now = (old + count) >>> 0
        const distance = (event - old) >>> 0
        expect(passesEvent(old, now, event)).toBe(distance >= 1 && distance <= count)
      }),
    )
  })
})

function makeRing(pages = 1, protocol: keyof typeof LAYOUTS = 'x86_64-abi') {
  const memory = new ArrayBuffer((pages + 1) * 4096)
  const ring = new FrontRing(memory, 4096, pages, LAYOUTS[protocol])
  ring.initialise()
  const words = new Int32Array(memory, 4096, 4)
  return { ring, words, memory }
}

/** Puts all indices at `at`, as if so many requests had passed. */
function startAt(ring: FrontRing, at: number): void {
  ring.overwrite({ reqProd: at, rspProd: at, reqEvent: at + 1, rspEvent: at + 1 })
  ring.adopt()
}

describe('FrontRing', () => {
  it('initialises as SHARED_RING_INIT', () => {
    const { ring } = makeRing()
    expect(ring.indices()).toEqual({ reqProd: 0, reqEvent: 1, rspProd: 0, rspEvent: 1 })
    expect(ring.free).toBe(32)
  })

  it.each(['x86_64-abi', 'x86_32-abi'] as const)('%s: slots lie at the stride', (protocol) => {
    const { ring } = makeRing(16, protocol)
    const { stride } = LAYOUTS[protocol]
    expect(ring.entries).toBe(512)
    expect(ring.slotOffset(0)).toBe(4096 + 64)
    expect(ring.slotOffset(511)).toBe(4096 + 64 + 511 * stride)
    expect(ring.slotOffset(512)).toBe(ring.slotOffset(0))
    expect(ring.slotOffset(0xffffffff)).toBe(ring.slotOffset(511))
  })

  it('publishes once per batch and notifies only when asked', () => {
    const { ring } = makeRing()
    expect(ring.publish()).toBe(false)
    ring.reserve()
    ring.reserve()
    expect(ring.indices().reqProd).toBe(0)
    expect(ring.publish()).toBe(true)
    expect(ring.indices().reqProd).toBe(2)
    ring.reserve()
    expect(ring.publish()).toBe(false)
    ring.overwrite({ reqEvent: 4 })
    ring.reserve()
    expect(ring.publish()).toBe(true)
  })

  it.each([0, 0xfffffffe, 0x7ffffffe])('runs full and empty across index %i', (start) => {
    const { ring } = makeRing()
    startAt(ring, start)
    for (let i = 0; i < 32; i++) ring.reserve()
    expect(ring.free).toBe(0)
    ring.publish()
    expect(ring.waiting).toBe(0)
    ring.overwrite({ rspProd: start + 32 })
    expect(ring.waiting).toBe(32)
    for (let i = 0; i < 32; i++) ring.take()
    expect(ring.finalCheck()).toBe(0)
    expect(ring.indices().rspEvent).toBe((start + 33) >>> 0)
    expect(ring.free).toBe(32)
  })

  it.each([1, 2, 33, 0x80000000])('sees that rsp_prod is %i ahead of the requests', (ahead) => {
    const { ring } = makeRing()
    startAt(ring, 0xfffffff0)
    ring.reserve()
    ring.publish()
    ring.overwrite({ rspProd: 0xfffffff1 + ahead })
    expect(ring.waiting).toBeUndefined()
    expect(ring.finalCheck()).toBeUndefined()
  })

  it('does not count what is written but not published as asked for', () => {
    const { ring } = makeRing()
    ring.reserve()
    ring.overwrite({ rspProd: 1 })
    expect(ring.waiting).toBeUndefined()
  })

  it('zeroes a slot when it is reserved', () => {
    const { ring, memory } = makeRing()
    new Uint8Array(memory).fill(0xaa, ring.slotOffset(0))
    const at = ring.reserve()
    expect([...new Uint8Array(memory, at, 112)].every((byte) => byte === 0)).toBe(true)
    expect(new Uint8Array(memory)[at + 112]).toBe(0xaa)
  })
})
