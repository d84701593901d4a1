/**
 * Who else on this machine would serve the same kind of backend: two backends that answer one guest corrupt its
 * handshake, at best. Only reads /sys and /proc, blocks for less than a millisecond. For `doctor`, and for whatever
 * claims a kind before it serves.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { VbdError } from '../errors.js'

/** Another backend that is at home on a kind. */
export interface Conflict {
  /** Kind of the backend directories that both would serve: `vbd`, `vbd3`, `qdisk`. */
  readonly kind: string
  readonly owner: 'xen-blkback' | 'tapback' | 'qemu'
  /** Devices that it serves now, or processes: `vbd-3-51712`, `pid 812`; none where it only waits for some. */
  readonly holds: readonly string[]
  /** One line, without a full stop. */
  readonly message: string
  readonly remedy: string
}

const OTHER_KIND = 'or give our disks another kind of backend directory (--kind)'

/**
 * The other backends of `kinds` that are at work, or would go to work with the next disk.
 *
 * @param root where /sys and /proc are; for tests
 */
export function findConflicts(kinds: readonly string[], root = '/'): Conflict[] {
  const found: Conflict[] = []
  if (kinds.includes('vbd')) found.push(...kernelBackend(root))
  if (kinds.includes('vbd3')) found.push(...tapback(root))
  if (kinds.includes('qdisk')) found.push(...qemu(root))
  return found
}

/**
 * Throws where another backend would fight over one of `kinds`.
 *
 * @throws ERR_VBD_BUSY that names the first, with the remedy
 */
export function refuseConflicts(kinds: readonly string[], root = '/'): void {
  const [first] = findConflicts(kinds, root)
  if (first === undefined) return
  throw new VbdError('ERR_VBD_BUSY', first.message, { remedy: first.remedy })
}

/** Linux's own backend. Once loaded it binds to every new backend/vbd device, before or after us. */
function kernelBackend(root: string): Conflict[] {
  const driver = entries(join(root, 'sys/bus/xen-backend/drivers/vbd'))
  if (driver === undefined) return []
  const holds = driver.filter((name) => /^vbd-\d+-\d+$/.test(name)).sort()
  const module = entries(join(root, 'sys/module/xen_blkback'))
  const loadable = module?.includes('initstate') ?? false
  const state = loadable ? 'loaded' : 'built in'
  const serving = holds.length === 0 ? '' : ` and serves ${holds.join(', ')}`
  const never =
    "keep it away with `echo 'install xen-blkback /bin/false' > /etc/modprobe.d/vbdkit.conf`"
  const detach = holds.length === 0 ? '' : 'detach its disks, '
  return [
    {
      kind: 'vbd',
      owner: 'xen-blkback',
      holds,
      message: `the kernel's own backend, xen-blkback, is ${state}${serving}: it takes every disk of kind vbd`,
      remedy: loadable
        ? `${detach}run \`modprobe -r xen-blkback\`, and ${never}; ${OTHER_KIND}`
        : `it cannot be unloaded from this kernel: serve from a driver domain without it, ${OTHER_KIND}`,
    },
  ]
}

/** XenServer's and XCP-ng's, in front of tapdisk: one process waits for guests, and has one child for each. */
function tapback(root: string): Conflict[] {
  const holds = processes(root, (name) => name === 'tapback')
  if (holds.length === 0) return []
  return [
    {
      kind: 'vbd3',
      owner: 'tapback',
      holds,
      message: `tapback runs (${holds.join(', ')}): it takes every disk of kind vbd3`,
      remedy: `run \`systemctl disable --now tapback\` once its disks are detached, ${OTHER_KIND}`,
    },
  ]
}

/** The QEMU that libxl keeps in dom0 for disks of the type qdisk. A guest's own QEMU is told another domain. */
function qemu(root: string): Conflict[] {
  const holds = processes(
    root,
    (name, argv) => name.startsWith('qemu') && argv.includes('-xen-attach'),
  )
  if (holds.length === 0) return []
  return [
    {
      kind: 'qdisk',
      owner: 'qemu',
      holds,
      message: `QEMU serves disks here (${holds.join(', ')}, -xen-attach): it takes every disk of kind qdisk`,
      remedy: `run \`systemctl disable --now xen-qemu-dom0-disk-backend\` once its disks are detached, ${OTHER_KIND}`,
    },
  ]
}

/** `pid N` of each process that `wanted` names. */
function processes(
  root: string,
  wanted: (name: string, argv: readonly string[]) => boolean,
): string[] {
  const pids = (entries(join(root, 'proc')) ?? []).filter((name) => /^\d+$/.test(name))
  return pids
    .filter((pid) => {
      const name = text(join(root, 'proc', pid, 'comm')).trim()
      return wanted(name, text(join(root, 'proc', pid, 'cmdline')).split('\0'))
    })
    .sort((a, b) => Number(a) - Number(b))
    .map((pid) => `pid ${pid}`)
}

/** Names in a directory; undefined where there is none. */
function entries(directory: string): string[] | undefined {
  try {
    return readdirSync(directory)
  } catch {
    return undefined
  }
}

/** A file's text; empty where there is none, or no more. */
function text(path: string): string {
  try {
    return readFileSync(path, 'latin1')
  } catch {
    return ''
  }
}
