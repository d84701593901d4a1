/**
 * Every disk does what disks do: random requests through real rings, many at a time, compared byte for byte with a
 * shadow; then what is stored, as others see it, and what comes back when the disk is opened again.
 *
 *   VBDKIT_SEED=N        the first seed; a new one every time by default, and a failure says which
 *   VBDKIT_SEEDS=N       how many for each disk, 1 by default
 *   VBDKIT_REQUESTS=N    how many for each seed, 150 by default
 */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { crc32 } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, it, onTestFinished, vi } from 'vitest'
import type { Disk } from '../../lib/disk/disk.js'
import { type PlannedStage, planOf } from '../../lib/disk/plan.js'
import { scriptStageOf } from '../../lib/disk/script_stages.js'
import { stagesOf } from '../../lib/disk/spec.js'
import { Random } from '../differential/random.js'
import { bounded, World } from '../support/product_world.js'
import { FILTER_BASES } from './bases.js'
import { Exercise } from './exercise.js'
import { exportedMakers } from './exports.js'
import { RawDisk } from './raw_disk.js'
import { Shadow } from './shadow.js'
import { DRIVERS, FILTERS, over, type Row, type Subject } from './subjects.js'

// A disk's own thread runs the compiled library.
vi.mock('node:worker_threads', async (original) =>
  (await import('./compiled_threads.js')).compiledThreads(await original()),
)

const firstSeed = Number(process.env.VBDKIT_SEED ?? Math.floor(Math.random() * 2 ** 31))
const seeds = Number(process.env.VBDKIT_SEEDS ?? 1)
const requests = Number(process.env.VBDKIT_REQUESTS ?? 150)
const DATA_PAGES = 1200
const INDIRECT_SEGMENTS = 512

let world: World
beforeAll(async () => {
  world = await World.open()
})
afterAll(() => world.close())

/** One connection of one guest: what is agreed follows from the seed. It ends with the test, whatever becomes of that. */
async function connect(disk: Disk, random: Random) {
  const guest = await world.guest()
  onTestFinished(() => guest.close())
  const vbd = await world.backend.serve(`${guest.domid}:xvda`, disk, {
    transfer: random.pick(['auto', 'persistent', 'copy', 'map'] as const),
    queues: 4,
    indirectSegments: INDIRECT_SEGMENTS,
  })
  onTestFinished(() => vbd.close({ timeoutMs: 500 }))
  const frontend = await guest.disk('xvda', {
    protocol: random.pick(['x86_64-abi', 'x86_32-abi'] as const),
    queues: random.pick([1, 1, 2, 3]),
    ringOrder: random.pick([0, 0, 1, 4]),
    indirectSegments: random.pick([0, 32, INDIRECT_SEGMENTS]),
    persistent: random.chance(70),
    memoryBytes: 4096,
    closeTimeoutMs: 2000,
  })
  const raw = new RawDisk(guest, frontend, DATA_PAGES)
  const close = async () => {
    await raw.close()
    await vbd.close()
    expect(frontend.violations).toEqual([])
    expect(vbd.stats().counters).toMatchObject({ grantErrors: 0, inFlight: 0 })
    await guest.close()
  }
  return { raw, close, vbd }
}

async function exercise(subject: Subject, name: string, given: number): Promise<void> {
  // Each disk gets requests of its own.
  const seed = given ^ crc32(name)
  const { disk, content, nature, conduct, again, check } = subject
  const random = new Random(seed)
  const rules = { discards: 'zeroes' as const, mayFail: () => false, ...conduct }
  const shadow = new Shadow(content, nature)
  const first = await connect(disk, random)
  expect(first.raw.frontend.properties.sizeBytes).toBe(content.length)
  const run = new Exercise(first.raw, shadow, rules, seed)
  const state = () => ({ ...run.tally, active: run.active, counters: first.vbd.stats().counters })
  await bounded(run.run(requests), 60, state)
  await first.close()
  check?.(shadow.bytes, run.tally)
  if (again === undefined) return
  const second = await connect(again(), random)
  await bounded(new Exercise(second.raw, shadow, rules, seed).readAll(), 60, () => seed)
  await second.close()
}

const rows: readonly Row[] = [
  ...DRIVERS,
  ...FILTERS.flatMap((filter) =>
    FILTER_BASES.filter(({ blank }) => !(blank && filter.needsContent)).map((base) =>
      over(base, filter),
    ),
  ),
]

/** Why a row cannot be, or undefined. */
function impossible(disk: Disk): string | undefined {
  for (const stage of stagesOf(disk.spec)) {
    const { runsIn } = planOf(stage)
    const isScript = stage.driver === 'script' || stage.driver === 'script-filter'
    // A partition is a slice by the time that it is open.
    if (isScript || runsIn === 'native' || stage.driver === 'partition') continue
    if (scriptStageOf(stage) !== undefined) continue
    return `${stage.driver} is in C++ alone`
  }
  return undefined
}

describe('every disk does what disks do', () => {
  it.each(rows.map((row) => [row.name, row] as const))('%s', async (_name, row) => {
    for (let seed = firstSeed; seed < firstSeed + seeds; seed++) {
      const subject = row.make(world)
      try {
        const reason = impossible(subject.disk)
        if (reason !== undefined) {
          // It says so itself, in one line with a remedy.
          await expect(world.backend.serve('4000:xvda', subject.disk)).rejects.toMatchObject({
            code: 'ERR_VBD_UNSUPPORTED',
          })
          return
        }
        await exercise(subject, row.name, seed)
        expect(world.engine.resources()).toMatchObject({ vbds: 0, disks: 0 })
      } catch (cause) {
        const replay = `VBDKIT_SEED=${seed} npx vitest run test/conformance -t '${row.name}'`
        throw new Error(`${cause}\nreplay: ${replay}`, { cause })
      } finally {
        world.dropFolders()
      }
    }
  })
})

/** All stages of these rows, with where they run. */
function stagesIn(made: readonly Subject[]): Set<string> {
  const found = new Set<string>()
  const visit = ({ name, runsIn, below }: PlannedStage) => {
    found.add(`${name} ${runsIn}`)
    for (const one of below) visit(one)
  }
  for (const { disk } of made) if (impossible(disk) === undefined) visit(planOf(disk.spec))
  return found
}

describe('the table', () => {
  it('has every driver and every filter that the library exports', () => {
    const missing = exportedMakers().filter(
      (name) => !rows.some(({ of }) => of.some((maker) => maker.name === name)),
    )
    expect(missing).toEqual([])
  })

  it('has each stage that C++ and scripts have in both', () => {
    const made = rows.map((row) => row.make(world))
    const found = stagesIn(made)
    const stages = made.flatMap(({ disk }) => [...stagesOf(disk.spec)])
    for (const stage of stages) {
      if (stage.driver === 'script' || stage.driver === 'script-filter') continue
      expect(found).toContain(`${stage.driver} native`)
      if (scriptStageOf(stage) !== undefined) expect(found).toContain(`${stage.driver} script`)
    }
    world.dropFolders()
  })

  it('would miss a driver that has no row', () => {
    const index = fileURLToPath(new URL('../../lib/index.ts', import.meta.url))
    expect(readFileSync(index, 'utf8')).toContain("from './disk/drivers.js'")
    expect(exportedMakers()).toEqual(
      expect.arrayContaining(['file', 'nullDisk', 'encrypt', 'overlaid']),
    )
    expect(exportedMakers()).not.toContain('parseSize')
  })
})
