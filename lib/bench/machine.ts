/**
 * Machine: what this machine is, which two processors a benchmark uses, and what it has of tools. Reads /proc and asks
 * programs for their versions; changes nothing but our own priority.
 */
import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { cpus, release, totalmem } from 'node:os'
import { setTimeout as delay } from 'node:timers/promises'
import { VbdError } from '../errors.js'

/** The two processors: the guests' load on one, what is measured on the other. */
export interface Processors {
  readonly guest: number
  readonly backend: number
}

/** The processors that this process may use, ascending. */
export function allowedCpus(status = readFileSync('/proc/self/status', 'utf8')): number[] {
  const list = /^Cpus_allowed_list:\s*(\S+)$/m.exec(status)?.[1] ?? '0'
  return list.split(',').flatMap((part) => {
    const [first = 0, last = first] = part.split('-').map(Number)
    return Array.from({ length: last - first + 1 }, (_, i) => first + i)
  })
}

/**
 * The first two that may be used, or those asked for.
 *
 * @throws ERR_VBD_UNSUPPORTED on a machine with one, ERR_VBD_ARGUMENT for one that may not be used
 */
export function chooseCpus(wanted: readonly number[] | undefined): Processors {
  const allowed = allowedCpus()
  const [guest, backend] = wanted ?? allowed
  if (guest === undefined || backend === undefined || guest === backend) {
    throw new VbdError('ERR_VBD_UNSUPPORTED', 'a benchmark needs two processors', {
      remedy: 'run it where there are two: one for the guests, one for the backend',
    })
  }
  for (const cpu of [guest, backend]) {
    if (allowed.includes(cpu)) continue
    throw new VbdError('ERR_VBD_ARGUMENT', `processor ${cpu} cannot be used`, {
      remedy: `use two of ${allowed.join(', ')}`,
    })
  }
  return { guest, backend }
}

const AUTOGROUP = '/proc/self/autogroup'

/**
 * Raises the priority of this process and all that it starts, where it may: others then disturb less. Linux weighs
 * whole sessions where autogroups are on, so everything that was started from the same terminal is raised, too, and
 * whoever is in another session starves meanwhile. Returns what puts it back as it was; undefined: not raised.
 */
export function raisePriority(): (() => void) | undefined {
  try {
    // "/autogroup-25 nice 0"
    const before = /nice (-?\d+)/.exec(readFileSync(AUTOGROUP, 'utf8'))?.[1]
    if (before === undefined) return undefined
    writeFileSync(AUTOGROUP, '-20')
    return () => {
      try {
        writeFileSync(AUTOGROUP, before)
      } catch {
        // What was measured is worth more.
      }
    }
  } catch {
    return undefined
  }
}

/** Busy time of all processors since boot, nanoseconds. */
export function busyNs(stat = readFileSync('/proc/stat', 'utf8')): number {
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = stat
    .split('\n', 1)[0]!
    .split(/\s+/)
    .slice(1)
    .map(Number)
  return (user + nice + system + irq + softirq) * 1e7
}

/** How many processors are busy now, watched for this long. */
export async function busyProcessors(milliseconds: number): Promise<number> {
  const before = busyNs()
  const start = performance.now()
  await delay(milliseconds)
  return (busyNs() - before) / 1e6 / (performance.now() - start)
}

/** What a program says it is, in one line; undefined where it is not installed. */
export function versionOf(program: string): string | undefined {
  try {
    const said = execFileSync(program, ['--version'], { stdio: ['ignore', 'pipe', 'ignore'] })
    return said.toString().split('\n')[0]!.trim()
  } catch {
    return undefined
  }
}

/** The parts of a Machine that never change. */
export function describeMachine(): {
  cpu: string
  processors: number
  kernel: string
  node: string
  memoryBytes: number
} {
  const processors = cpus()
  return {
    cpu: processors[0]?.model.trim() ?? 'unknown',
    processors: processors.length,
    kernel: release(),
    node: process.version,
    memoryBytes: totalmem(),
  }
}
