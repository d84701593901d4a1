/** Plans: what runs where, for every shape of chain. */
import fc from 'fast-check'
import { expect, it } from 'vitest'
import { slice, sliced } from '../../../lib/disk/compose.js'
import { defineDisk, defineFilter } from '../../../lib/disk/define.js'
import type { Disk } from '../../../lib/disk/disk.js'
import { file, memory } from '../../../lib/disk/drivers.js'
import { describePlan, type PlannedStage, planOf } from '../../../lib/disk/plan.js'

const scripted = defineDisk({ name: 'clock', size: '1MiB', read() {} })
const apart = defineDisk({ module: '/srv/disk.mjs' })
const upper = defineFilter('upper', (next) => ({ ...next }))

it.each([
  [file('/srv/a.raw'), 'file'],
  [slice(file('/srv/a.raw'), { length: 4096 }), 'file → slice'],
  [file('/srv/a.raw').with(upper), 'file → upper (script)'],
  [
    memory('1MiB').with(sliced({}), upper, sliced({})),
    'memory → slice → upper (script) → slice (script)',
  ],
  [scripted, 'clock (script)'],
  [scripted.with(upper, upper), 'clock (script) → upper (script) → upper (script)'],
  [apart, 'disk.mjs (own thread)'],
  [apart.with(upper), 'disk.mjs (own thread) → upper (script)'],
])('%#: %s', (disk, text) => {
  expect(describePlan(planOf(disk.spec))).toBe(text)
})

it('a stage runs natively exactly when it is, and all below it are', () => {
  const leaf = fc.constantFrom<Disk>(memory('1MiB'), scripted, apart)
  const filters = fc.array(fc.constantFrom(upper, sliced({})), { maxLength: 6 })
  const chain = (stage: PlannedStage): PlannedStage[] => [stage, ...stage.below.flatMap(chain)]
  fc.assert(
    fc.property(leaf, filters, (disk, above) => {
      const stages = chain(planOf(disk.with(...above).spec)).reverse()
      const first = stages.findIndex(({ runsIn }) => runsIn !== 'native')
      const native = first < 0 ? stages : stages.slice(0, first)
      expect(stages).toHaveLength(above.length + 1)
      expect(native.every(({ name }) => name === 'memory' || name === 'slice')).toBe(true)
      for (const { runsIn } of stages.slice(native.length + 1)) expect(runsIn).toBe('script')
      if (first >= 0) expect(['upper', 'clock', 'disk.mjs']).toContain(stages[first]!.name)
    }),
  )
})
