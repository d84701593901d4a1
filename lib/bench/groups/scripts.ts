/**
 * Scripts: what a disk in TypeScript costs against one in C++, and what a chain of native stages costs over the disk
 * alone. The script shares its processor with the reactor, as everything of a backend does here: most of what it costs
 * is the scheduler going to and fro between the two. Its channel by itself is in micro.ts.
 */
import type { MeasuredDisk } from '../backend_process.js'
import { type Context, compare, type Measured, settle } from '../context.js'
import type { LoadMode, Rings } from '../world.js'
import { diskOf, mediaOf, prepare } from './files.js'

const DEPTH = 32
const LEAST_MS = 100
const MEMORY_BYTES = 256 * 1024 ** 2
const PAGE_BYTES = 4096

interface Work {
  readonly workload: string
  readonly mode: LoadMode
  readonly disks: readonly { readonly series: string; readonly disk: MeasuredDisk }[]
  /** The disk keeps what is written to it, and is read only where something was. */
  readonly fill?: boolean
}

/** Measures the group. */
export async function measureScripts(context: Context): Promise<void> {
  await measureMemory(context, 'adaptive', '')
  await measureMemory(context, 'yielding', ', guest that spins')
  if (!context.quick) await measureNothing(context)
  await measureChain(context)
}

/** The first of the disks is what the others are compared with. */
async function measure(context: Context, work: Work): Promise<Measured> {
  const opened: { series: string; rings: Rings }[] = []
  try {
    for (const { series, disk } of work.disks) {
      opened.push({ series, rings: await context.world.connect({ disk }) })
    }
    if (work.fill) for (const { rings } of opened) await rings.fill(MEMORY_BYTES, PAGE_BYTES)
    const { mode } = work
    return await compare(context, {
      group: 'scripts',
      workload: work.workload,
      axis: 'depth',
      at: DEPTH,
      bytesEach: PAGE_BYTES,
      contenders: opened.map(({ series, rings }) =>
        rings.contender({ depth: DEPTH, mode, series }),
      ),
      reference: work.disks[0]!.series,
      leastMs: LEAST_MS,
    })
  } finally {
    for (const { rings } of opened) await rings.close()
  }
}

/** A guest that sleeps and the backend as it is by default; or a guest that spins on the other processor. */
async function measureMemory(context: Context, mode: LoadMode, who: string): Promise<void> {
  const measured = await measure(context, {
    workload: `4 KiB random read, memory disk${who}`,
    mode,
    disks: [
      { series: 'native', disk: { driver: 'memory', sizeBytes: MEMORY_BYTES } },
      {
        series: 'TypeScript',
        disk: { driver: 'script', does: 'memory', sizeBytes: MEMORY_BYTES },
      },
    ],
    fill: true,
  })
  settle(context, {
    id: 'script',
    what: `memory disk in TypeScript, 4 KiB random read, depth 32${who}`,
    against: 'native memory disk',
    figure: measured.speed('TypeScript', 'native'),
    unit: '×',
    better: 'more',
    floor: 0.15,
    goal: 0.25,
  })
}

/** What a request costs more where a script has it that does nothing: both ways, the threads, the call, the copy. */
async function measureNothing(context: Context): Promise<void> {
  await measure(context, {
    workload: '4 KiB random read, disk that does nothing',
    mode: 'yielding',
    disks: [
      { series: 'native', disk: { driver: 'null', sizeBytes: MEMORY_BYTES, noFill: true } },
      {
        series: 'TypeScript',
        disk: { driver: 'script', does: 'nothing', sizeBytes: MEMORY_BYTES },
      },
    ],
  })
}

/** Statistics are the engine's own and never off. */
async function measureChain(context: Context): Promise<void> {
  const medium = mediaOf(context)[0]!
  await prepare(context, medium)
  const base = { driver: 'file', path: medium.path, direct: false, readOnly: true } as const
  const measured = await measure(context, {
    workload: `4 KiB random read, ${medium.name}`,
    mode: 'polling',
    disks: [
      { series: 'file', disk: diskOf(medium, true) },
      { series: 'file, throttled', disk: { driver: 'throttle', base } },
    ],
  })
  settle(context, {
    id: 'chain',
    what: 'file behind a throttle and statistics, depth 32',
    against: 'the file alone',
    figure: measured.speed('file, throttled', 'file'),
    unit: '×',
    better: 'more',
    floor: 0.97,
    goal: 0.99,
  })
}
