/** Coalescer and Limiter: any number of hints, a bounded number of runs and lines. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { Coalescer } from '../../../lib/xenbus/coalesce.js'
import { Limiter, printable } from '../../../lib/xenbus/limiter.js'

const turn = () => new Promise((resolve) => setImmediate(resolve))

describe('Coalescer', () => {
  it('runs one at a time, and once more after the last hint', async () => {
    let running = 0
    let runs = 0
    const coalescer = new Coalescer(async () => {
      expect(++running).toBe(1)
      runs++
      await turn()
      running--
    })
    for (let hint = 0; hint < 1000; hint++) coalescer.poke()
    await turn()
    for (let hint = 0; hint < 1000; hint++) coalescer.poke()
    await coalescer.flush()
    expect(runs).toBe(2)
  })

  it('a body that pokes itself runs again, not inside of itself', async () => {
    let depth = 0
    let runs = 0
    const coalescer: Coalescer = new Coalescer(async () => {
      expect(++depth).toBe(1)
      if (++runs < 3) coalescer.poke()
      depth--
    })
    await coalescer.flush()
    expect(runs).toBe(3)
  })

  it('stops after the run in progress', async () => {
    let runs = 0
    const coalescer = new Coalescer(async () => {
      runs++
      await turn()
    })
    coalescer.poke()
    await Promise.resolve()
    await Promise.resolve()
    coalescer.poke()
    await coalescer.stop()
    coalescer.poke()
    await turn()
    expect(runs).toBe(1)
  })
})

describe('Limiter', () => {
  it('never allows more than its limit in any window', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(500), { maxLength: 200 }), (steps) => {
        let now = 0
        const limiter = new Limiter(3, 1000, () => now)
        const allowed: number[] = []
        let held = 0
        for (const step of steps) {
          now += step
          const suppressed = limiter.allow()
          if (suppressed === undefined) held++
          else {
            expect(suppressed).toBe(held)
            held = 0
            allowed.push(now)
          }
        }
        for (const [i, time] of allowed.entries()) {
          if (i >= 3) expect(time - allowed[i - 3]!).toBeGreaterThanOrEqual(1000)
        }
      }),
    )
  })
})

describe('printable', () => {
  it('leaves nothing that a terminal obeys', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary', maxLength: 100 }), (text) => {
        expect(printable(text)).toMatch(/^'[\x20-\x7e]*'$/)
        expect(printable(text).length).toBeLessThanOrEqual(2 + 40 * 4)
      }),
    )
    expect(printable("a'\x1b[2J")).toBe("'a\\'\\x1b[2J'")
  })
})
