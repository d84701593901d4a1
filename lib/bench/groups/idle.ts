/**
 * Idle and disturbed: what attached rings cost while nothing happens, and what a busy event loop does to native I/O.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { type Context, compare, settle } from '../context.js'
import { figureOf } from '../figures.js'
import { diskOf, mediaOf, prepare } from './files.js'

const RINGS = 32
const MIB = 1024 ** 2

/** Measures the group. */
export async function measureIdle(context: Context): Promise<void> {
  await measureAttached(context)
  await measureDisturbed(context)
}

/** W11. */
async function measureAttached(context: Context): Promise<void> {
  const { world, quick, signal } = context
  const backend = await world.backend('native')
  const disk = { driver: 'null', sizeBytes: 1024 * MIB } as const
  // Several times: what the first guests of a process cost, and garbage, is not what a ring costs.
  const costs: number[] = []
  for (let i = 0; i < 3; i++) {
    const before = await backend.call('memory')
    const rings = await world.connect({ disk, guests: RINGS })
    costs.push(((await backend.call('memory')) - before) / RINGS / 1024)
    await rings.close()
  }
  const rings = await world.connect({ disk, guests: RINGS })
  try {
    await world.poll(backend, 50)
    context.note(`${RINGS} idle rings`)
    const shares: number[] = []
    const seconds = quick ? 2 : 10
    for (let i = 0; i < 7; i++) {
      const start = performance.now()
      const cpuBefore = backend.cpuNs()
      await delay((seconds * 1000) / 7, undefined, { signal })
      const elapsedNs = (performance.now() - start) * 1e6
      shares.push((100 * (backend.cpuNs() - cpuBefore)) / elapsedNs)
    }
    settle(context, {
      id: 'W11',
      what: `${RINGS} attached idle rings: CPU`,
      against: 'one processor',
      figure: figureOf(shares),
      unit: '%',
      better: 'less',
      floor: 1,
      goal: 0.5,
    })
    settle(context, {
      id: 'W11',
      what: 'memory of an attached ring',
      against: 'private memory of the backend',
      figure: figureOf([Math.max(0, Math.min(...costs))]),
      unit: 'KiB',
      better: 'less',
      floor: 128,
      goal: 64,
    })
  } finally {
    await rings.close()
  }
}

/** W9. */
async function measureDisturbed(context: Context): Promise<void> {
  const medium = mediaOf(context)[0]!
  await prepare(context, medium)
  const rings = await context.world.connect({ disk: diskOf(medium) })
  const load = { depth: 32, mode: 'polling' } as const
  const disturbed = {
    series: 'event loop busy',
    async measure(milliseconds: number) {
      await rings.backend.call('disturb', true)
      try {
        return await rings.measure({ ...load, series: 'event loop busy' }, milliseconds)
      } finally {
        await rings.backend.call('disturb', false)
      }
    },
  }
  try {
    const measured = await compare(context, {
      group: 'idle',
      workload: `4 KiB random read, ${medium.name}, p99`,
      axis: 'depth',
      at: load.depth,
      bytesEach: 4096,
      contenders: [rings.contender({ ...load, series: 'event loop idle' }), disturbed],
      reference: 'event loop idle',
      leastMs: 100,
    })
    const p99 = (series: string) =>
      measured.of(series).map(({ latencyNs }) => latencyNs?.p99 ?? Number.NaN)
    const idle = p99('event loop idle')
    settle(context, {
      id: 'W9',
      what: 'p99 of native I/O while the event loop is blocked 5 ms in every 20',
      against: 'unblocked',
      figure: figureOf(p99('event loop busy').map((ns, i) => ns / idle[i]!)),
      unit: '×',
      better: 'less',
      floor: 2,
      goal: 1.5,
    })
  } finally {
    await rings.close()
  }
}
