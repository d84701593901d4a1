/**
 * Latency: what a ring adds to an operation when there is one at a time, polled and event driven, on a disk that does
 * nothing and on real ones.
 */
import { type Context, compare, nanoseconds, settle, withNative } from '../context.js'
import { figureOf } from '../figures.js'
import { nativeProgram } from '../peers/native.js'
import type { Sample } from '../sample.js'
import { diskOf, mediaOf, prepare } from './files.js'

const DIRECT_LEAST_MS = 200
const EVENT_LEAST_MS = 100

/** Measures the group. */
export async function measureLatency(context: Context): Promise<void> {
  await measureBare(context)
  for (const medium of mediaOf(context)) {
    if (context.quick && medium.name !== 'O_DIRECT') continue
    await prepare(context, medium)
    const rings = await context.world.connect({ disk: diskOf(medium) })
    const values = {
      path: medium.path,
      direct: medium.direct ? 1 : 0,
      cpu: context.cpus.backend,
    }
    const raw = nativeProgram() === undefined ? [] : [['preadv2', 'file-reads', values] as const]
    try {
      await withNative(raw, (...reads) =>
        compare(context, {
          group: 'latency',
          workload: `4 KiB random read, ${medium.name}`,
          axis: 'depth',
          at: 1,
          bytesEach: 4096,
          contenders: [
            rings.contender({ series: 'vbdkit, polling', depth: 1, mode: 'polling' }),
            rings.contender({ series: 'vbdkit, sleeping', depth: 1, mode: 'sleeping' }),
            ...reads,
          ],
          ...(reads[0] && { reference: reads[0].series }),
          leastMs: medium.direct ? DIRECT_LEAST_MS : EVENT_LEAST_MS,
        }),
      )
    } finally {
      await rings.close()
    }
  }
}

/** The ring alone against the two ways in which processors tell each other something: W6. */
async function measureBare(context: Context): Promise<void> {
  const { world, cpus } = context
  const pair = { cpu: cpus.guest, 'peer-cpu': cpus.backend }
  const limits =
    nativeProgram() === undefined
      ? []
      : ([
          ['cache line ping-pong', 'ping-pong', { kind: 'line', ...pair }],
          ['eventfd ping-pong', 'ping-pong', { kind: 'eventfd', ...pair }],
        ] as const)
  const rings = await world.connect({
    disk: { driver: 'null', sizeBytes: 1024 ** 3, noFill: true },
  })
  try {
    const measured = await withNative(limits, (...pings) =>
      compare(context, {
        group: 'latency',
        workload: 'ring only',
        axis: 'depth',
        at: 1,
        bytesEach: 4096,
        contenders: [
          rings.contender({ series: 'vbdkit, polling', depth: 1, mode: 'polling' }),
          rings.contender({ series: 'vbdkit, sleeping', depth: 1, mode: 'sleeping' }),
          ...pings,
        ],
        leastMs: EVENT_LEAST_MS,
      }),
    )
    if (limits.length === 0) return
    settleLatency(context, (series) => measured.of(series))
  } finally {
    await rings.close()
  }
}

function settleLatency(context: Context, of: (series: string) => readonly Sample[]): void {
  const p50 = (series: string) => of(series).map(({ latencyNs }) => latencyNs?.p50 ?? Number.NaN)
  const lines = nanoseconds(of('cache line ping-pong'))
  settle(context, {
    id: 'W6',
    what: 'latency added at depth 1, polled (p50)',
    against: 'cache line ping-pong',
    figure: figureOf(p50('vbdkit, polling').map((ns, i) => (ns - lines[i]!) / 1000)),
    unit: 'µs',
    better: 'less',
    floor: 0.6,
    goal: 0.3,
  })
  const events = p50('eventfd ping-pong')
  settle(context, {
    id: 'W6',
    what: 'latency at depth 1, event driven (p50)',
    against: 'eventfd ping-pong',
    figure: figureOf(p50('vbdkit, sleeping').map((ns, i) => ns / events[i]!)),
    unit: '×',
    better: 'less',
    floor: 1.3,
    goal: 1.15,
  })
}
