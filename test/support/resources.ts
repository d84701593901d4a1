/**
 * What this process holds of the system's: descriptors, threads and files in the temporary directories. Two censuses
 * are equal when nothing was left behind between them.
 */
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, vi } from 'vitest'
import { PATIENT } from './patience.js'

export interface Census {
  /** Kind → how many, for example `socket` or `anon_inode:[io_uring]`. */
  readonly descriptors: Readonly<Record<string, number>>
  /** Name → how many. */
  readonly threads: Readonly<Record<string, number>>
  /** In the temporary directory, see `ownTemporaryFolder`. */
  readonly files: readonly string[]
}

/** The kernel's own workers of io_uring come and go as it likes; they are threads of ours only by name. */
function isKernelWorker(name: string): boolean {
  return name.startsWith('iou-')
}

/** The threads of a process, by name. */
export function threadsOf(pid: number | 'self' = 'self'): Record<string, number> {
  const names: Record<string, number> = {}
  for (const task of readdirSync(`/proc/${pid}/task`)) {
    const name = readOrUndefined(`/proc/${pid}/task/${task}/comm`)?.trim()
    if (name === undefined || isKernelWorker(name)) continue
    names[name] = (names[name] ?? 0) + 1
  }
  return sorted(names)
}

/** The descriptors of a process, by what they are. */
export function descriptorsOf(pid: number | 'self' = 'self'): Record<string, number> {
  const kinds: Record<string, number> = {}
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    const link = linkOrUndefined(`/proc/${pid}/fd/${fd}`)
    if (link === undefined || link.startsWith('/proc/')) continue
    const kind = link.replace(/:\[\d+\]$/, '')
    kinds[kind] = (kinds[kind] ?? 0) + 1
  }
  return sorted(kinds)
}

/** Gives this process a temporary directory of its own, so that what is left in it is its own doing. */
export function ownTemporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'vbdkit-own-'))
  process.env.TMPDIR = folder
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }))
  return folder
}

export function census(): Census {
  return { descriptors: descriptorsOf(), threads: threadsOf(), files: readdirSync(tmpdir()) }
}

/** Waits until this process holds again what it held then: no more, no less. */
export async function expectBackTo(baseline: Census): Promise<void> {
  await vi.waitFor(() => expect(census()).toEqual(baseline), PATIENT)
}

function sorted(counts: Record<string, number>): Record<string, number> {
  return Object.fromEntries(Object.entries(counts).sort(([a], [b]) => (a < b ? -1 : 1)))
}

function readOrUndefined(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return undefined
  }
}

function linkOrUndefined(path: string): string | undefined {
  try {
    return readlinkSync(path)
  } catch {
    return undefined
  }
}
