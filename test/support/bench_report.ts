/** A report of the benchmark with rows of every group, made up but of the shape that real ones have. */
import { type Figure, figureOf } from '../../lib/bench/figures.js'
import { GROUPS, type Report, type Row, type Target, verdictOf } from '../../lib/bench/report.js'

function around(median: number): Figure {
  return figureOf([0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.2].map((factor) => median * factor))
}

function row(
  given: Pick<Row, 'group' | 'workload' | 'series' | 'at' | 'axis'>,
  speed: number,
): Row {
  const us = 1e6 / speed
  return {
    ...given,
    bytesEach: 4096,
    perSecond: around(speed),
    cpuUs: around(us),
    latencyUs: { p50: around(us), p99: around(us * 3), p999: around(us * 20) },
    ratio: { to: 'the other', figure: around(1.5) },
    cpuRatio: { to: 'the other', figure: around(0.5) },
  }
}

function rows(): Row[] {
  const media = ['page cache', 'tmpfs', 'O_DIRECT']
  const random = media.map((medium) => `4 KiB random read, ${medium}`)
  return [
    ...['vbdkit', 'bare ring', 'qemu vhost-user-blk, null-co'].map((series, i) =>
      row({ group: 'ring', workload: 'ring only', series, at: 1, axis: 'segments' }, 2e7 / (i + 1)),
    ),
    ...random.flatMap((workload) =>
      ['vbdkit', 'fio io_uring'].flatMap((series, i) =>
        [1, 8, 32, 128].map((at) =>
          row({ group: 'files', workload, series, at, axis: 'depth' }, 1e5 * (at + i)),
        ),
      ),
    ),
    ...['persistent', 'copy', 'map'].flatMap((series, i) =>
      [1, 2, 32].map((at) =>
        row({ group: 'guests', workload: 'ring only', series, at, axis: 'guests' }, 1e7 / 8 ** i),
      ),
    ),
    ...['vbdkit, polling', 'vbdkit, sleeping', 'preadv2'].map((series, i) =>
      row({ group: 'latency', workload: random[0]!, series, at: 1, axis: 'depth' }, 1e6 / 9 ** i),
    ),
    ...['vbdkit', 'qemu vhost-user-blk', 'nbdkit NBD'].map((series, i) =>
      row({ group: 'peers', workload: random[0]!, series, at: 32, axis: 'depth' }, 5e5 / (i + 1)),
    ),
    ...['vbdkit', 'red-black tree', 'flat array'].map((series, i) =>
      row(
        { group: 'micro', workload: 'grant lookup', series, at: 1056, axis: 'entries' },
        1e8 / (i + 1),
      ),
    ),
    ...['native', 'JavaScript'].map((series) =>
      row({ group: 'engines', workload: random[0]!, series, at: 32, axis: 'depth' }, 5e5),
    ),
    ...['native', 'TypeScript'].map((series) =>
      row({ group: 'scripts', workload: 'memory disk', series, at: 32, axis: 'depth' }, 1e6),
    ),
  ]
}

function target(id: string, what: string, median: number): Target {
  const given = { figure: around(median), better: 'more', floor: 3, goal: 8 } as const
  return { id, what, against: 'a peer', unit: '×', ...given, verdict: verdictOf(given) }
}

/** The report; its texts hold what HTML must not take for markup. */
export function fullReport(): Report {
  return {
    vbdkit: '1.2.3',
    startedAt: '2026-01-02T03:04:05.000Z',
    seconds: 77,
    quick: true,
    groups: GROUPS,
    machine: {
      cpu: 'A <processor> & more',
      processors: 2,
      guestCpu: 0,
      backendCpu: 1,
      kernel: '6.1',
      node: 'v20',
      memoryBytes: 2 ** 34,
      othersBusy: 0.5,
      raisedPriority: true,
      versions: { fio: 'fio-3' },
    },
    rounds: 7,
    roundMs: 20,
    targets: [target('W1', 'ring only', 9), target('W2', 'memory', 4), target('W3', 'file', 1)],
    rows: rows(),
    verified: [{ what: 'a file', blocks: 64 }],
    skipped: [{ what: '</script><b>a peer', why: 'not installed', remedy: 'apt-get install it' }],
  }
}
