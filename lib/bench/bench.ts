/**
 * Bench: the whole run. Sets up what is measured in, runs the groups in order, and makes the report. Owns the world and
 * the test files, and gives them back however it ends.
 */
import { setMaxListeners } from 'node:events'
import { throwIfAborted } from '../errors.js'
import { type Collected, type Context, type Settings, skip } from './context.js'
import { makeTestFiles } from './files.js'
import { measureEngines } from './groups/engines.js'
import { measureFiles } from './groups/files.js'
import { measureGuests } from './groups/guests.js'
import { measureIdle } from './groups/idle.js'
import { measureLatency } from './groups/latency.js'
import { measureMicro } from './groups/micro.js'
import { measurePeers } from './groups/peers.js'
import { measureRing } from './groups/ring.js'
import { measureScripts } from './groups/scripts.js'
import { busyProcessors, chooseCpus, describeMachine, raisePriority, versionOf } from './machine.js'
import { BENCH_REMEDY, nativeProgram } from './peers/native.js'
import type { Group, Machine, Report, Skipped } from './report.js'
import { World } from './world.js'

export interface BenchOptions {
  readonly vbdkit: string
  readonly quick: boolean
  readonly groups: readonly Group[]
  /** 7 up; by default 15, with `quick` 7. */
  readonly rounds?: number | undefined
  /** Where the test file on a disk goes. */
  readonly dir?: string | undefined
  /** The processors of the guests and of the backend. */
  readonly cpus?: readonly number[] | undefined
  readonly signal: AbortSignal
  /** Called before each comparison. `done` of `total` groups are finished. */
  onProgress(progress: { group: Group; done: number; total: number; note: string }): void
}

const MEASURE: Readonly<Record<Group, (context: Context) => Promise<void>>> = {
  ring: measureRing,
  files: measureFiles,
  guests: measureGuests,
  latency: measureLatency,
  peers: measurePeers,
  micro: measureMicro,
  engines: measureEngines,
  scripts: measureScripts,
  idle: measureIdle,
}

const QUICK: Settings = { quick: true, rounds: 7, roundMs: 20 }
const WHOLE: Settings = { quick: false, rounds: 15, roundMs: 100 }
const MIB = 1024 ** 2
const PROGRAMS = ['fio', 'qemu-storage-daemon', 'nbdkit']
const NEEDS_PROGRAM: readonly Group[] = ['ring', 'files', 'latency', 'peers']

/** How long others are watched before and after, and the rest of the time is ours. */
const WATCH_MS = 300

/**
 * Runs the benchmark.
 *
 * @throws ERR_VBD_UNSUPPORTED without a second processor or the addon, ERR_VBD_BACKING where the files cannot be made,
 *   ERR_VBD_IO when data comes out wrong, ERR_VBD_ABORTED
 */
export async function runBench(options: BenchOptions): Promise<Report> {
  const { signal, quick, groups } = options
  const settings = quick ? QUICK : WHOLE
  const rounds = options.rounds ?? settings.rounds
  const cpus = chooseCpus(options.cpus)
  setMaxListeners(0, signal)
  const startedAt = new Date().toISOString()
  const start = performance.now()
  const busyBefore = await busyProcessors(WATCH_MS)
  // A look at it is not worth that everyone else waits.
  const putBack = quick ? undefined : raisePriority()
  const collected: Collected = { rows: [], targets: [], verified: [], skipped: [] }
  try {
    await measureGroups(options, { ...settings, rounds, cpus, collected, signal })
  } finally {
    putBack?.()
  }
  const machine: Machine = {
    ...describeMachine(),
    guestCpu: cpus.guest,
    backendCpu: cpus.backend,
    othersBusy: Math.max(busyBefore, await busyProcessors(WATCH_MS)),
    raisedPriority: putBack !== undefined,
    versions: versions(),
  }
  return {
    vbdkit: options.vbdkit,
    startedAt,
    seconds: (performance.now() - start) / 1000,
    quick,
    groups,
    machine,
    rounds,
    roundMs: settings.roundMs,
    ...collected,
    skipped: distinct(collected.skipped),
  }
}

async function measureGroups(
  options: BenchOptions,
  given: Omit<Context, 'note' | 'world' | 'files'>,
): Promise<void> {
  const files = await makeTestFiles(options.dir, (given.quick ? 256 : 1024) * MIB, options.signal)
  try {
    const world = await World.start(given.cpus)
    try {
      await runGroups(options, { ...given, world, files })
    } finally {
      await world.close()
    }
  } finally {
    files.close()
  }
}

async function runGroups(options: BenchOptions, given: Omit<Context, 'note'>): Promise<void> {
  const total = options.groups.length
  for (const [done, group] of options.groups.entries()) {
    throwIfAborted(options.signal)
    const note = (what: string) => options.onProgress({ group, done, total, note: what })
    const context: Context = { ...given, note }
    if (NEEDS_PROGRAM.includes(group) && nativeProgram() === undefined) {
      skip(
        context,
        'limits of this machine, vhost-user peers',
        'vbdkit-bench is not built',
        BENCH_REMEDY,
      )
    }
    await MEASURE[group](context)
  }
}

function versions(): Record<string, string> {
  const found = PROGRAMS.map((program) => [program, versionOf(program)] as const)
  return Object.fromEntries(found.flatMap(([name, version]) => (version ? [[name, version]] : [])))
}

/** Several groups miss the same. */
function distinct(skipped: readonly Skipped[]): Skipped[] {
  return skipped.filter(({ what }, i) => skipped.findIndex((other) => other.what === what) === i)
}
