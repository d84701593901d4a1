/**
 * The two engines do the same, whatever a guest asks: generated streams of requests, hostile and well behaved, on both.
 *
 *   VBDKIT_SEED=N        the first seed; each seed is one stream
 *   VBDKIT_SEEDS=N       how many, at least
 *   VBDKIT_REQUESTS=N    go on until so many requests were compared
 *   VBDKIT_FULL=1        500 seeds and 1,000,000 requests, where nothing else is said
 *
 * `npm run differential` is the long form, with the same as options.
 */
import fc from 'fast-check'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { streams } from './stream.js'
import { Twins } from './twins.js'

const first = Number(process.env.VBDKIT_SEED ?? 1)
const full = Boolean(process.env.VBDKIT_FULL)
const seeds = Number(process.env.VBDKIT_SEEDS ?? (full ? 500 : 40))
const requests = Number(process.env.VBDKIT_REQUESTS ?? (full ? 1_000_000 : 0))
const PER_STREAM = 2000

let twins: Twins

beforeAll(async () => {
  twins = await Twins.open()
})
afterAll(() => twins.close())

it('agree on every stream', { timeout: 3_600_000 }, async () => {
  let seed = first
  for (; seed < first + seeds || twins.requests < requests; seed++) {
    await agree(seed)
    if (process.env.VBDKIT_PROGRESS && (seed - first) % 25 === 24) {
      console.log(`${seed - first + 1} seeds, ${twins.requests} requests: agreed`)
    }
  }
  console.log(`${seed - first} seeds, ${twins.requests} requests: the engines agree`)
  expect(twins.requests).toBeGreaterThan(0)
})

async function agree(seed: number): Promise<void> {
  let told = false
  const property = fc.asyncProperty(streams(PER_STREAM), async (stream) => {
    try {
      await twins.run(stream)
    } catch (thrown) {
      // Before it is shrunk, which takes a while.
      if (!told) console.error(`seed ${seed}: ${thrown}\n${JSON.stringify(stream.setting)}`)
      told = true
      throw thrown
    }
  })
  const details = await fc.check(property, {
    seed,
    numRuns: 1,
    endOnFailure: false,
    interruptAfterTimeLimit: 120_000,
  })
  if (!details.failed) return
  const [stream] = details.counterexample ?? []
  throw new Error(
    `seed ${seed}: ${details.errorInstance}\n` +
      `shrunk ${details.numShrinks} times to ${JSON.stringify(stream)?.slice(0, 3000)}\n` +
      `replay: npm run differential -- --seed ${seed} --seeds 1`,
  )
}
