/**
 * Files: random and sequential I/O on a file in the page cache, in tmpfs, and on the disk past the cache, each
 * against fio with the best of its engines on the same file at the same depth.
 */
import type { MeasuredDisk } from '../backend_process.js'
import {
  type Context,
  compare,
  type Measured,
  type NativeWish,
  settle,
  skip,
  withNative,
} from '../context.js'
import { versionOf } from '../machine.js'
import { fio } from '../peers/fio.js'
import { nativeProgram } from '../peers/native.js'
import type { Contender } from '../sample.js'
import type { LoadMode, Rings } from '../world.js'

const KIB = 1024
// fio's clocks and threads need some time to settle; disks need more.
const FIO_LEAST_MS = 100
const DIRECT_LEAST_MS = 150

/** Where a file is, and what it is compared with there. */
export interface Medium {
  readonly name: 'page cache' | 'tmpfs' | 'O_DIRECT'
  readonly path: string
  readonly direct: boolean
  readonly fioEngine: 'io_uring' | 'psync'
  /** Who sleeps where one mode is enough. */
  readonly mode: LoadMode
}

/** The media that there are here. */
export function mediaOf(context: Context): Medium[] {
  const { disk, direct, tmpfs } = context.files
  const media: Medium[] = [
    { name: 'page cache', path: disk, direct: false, fioEngine: 'io_uring', mode: 'polling' },
  ]
  // io_uring hands every request to a worker on tmpfs: system calls are the limit there.
  if (tmpfs !== undefined) {
    media.push({ name: 'tmpfs', path: tmpfs, direct: false, fioEngine: 'psync', mode: 'polling' })
  } else skip(context, 'files in memory', 'there is no tmpfs at /dev/shm')
  if (direct) {
    media.push({
      name: 'O_DIRECT',
      path: disk,
      direct: true,
      fioEngine: 'io_uring',
      mode: 'sleeping',
    })
  } else skip(context, 'O_DIRECT', 'the file system refuses it', 'name another folder with --dir')
  return media
}

/** Has the page cache hold what is read through it: writes past it, and time, drop pages. */
export async function prepare(context: Context, medium: Medium): Promise<void> {
  if (!medium.direct) await context.files.warm(medium.path)
}

/** A medium as a disk. */
export function diskOf(medium: Medium, readOnly = false): MeasuredDisk {
  return { driver: 'file', path: medium.path, direct: medium.direct, readOnly }
}

interface Work {
  readonly block: number
  readonly depth: number
  readonly write: boolean
  readonly sequential: boolean
}

function worksOf(quick: boolean, name: Medium['name']): Work[] {
  const random = (depth: number, write: boolean) => ({
    block: 4 * KIB,
    depth,
    write,
    sequential: false,
  })
  const sequential = (block: number, write: boolean) => ({
    block,
    depth: 8,
    write,
    sequential: true,
  })
  if (quick) {
    const depths = { 'page cache': [1, 32], tmpfs: [32], O_DIRECT: [32, 128] }[name]
    return depths.map((depth) => random(depth, false))
  }
  return [
    ...[1, 8, 32, 128].map((depth) => random(depth, false)),
    ...[1, 8, 32, 128].map((depth) => random(depth, true)),
    ...[128 * KIB, 1024 * KIB].flatMap((block) => [
      sequential(block, false),
      sequential(block, true),
    ]),
  ]
}

/** `4 KiB random read, tmpfs` */
export function workloadName(work: Omit<Work, 'depth'>, medium: string): string {
  const pattern = work.sequential ? 'sequential' : 'random'
  return `${work.block / KIB} KiB ${pattern} ${work.write ? 'write' : 'read'}, ${medium}`
}

/** Measures the group. */
export async function measureFiles(context: Context): Promise<void> {
  if (versionOf('fio') === undefined) {
    skip(context, 'fio', 'it is not installed', 'apt-get install fio')
  }
  // Before anything writes: two media may be one file.
  for (const medium of mediaOf(context)) await verify(context, medium)
  for (const medium of mediaOf(context)) {
    await prepare(context, medium)
    for (const work of worksOf(context.quick, medium.name)) await measureWork(context, medium, work)
  }
}

async function verify(context: Context, medium: Medium): Promise<void> {
  for (const transfer of ['persistent', 'copy', 'map'] as const) {
    const blocks = await context.world.verify({
      disk: diskOf(medium),
      transfer,
      blocks: 64,
      filled: true,
      writable: true,
    })
    context.collected.verified.push({ what: `${medium.name}, ${transfer}`, blocks })
  }
}

async function measureWork(context: Context, medium: Medium, work: Work): Promise<void> {
  const segments = work.block / (4 * KIB)
  const indirect = segments > 11
  const ringOrder = work.depth > 32 ? 2 : 0
  const rings = await context.world.connect({
    disk: diskOf(medium),
    load: { segments, indirect, ringOrder, depth: work.depth },
  })
  try {
    const limit = limitOf(context, medium, work)
    const measured = await withRaw(context, medium, work, (raw) =>
      compare(context, {
        group: 'files',
        workload: workloadName(work, medium.name),
        axis: 'depth',
        at: work.depth,
        bytesEach: work.block,
        contenders: [...vbdkit(context, rings, medium, work), ...limit, ...raw],
        ...(limit[0] && { reference: limit[0].series }),
        leastMs: medium.direct ? DIRECT_LEAST_MS : limit.length > 0 ? FIO_LEAST_MS : 0,
      }),
    )
    if (!work.write && !work.sequential) settleReads(context, medium, work, measured)
  } finally {
    await rings.close()
  }
}

/** On the disk it matters who waits how; elsewhere nobody waits. */
function vbdkit(context: Context, rings: Rings, medium: Medium, work: Work): Contender[] {
  const { write, sequential } = work
  const as = (series: string, mode: LoadMode) =>
    rings.contender({ write, sequential, series, mode })
  if (!medium.direct) return [as('vbdkit', medium.mode)]
  const usual = as('vbdkit', 'adaptive')
  if (context.quick) return [usual]
  return [usual, as('vbdkit, sleeping', 'sleeping'), as('vbdkit, polling', 'polling')]
}

function limitOf(context: Context, medium: Medium, work: Work): Contender[] {
  if (versionOf('fio') === undefined) return []
  const { write, sequential, block, depth } = work
  return [
    fio({
      series: `fio ${medium.fioEngine}`,
      engine: medium.fioEngine,
      target: medium.path,
      sizeBytes: context.files.sizeBytes,
      write,
      sequential,
      block,
      depth: medium.fioEngine === 'psync' ? 1 : depth,
      direct: medium.direct,
      cpu: context.cpus.backend,
    }),
  ]
}

/** At depth 1 also what the kernel does without fio and without a ring. */
function withRaw<T>(
  context: Context,
  medium: Medium,
  work: Work,
  body: (raw: Contender[]) => Promise<T>,
): Promise<T> {
  const isRead = work.depth === 1 && !work.write && !work.sequential
  if (!isRead || nativeProgram() === undefined) return body([])
  const { block } = work
  const values = {
    path: medium.path,
    block,
    direct: medium.direct ? 1 : 0,
    cpu: context.cpus.backend,
  }
  const wishes: NativeWish[] = [['preadv2', 'file-reads', values]]
  if (medium.name !== 'tmpfs') wishes.push(['bare io_uring', 'uring-reads', values])
  return withNative(wishes, (...raw) => body(raw))
}

/** W3, W4 and W5. */
function settleReads(context: Context, medium: Medium, work: Work, measured: Measured): void {
  const { depth } = work
  const what = `4 KiB random read, ${medium.name}, depth ${depth}`
  const target = { what, unit: '×', better: 'more' } as const
  const fioSeries = `fio ${medium.fioEngine}`
  const speed = (over: string) => measured.speed('vbdkit', over)
  const has = (series: string) => measured.of(series).length > 0
  if (medium.name === 'page cache' && depth >= 32 && has(fioSeries)) {
    const figure = speed(fioSeries)
    settle(context, { ...target, id: 'W3', against: fioSeries, figure, floor: 0.95, goal: 1 })
  }
  if (medium.name === 'page cache' && depth === 1 && has('bare io_uring')) {
    const figure = speed('bare io_uring')
    settle(context, {
      ...target,
      id: 'W3',
      against: 'bare io_uring',
      figure,
      floor: 0.8,
      goal: 0.9,
    })
  }
  if (medium.name === 'tmpfs' && depth === 32 && has(fioSeries)) {
    const figure = speed(fioSeries)
    settle(context, { ...target, id: 'W4', against: fioSeries, figure, floor: 0.85, goal: 0.95 })
  }
  if (medium.name === 'O_DIRECT' && depth >= 32 && has(fioSeries)) {
    settleDirect(context, what, measured, fioSeries)
  }
}

/** W5: the backend as it is by default, and one that never polls; the guest sleeps in both. */
function settleDirect(context: Context, what: string, measured: Measured, over: string): void {
  for (const [series, how] of [
    ['vbdkit', ''],
    ['vbdkit, sleeping', ', never polling'],
  ] as const) {
    if (measured.of(series).length === 0) continue
    settle(context, {
      id: 'W5',
      what: what + how,
      against: over,
      figure: measured.speed(series, over),
      unit: '×',
      better: 'more',
      floor: 0.97,
      goal: 1,
    })
    settle(context, {
      id: 'W5',
      what: `${what}${how}: CPU of each`,
      against: `${over}'s CPU`,
      figure: measured.cpu(series, over),
      unit: '×',
      better: 'less',
      goal: 0.8,
    })
  }
}
