/**
 * Engines: the native engine against the one in JavaScript, on the ring alone, on files and on the disk, and with the
 * event loop busy.
 */

import { toVbdError } from '../../errors.js'
import type { MeasuredDisk } from '../backend_process.js'
import { type Context, compare, type Measured, settle, skip } from '../context.js'
import type { Rings } from '../world.js'
import { diskOf, mediaOf, prepare } from './files.js'

const LEAST_MS = 100

interface Work {
  readonly workload: string
  readonly disk: MeasuredDisk
  readonly depth: number
  readonly mode: 'polling' | 'sleeping'
  /** What of it has a floor. */
  readonly target?: { of: 'speed' | 'cpu'; what: string; floor?: number; goal: number }
}

function worksOf(context: Context): Work[] {
  const works: Work[] = [
    {
      workload: 'ring only',
      disk: { driver: 'null', sizeBytes: 1024 ** 3, noFill: true },
      depth: 32,
      mode: 'polling',
    },
  ]
  for (const medium of mediaOf(context)) {
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

/** Measures the group. */
export async function measureEngines(context: Context): Promise<void> {
  try {
    await context.world.backend('js')
  } catch (thrown) {
    const { message, remedy } = toVbdError(thrown)
    return skip(context, 'native against JavaScript', message, remedy)
  }
  for (const medium of mediaOf(context)) await prepare(context, medium)
  for (const work of worksOf(context)) await measureWork(context, work)
}

async function measureWork(context: Context, work: Work): Promise<void> {
  const opened: Rings[] = []
  try {
    for (const engine of ['native', 'js'] as const) {
      opened.push(await context.world.connect({ engine, disk: work.disk }))
    }
    const [native, js] = opened
    const load = { depth: work.depth, mode: work.mode }
    const measured = await compare(context, {
      group: 'engines',
      workload: work.workload,
      axis: 'depth',
      at: work.depth,
      bytesEach: 4096,
      contenders: [
        native!.contender({ ...load, series: 'native' }),
        js!.contender({ ...load, series: 'JavaScript' }),
      ],
      reference: 'JavaScript',
      leastMs: LEAST_MS,
    })
    settleWork(context, work, measured)
  } finally {
    for (const rings of opened) await rings.close()
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
