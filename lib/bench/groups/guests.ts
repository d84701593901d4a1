/**
 * Guests: 1 to 32 of them on one reactor, with persistent grants and without, on a disk that does nothing and on one in
 * memory. What mapping and unmapping costs grows with the guests; what is persistent does not.
 */
import { type Context, compare, type Measured, settle } from '../context.js'
import { fairness, figureOf, ratioOf } from '../figures.js'
import { perSecond, type Sample } from '../sample.js'
import type { RingsOptions } from '../world.js'

const COUNTS = [1, 2, 5, 10, 16, 32]
const QUICK_COUNTS = { null: [1, 5, 32], memory: [1, 32] }
const MIB = 1024 ** 2
const GIB = 1024 ** 3

const STRATEGIES = [
  { series: 'persistent', transfer: 'persistent', persistent: true },
  { series: 'copy', transfer: 'copy', persistent: false },
  { series: 'map', transfer: 'map', persistent: false },
] as const

/** Measures the group. */
export async function measureGuests(context: Context): Promise<void> {
  for (const kind of ['null', 'memory'] as const) {
    const byCount = new Map<number, Measured>()
    for (const guests of context.quick ? QUICK_COUNTS[kind] : COUNTS)
      byCount.set(guests, await measureCount(context, kind, guests))
    settleScaling(context, kind, byCount)
    if (kind === 'memory') settleStrategies(context, byCount.get(1)!)
  }
}

async function measureCount(
  context: Context,
  kind: 'null' | 'memory',
  guests: number,
): Promise<Measured> {
  const { world } = context
  // Together they have as much memory as one alone, so that only their number differs.
  const sizeBytes = kind === 'null' ? GIB : (256 * MIB) / guests - (((256 * MIB) / guests) % 4096)
  const disk: RingsOptions['disk'] =
    kind === 'null' ? { driver: 'null', sizeBytes, noFill: true } : { driver: 'memory', sizeBytes }
  const connecting = STRATEGIES.map(async ({ series, transfer, persistent }) => ({
    series,
    rings: await world.connect({ disk, transfer, guests, load: { persistent } }),
  }))
  try {
    const opened = await Promise.all(connecting)
    if (kind === 'memory') for (const { rings } of opened) await rings.fill(sizeBytes, 4096)
    return await compare(context, {
      group: 'guests',
      workload: kind === 'null' ? 'ring only, depth 32' : 'memory disk, random read, depth 32',
      axis: 'guests',
      at: guests,
      bytesEach: 4096,
      contenders: opened.map(({ series, rings }) => rings.contender({ series, mode: 'polling' })),
      reference: 'map',
    })
  } finally {
    const settled = await Promise.allSettled(connecting)
    await Promise.all(
      settled.map((each) => each.status === 'fulfilled' && each.value.rings.close()),
    )
  }
}

/** W7: 32 guests against one, and how evenly they are served. */
function settleScaling(
  context: Context,
  kind: 'null' | 'memory',
  byCount: ReadonlyMap<number, Measured>,
): void {
  const speeds = (guests: number) => byCount.get(guests)!.of('persistent').map(perSecond)
  const what = kind === 'null' ? 'ring only' : 'memory disk'
  settle(context, {
    id: 'W7',
    what: `32 guests on one reactor, persistent, ${what}`,
    against: '1 guest',
    figure: ratioOf(speeds(32), speeds(1)),
    unit: '×',
    better: 'more',
    ...(kind === 'null' ? { floor: 1, goal: 2 } : { floor: 0.75, goal: 0.85 }),
  })
  const even = byCount.get(32)!.of('persistent').map(fairnessOf)
  settle(context, {
    id: 'W7',
    what: `fairness among 32 guests, ${what}`,
    against: "Jain's index",
    figure: figureOf(even),
    unit: '',
    better: 'more',
    floor: 0.95,
    goal: 0.98,
  })
}

function fairnessOf(sample: Sample): number {
  return fairness(sample.shares ?? [])
}

function settleStrategies(context: Context, measured: Measured): void {
  const target = { id: 'W7', unit: '×', better: 'more', against: 'map and unmap' } as const
  settle(context, {
    ...target,
    what: 'persistent grants, memory disk, 1 guest',
    figure: measured.speed('persistent', 'map'),
    floor: 8,
    goal: 12,
  })
  settle(context, {
    ...target,
    what: 'grant copy, memory disk, 1 guest',
    figure: measured.speed('copy', 'map'),
    floor: 3,
    goal: 4,
  })
}
