import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { GrantPool } from '../../../lib/testing/grant_pool.js'
import { GuestMemory, NumberPool } from '../../../lib/testing/guest_memory.js'
import { FakeGuest } from '../../support/fake_guest.js'
import { FakeStore } from '../../support/fake_store.js'

describe('NumberPool', () => {
  it('hands out each number once, lowest first', () => {
    const pool = new NumberPool(8, 12)
    expect([pool.take(), pool.take(), pool.take(), pool.take(), pool.take()]).toEqual([
      8,
      9,
      10,
      11,
      undefined,
    ])
    pool.release(9)
    expect(pool.take()).toBe(9)
  })

  it('refuses to free what was not taken', () => {
    expect(() => new NumberPool(0, 4).release(2)).toThrow(RangeError)
  })

  it('never hands out a number twice, in any order of calls', () => {
    const step = fc.oneof(
      fc.constant({ kind: 'take' as const }),
      fc.record({ kind: fc.constant('run' as const), count: fc.integer({ min: 1, max: 6 }) }),
      fc.record({ kind: fc.constant('free' as const), which: fc.nat() }),
    )
    fc.assert(
      fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
        const pool = new NumberPool(3, 40)
        const held: number[] = []
        for (const one of steps) {
          if (one.kind === 'take') {
            const n = pool.take()
            if (n !== undefined) held.push(n)
          } else if (one.kind === 'run') {
            const first = pool.takeRun(one.count)
            if (first !== undefined) for (let i = 0; i < one.count; i++) held.push(first + i)
          } else if (held.length > 0) {
            pool.release(held.splice(one.which % held.length, 1)[0]!)
          }
          expect(new Set(held).size).toBe(held.length)
          expect(held.every((n) => n >= 3 && n < 40)).toBe(true)
          expect(pool.used).toBe(held.length)
          expect(pool.free).toBe(37 - held.length)
        }
      }),
    )
  })
})

function makeGuest(pages = 64): FakeGuest {
  return new FakeGuest(1, new FakeStore(), pages)
}

describe('GuestMemory', () => {
  it('never hands out page 0', () => {
    const { memory } = makeGuest(4)
    expect([memory.takePage(), memory.takePage(), memory.takePage(), memory.takePage()]).toEqual([
      1,
      2,
      3,
      undefined,
    ])
  })

  it('keeps a page that a peer maps apart until the peer lets go', () => {
    const guest = makeGuest(3)
    const { memory } = guest
    const page = memory.takePage()!
    const ref = memory.grant(page, 0, false)!
    guest.map(ref, true)
    expect(memory.retire(page, ref)).toBe(false)
    expect(memory.use).toEqual({ pages: 1, grants: 1, quarantined: 1 })
    expect(memory.sweep()).toBe(1)
    guest.unmap(ref)
    expect(memory.sweep()).toBe(0)
    expect(memory.use).toEqual({ pages: 0, grants: 0, quarantined: 0 })
    expect(guest.grants.size).toBe(0)
  })

  it('says what to do when there is no run of pages', () => {
    const { memory } = makeGuest(4)
    expect(() => memory.takePages(4)).toThrowError(
      expect.objectContaining({ code: 'ERR_VBD_STATE', remedy: expect.stringContaining('memory') }),
    )
  })

  it('frees the reference of a grant that failed', () => {
    const guest = makeGuest()
    const failing = new GuestMemory({
      memory: guest.native.memory,
      grant: () => {
        throw new Error('no')
      },
      endAccess: () => true,
    })
    expect(() => failing.grant(1, 0, false)).toThrow('no')
    expect(failing.use.grants).toBe(0)
  })
})

describe.each([true, false])('GrantPool, persistent %s', (persistent) => {
  const pages = new Int32Array(8)
  const refs = new Int32Array(8)

  it('takes all or nothing, and gives everything back', () => {
    const guest = makeGuest()
    const pool = new GrantPool({ memory: guest.memory, domid: 0, persistent, budget: 4 })
    expect(pool.take(0, 3, true, pages, refs)).toBe(true)
    expect(pool.take(3, 2, true, pages, refs)).toBe(false)
    expect(guest.memory.use.pages).toBe(4)
    expect(pool.take(3, 1, true, pages, refs)).toBe(true)
    expect(new Set(pages.subarray(0, 4)).size).toBe(4)
    pool.release(0, 4, pages, refs)
    expect(guest.grants.size).toBe(persistent ? 4 : 0)
    expect(pool.close()).toBe(0)
    expect(guest.memory.use).toEqual({ pages: 0, grants: 0, quarantined: 0 })
  })

  it('grants read-only only where nobody will write', () => {
    const guest = makeGuest()
    const pool = new GrantPool({ memory: guest.memory, domid: 0, persistent, budget: 4 })
    pool.take(0, 1, true, pages, refs)
    expect(guest.grants.get(refs[0]!)?.readOnly).toBe(!persistent)
  })

  it('gives up pages that are still mapped', () => {
    const guest = makeGuest()
    const pool = new GrantPool({ memory: guest.memory, domid: 0, persistent, budget: 4 })
    pool.take(0, 2, false, pages, refs)
    guest.map(refs[1]!, true)
    expect(pool.release(0, 2, pages, refs)).toBe(persistent ? 0 : 1)
    expect(pool.close()).toBe(persistent ? 1 : 0)
    expect(guest.memory.use.quarantined).toBe(1)
    expect(pool.held).toBe(0)
  })
})

it('a persistent pool reuses the hottest grant and purges what nobody maps', () => {
  const guest = makeGuest()
  const pool = new GrantPool({ memory: guest.memory, domid: 0, persistent: true, budget: 4 })
  const pages = new Int32Array(2)
  const refs = new Int32Array(2)
  pool.take(0, 2, false, pages, refs)
  const [first, second] = refs
  guest.map(first!, true)
  pool.release(0, 2, pages, refs)
  pool.take(0, 1, false, pages, refs)
  expect(refs[0]).toBe(second)
  pool.release(0, 1, pages, refs)
  expect(pool.purge()).toBe(1)
  expect([...guest.grants.keys()]).toEqual([first])
})
