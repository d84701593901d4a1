/** What `explain` says, for people and for programs. */
import { inspect } from 'node:util'
import { expect, it } from 'vitest'
import { defineFilter } from '../../../lib/disk/define.js'
import { memory } from '../../../lib/disk/drivers.js'
import { Explanation, type ExplanationParts } from '../../../lib/vbd/explain.js'
import { diskInfo } from '../../support/fake_engine.js'

const parts: ExplanationParts = {
  vbd: '1:xvda',
  engine: 'native',
  state: 'InitWait',
  disk: diskInfo({ description: 'memory → upper (script)' }),
  spec: memory('1MiB').with(defineFilter('upper', (next) => ({ ...next }))).spec,
  connection: undefined,
}

it('is a page for people', () => {
  const explanation = new Explanation(parts)
  expect(explanation.toString()).toBe(`1:xvda
  engine  native
  state   InitWait
  disk    memory → upper (script), 1MiB, writable, flush, discard, sectors of 512
  stages  memory  native, off the JavaScript thread
          upper   script, in the main thread
  guest   not connected`)
  expect(inspect(explanation)).toBe(explanation.toString())
})

it('is data for programs, whatever the engine', () => {
  expect(JSON.parse(JSON.stringify(new Explanation({ ...parts, engine: 'js' })))).toMatchObject({
    vbd: '1:xvda',
    engine: 'js',
    stages: [
      { name: 'memory', runsIn: 'native', below: [] },
      { name: 'upper', runsIn: 'script', below: [0] },
    ],
  })
  const alone = new Explanation({ ...parts, engine: 'js', spec: memory('1MiB').spec })
  expect(alone.stages).toEqual([{ name: 'memory', runsIn: 'engine', below: [] }])
})

it('tells what was agreed on', () => {
  const connection = {
    protocol: 'x86_64-abi',
    transfer: 'persistent',
    persistent: true,
    queues: 2,
    ringPages: 1,
    features: { maxIndirectSegments: 256, flush: true, barrier: false, discard: true },
  } as ExplanationParts['connection']
  expect(new Explanation({ ...parts, connection }).toString()).toContain(
    'guest   x86_64-abi, 2 queues of 1 page, persistent transfer, indirect requests of up to 256 segments, flush, discard',
  )
})
