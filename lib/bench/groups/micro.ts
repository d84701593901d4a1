/**
 * Micro: the parts of the engine one at a time: parsing, finding a grant, the page pool, the channel to a script, and a
 * round trip to xenstore.
 */
import { type Context, compare, type NativeWish, settle, skip, withNative } from '../context.js'
import { figureOf } from '../figures.js'
import { BENCH_REMEDY, nativeProgram } from '../peers/native.js'
import { cpuUs } from '../sample.js'

const LOOKUPS = [
  { series: 'vbdkit', kind: 'persistent' },
  { series: 'red-black tree', kind: 'tree' },
  { series: 'flat array', kind: 'flat' },
] as const

/** Measures the group. */
export async function measureMicro(context: Context): Promise<void> {
  await measureXenstore(context)
  if (nativeProgram() === undefined) {
    return skip(context, 'parts of the native engine', 'vbdkit-bench is not built', BENCH_REMEDY)
  }
  const cpu = context.cpus.backend
  for (const protocol of [64, 32]) {
    for (const segments of [1, 11]) {
      const wish: NativeWish = ['vbdkit', 'parse', { segments, protocol, cpu }]
      await withNative([wish], (parse) =>
        compare(context, {
          group: 'micro',
          workload: `request parse, ${protocol}-bit ABI`,
          axis: 'segments',
          at: segments,
          bytesEach: 0,
          contenders: [parse],
        }),
      )
    }
  }
  await withNative([['vbdkit', 'page-pool', { pages: 11, cpu }]], (pool) =>
    compare(context, {
      group: 'micro',
      workload: 'page pool, taken and given back',
      axis: 'segments',
      at: 11,
      bytesEach: 0,
      contenders: [pool],
    }),
  )
  for (const entries of [1056, 1_000_000]) await measureLookup(context, entries)
  await measureChannel(context)
}

/** Both ways, with the copy of 4 KiB and without a script: C++ answers, on the same thread. */
async function measureChannel(context: Context): Promise<void> {
  const wish: NativeWish = ['vbdkit', 'script-channel', { depth: 32, cpu: context.cpus.backend }]
  const measured = await withNative([wish], (channel) =>
    compare(context, {
      group: 'micro',
      workload: 'script channel, there and back',
      axis: 'depth',
      at: 32,
      bytesEach: 4096,
      contenders: [channel],
    }),
  )
  settle(context, {
    id: 'script',
    what: 'script channel, there and back, depth 32',
    against: 'nothing',
    figure: figureOf(measured.of('vbdkit').map((sample) => cpuUs(sample) * 1000)),
    unit: 'ns',
    better: 'less',
    floor: 500,
    goal: 250,
  })
}

async function measureLookup(context: Context, entries: number): Promise<void> {
  const wishes = LOOKUPS.map(({ series, kind }): NativeWish => {
    return [series, 'lookup', { kind, entries, cpu: context.cpus.backend }]
  })
  const measured = await withNative(wishes, (...contenders) =>
    compare(context, {
      group: 'micro',
      workload: 'grant lookup, dependent',
      axis: 'entries',
      at: entries,
      bytesEach: 0,
      contenders,
      reference: 'red-black tree',
      // Long enough that what the others left in the caches does not count.
      leastMs: entries > 10_000 ? 300 : 0,
    }),
  )
  settle(context, {
    id: 'lookup',
    what: `grant lookup among ${entries.toLocaleString('en')}, dependent`,
    against: 'a flat array, 4.7 and 195 ns',
    figure: figureOf(measured.of('vbdkit').map((sample) => cpuUs(sample) * 1000)),
    unit: 'ns',
    better: 'less',
    ...(entries === 1056 ? { floor: 10, goal: 4.7 } : { floor: 250, goal: 195 }),
  })
}

async function measureXenstore(context: Context): Promise<void> {
  const { world } = context
  const socket = world.mock.paths.xenstore
  await compare(context, {
    group: 'micro',
    workload: 'xenstore round trip',
    axis: 'depth',
    at: 1,
    bytesEach: 0,
    contenders: [
      {
        series: 'vbdkit',
        measure: (milliseconds) => world.guests.call('xenstore', { socket, milliseconds }),
      },
    ],
  })
}
