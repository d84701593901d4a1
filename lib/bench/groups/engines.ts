/**
 * Engines: the native engine against the one in JavaScript, on the ring alone, on files and on the disk. JavaScript
 * does its I/O through node:fs, or with one native call of io_uring for each pass: what is left then is what it costs
 * itself.
 */
import { toVbdError } from '../../errors.js'
import type { MeasuredDisk } from '../backend_process.js'
import { type Context, compare, type Measured, settle, skip, withNative } from '../context.js'
import { VhostServer } from '../peers/daemons.js'
import type { LoadMode, Rings } from '../world.js'
import { diskOf, type Medium, mediaOf, prepare } from './files.js'

const LEAST_MS = 100
// JavaScript sleeps twice for each request at depth 1: short samples say more of the scheduler than of it.
const DEPTH_1_LEAST_MS = 300
const NULL_DISK = { driver: 'null', sizeBytes: 1024 ** 3, noFill: true } as const

interface Work {
  readonly workload: string
  readonly disk: MeasuredDisk
  readonly depth: number
  readonly mode: LoadMode
  /** What of it has a floor. */
  readonly target?: { of: 'speed' | 'cpu'; what: string; floor?: number; goal: number }
}

function worksOf(context: Context): Work[] {
  const works: Work[] = [
    {
      workload: 'ring only',
      disk: NULL_DISK,
      depth: 32,
      mode: 'polling',
    },
  ]
  for (const medium of mediaOf(context)) {
    if (context.quick && medium.name === 'tmpfs') continue
    const disk = diskOf(medium, true)
    const base = { workload: `4 KiB random read, ${medium.name}`, disk, mode: medium.mode }
    if (medium.name === 'page cache') {
      const target = { of: 'speed', what: 'cached file through fs.read' } as const
      works.push({ ...base, depth: 1, target: { ...target, floor: 8, goal: 10 } })
      works.push({ ...base, depth: 32, target: { ...target, floor: 4, goal: 5 } })
    } else if (medium.direct) {
      const target = { of: 'cpu', what: 'CPU of each disk I/O', floor: 4, goal: 5 } as const
      works.push({ ...base, depth: 32, target })
    } else works.push({ ...base, depth: 32 })
  }
  return works
}

const ENGINES = [
  { series: 'native', engine: 'native' },
  { series: 'JavaScript', engine: 'js' },
  { series: 'JavaScript, io_uring', engine: 'js-uring' },
] as const

/** Measures the group. */
export async function measureEngines(context: Context): Promise<void> {
  for (const engine of ['js', 'js-uring'] as const) {
    try {
      await context.world.backend(engine)
    } catch (thrown) {
      const { message, remedy } = toVbdError(thrown)
      return skip(context, 'native against JavaScript', message, remedy)
    }
  }
  for (const medium of mediaOf(context)) {
    await prepare(context, medium)
    await verify(context, medium)
  }
  for (const work of worksOf(context)) await measureWork(context, work)
  await measureRing(context)
}

async function verify({ world, collected }: Context, medium: Medium): Promise<void> {
  const disk = diskOf(medium, true)
  for (const { series, engine } of ENGINES) {
    const what = { engine, disk, transfer: 'persistent', filled: true, writable: false } as const
    const blocks = await world.verify({ ...what, blocks: 64 }).catch((thrown) => {
      // What was measured before may have written to the file.
      if (toVbdError(thrown).code !== 'ERR_VBD_IO') throw thrown
      return 0
    })
    if (blocks > 0) collected.verified.push({ what: `${medium.name}, ${series}`, blocks })
  }
}

async function measureWork(context: Context, work: Work): Promise<void> {
  const opened: { series: string; rings: Rings }[] = []
  // Where no file is read there is nothing that io_uring could do.
  const engines = work.disk.driver === 'file' ? ENGINES : ENGINES.slice(0, 2)
  try {
    for (const { series, engine } of engines) {
      opened.push({ series, rings: await context.world.connect({ engine, disk: work.disk }) })
    }
    const { depth, mode } = work
    const measured = await compare(context, {
      group: 'engines',
      workload: work.workload,
      axis: 'depth',
      at: depth,
      bytesEach: 4096,
      contenders: opened.map(({ series, rings }) => rings.contender({ depth, mode, series })),
      reference: 'JavaScript',
      leastMs: depth === 1 ? DEPTH_1_LEAST_MS : LEAST_MS,
    })
    settleWork(context, work, measured)
  } finally {
    for (const { rings } of opened) await rings.close()
  }
}

const QEMU = 'qemu vhost-user-blk, null-co'

/** The ring alone in JavaScript, against a peer in C. */
async function measureRing(context: Context): Promise<void> {
  const qemu = await VhostServer.start(
    context,
    'null-co,node-name=disk,size=1073741824,read-zeroes=off',
  )
  if (qemu === undefined) return
  const rings = await context.world.connect({ engine: 'js', disk: NULL_DISK })
  try {
    const measured = await withNative([qemu.client(QEMU, { depth: 32, poll: 1 })], (client) =>
      compare(context, {
        group: 'engines',
        workload: 'ring only, against QEMU',
        axis: 'depth',
        at: 32,
        bytesEach: 4096,
        contenders: [
          rings.contender({ depth: 32, mode: 'polling', series: 'JavaScript' }),
          qemu.contender(client),
        ],
        reference: QEMU,
      }),
    )
    settle(context, {
      id: 'JS',
      what: 'JavaScript engine, ring only, depth 32',
      against: QEMU,
      figure: measured.speed('JavaScript', QEMU),
      unit: '×',
      better: 'more',
      floor: 1,
      goal: 5,
    })
  } finally {
    await rings.close()
    await qemu.stop()
  }
}

/** W8. */
function settleWork(context: Context, work: Work, measured: Measured): void {
  if (work.target === undefined) return
  const { of, what, floor, goal } = work.target
  settle(context, {
    id: 'W8',
    what: `${what}, depth ${work.depth}`,
    against: 'JavaScript engine',
    figure:
      of === 'speed'
        ? measured.speed('native', 'JavaScript')
        : measured.cpu('JavaScript', 'native'),
    unit: '×',
    better: 'more',
    ...(floor !== undefined && { floor }),
    goal,
  })
}
