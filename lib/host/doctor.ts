/**
 * Doctor: what the facts about a machine mean for serving disks on it: a list of checks, each passed, doubtful or
 * failed, with what to do. Pure.
 *
 * The patch floor is judged by dates where version numbers say nothing, as with distributions, which mend old versions:
 * what was built before an advisory was public cannot have its fix.
 */
import type { HostLibrary } from '../engine/addon.js'
import type { Facts } from './facts.js'

export type CheckStatus = 'pass' | 'warn' | 'fail'

export interface Check {
  /** Short and stable, for programs: `gntdev`. */
  readonly name: string
  readonly status: CheckStatus
  /** One line, without a full stop. */
  readonly message: string
  /** What to do; with every warn and fail. */
  readonly remedy?: string
}

/** Which Xen the machine shall serve on. */
export type DoctorXen = 'host' | 'mock'

/** Grant copy without these lets a guest reach what it may not (XSA-500), or crash the host; public in July 2026. */
const XEN_FLOOR_MS = Date.UTC(2026, 6, 1)
/** XSA-441, a deadlock of event channels that a guest can cause; public on 2023-10-10. */
const KERNEL_FLOOR_MS = Date.UTC(2023, 9, 10)
/** The first stable kernel with late EOI (XSA-332) and gntdev's error paths (XSA-361, 362, 365). */
const KERNEL_FLOOR = [5, 10, 17]
/** The oldest Xen that this was run on. */
const XEN_TESTED = [4, 17]
/** A persistent grant is a mapping of its own: 1056 for each of 32 rings, and Node.js's. */
const MAPPINGS_WANTED = 65_530
const FILES_WANTED = 1024
const MEMLOCK_WANTED = 64 * 1024 * 1024
const MIB = 1024 * 1024

/** What there is to say about serving on that Xen; on the mock only what the mock needs. */
export function diagnose(facts: Facts, xen: DoctorXen): Check[] {
  const here = [node(facts), addon(facts), ioUring(facts)]
  const limits = [openFiles(facts), memlock(facts), ...overcommit(facts)]
  if (xen === 'mock') return [...here, ...limits, noXen(facts)]
  return [
    ...here,
    kernel(facts),
    hypervisor(facts),
    xenstore(facts),
    ...libraries(facts),
    ...devices(facts),
    grantCopy(facts),
    ...conflicts(facts),
    ...autoload(facts),
    hotplugScript(facts),
    mappings(facts),
    ...limits,
  ]
}

/** Nothing where all is well: most machines have no such module. */
function autoload({ blkbackLoadsItself }: Facts): Check[] {
  if (!blkbackLoadsItself) return []
  return [
    warn(
      'xen-blkback',
      "the kernel's own backend, xen-blkback, is loaded by itself with the first disk of kind vbd",
      "keep it away: `echo 'install xen-blkback /bin/false' > /etc/modprobe.d/vbdkit.conf`",
    ),
  ]
}

/** The worst of them. */
export function verdict(checks: readonly Check[]): CheckStatus {
  if (checks.some(({ status }) => status === 'fail')) return 'fail'
  return checks.some(({ status }) => status === 'warn') ? 'warn' : 'pass'
}

function pass(name: string, message: string): Check {
  return { name, status: 'pass', message }
}

function warn(name: string, message: string, remedy: string): Check {
  return { name, status: 'warn', message, remedy }
}

function fail(name: string, message: string, remedy: string): Check {
  return { name, status: 'fail', message, remedy }
}

function node({ node: version }: Facts): Check {
  const [major = 0, minor = 0] = numbers(version)
  const enough = major > 20 || (major === 20 && minor >= 19)
  if (enough) return pass('node', `Node.js ${version}`)
  return fail('node', `Node.js ${version} is too old`, 'install Node.js 20.19 or newer')
}

function addon({ addon: found }: Facts): Check {
  if ('version' in found) return pass('addon', `the native addon, version ${found.version}`)
  return fail('addon', found.error, 'build it with `npm run build`, or install the package anew')
}

function ioUring({ ioUring: { usable, reason } }: Facts): Check {
  if (usable) return pass('io-uring', 'io_uring')
  return warn(
    'io-uring',
    `no io_uring (${reason}): disks are served by system calls on threads, which is slower`,
    'allow it: `sysctl kernel.io_uring_disabled=0`, and no seccomp filter against it',
  )
}

function kernel({ kernel: { version, release, builtMs } }: Facts): Check {
  const name = 'kernel'
  const said = `Linux ${version}${release.startsWith(version) ? '' : ` (${release})`}`
  if (before(numbers(version), KERNEL_FLOOR)) {
    return warn(
      name,
      `${said} has neither late event acknowledgement (XSA-332) nor gntdev's mended error paths (XSA-361, 362, 365)`,
      'run Linux 5.10.17 or newer in this domain',
    )
  }
  if (builtMs !== undefined && builtMs < KERNEL_FLOOR_MS) {
    return warn(
      name,
      `${said} was built on ${day(builtMs)}, before XSA-441: a guest can lock it up`,
      'update the kernel',
    )
  }
  return pass(name, said)
}

function hypervisor({ xen }: Facts): Check {
  const name = 'xen'
  if (xen === undefined) {
    return fail(
      name,
      'this machine runs no Xen',
      'boot it under Xen; to try vbdkit without one: `vbdkit mock DIR`, and --xen mock:DIR',
    )
  }
  const where = xen.controlDomain ? 'in dom0' : 'in a driver domain'
  const said = `Xen ${xen.version}, ${where}`
  if (xen.builtMs !== undefined && xen.builtMs < XEN_FLOOR_MS) {
    return warn(
      name,
      `${said}, was built on ${day(xen.builtMs)}: before XSA-500, 501 and 505, of which the first concerns grant copy`,
      'update Xen',
    )
  }
  if (before(numbers(xen.version), XEN_TESTED)) {
    return warn(
      name,
      `${said}, is older than any that vbdkit was tried on`,
      'run Xen 4.17 or newer',
    )
  }
  return pass(name, said)
}

function xenstore({ xen, xenstore: { error, remedy } }: Facts): Check {
  const name = 'xenstore'
  if (error === undefined) return pass(name, 'xenstore answers')
  const start = remedy ?? 'start xenstored (`systemctl start xenstored`), and run as root'
  return fail(name, error, xen === undefined ? 'it comes with Xen' : start)
}

function libraries({ probe }: Facts): Check[] {
  if (probe === undefined) return []
  const packages = { gnttab: 'libxengnttab1', evtchn: 'libxenevtchn1' }
  return (['gnttab', 'evtchn'] as const).map((which) => library(probe[which], packages[which]))
}

function library({ soname, path, error, missing }: HostLibrary, debian: string): Check {
  const install = `install it: \`apt-get install ${debian}\``
  if (error !== '') return fail(soname, `${soname} cannot be loaded: ${error}`, install)
  if (missing.length > 0) {
    return fail(soname, `${path} lacks ${missing.join(', ')}`, 'install that of Xen 4.8 or newer')
  }
  return pass(soname, path)
}

function devices({ probe, xen }: Facts): Check[] {
  return (probe?.devices ?? []).map(({ path, errno }) => {
    const name = path.replace('/dev/xen/', '')
    if (errno === 0) return pass(name, path)
    const why = errnoText(errno)
    const load = `load the module: \`modprobe xen-${name}\``
    const remedy = errno === EACCES ? 'run as root, or as a user who may open it' : load
    return fail(name, `${path}: ${why}`, xen === undefined ? 'it comes with Xen' : remedy)
  })
}

function grantCopy({ probe, xen }: Facts): Check {
  const name = 'grant-copy'
  if (probe?.grantCopy) return pass(name, 'the kernel copies grants')
  const message =
    'the kernel does not copy grants, or could not be asked: copying costs a mapping a page'
  return warn(name, message, xen === undefined ? 'it comes with Xen' : 'run Linux 4.5 or newer')
}

function conflicts({ conflicts: found }: Facts): Check[] {
  if (found.length === 0) return [pass('conflicts', 'no other backend claims our disks')]
  return found.map(({ owner, message, remedy }) => fail(`conflict-${owner}`, message, remedy))
}

function hotplugScript({ scripts }: Facts): Check {
  const name = 'xl-script'
  if (scripts === 'installed') return pass(name, "xl's hotplug script is installed")
  if (scripts === 'no-folder') {
    return warn(
      name,
      'there is no /etc/xen/scripts: xl is not installed here',
      'needed only with xl',
    )
  }
  const message = "xl's hotplug script is not installed: disk lines with script=block-vbdkit fail"
  return warn(name, message, 'run `vbdkit xl-script install`')
}

function mappings({ limits: { maxMapCount } }: Facts): Check {
  const name = 'max-map-count'
  const most = Math.floor(Math.max(0, maxMapCount - 4096) / 1056)
  if (maxMapCount >= MAPPINGS_WANTED) {
    return pass(name, `vm.max_map_count ${maxMapCount}: ${most} rings full of persistent grants`)
  }
  return warn(
    name,
    `vm.max_map_count is ${maxMapCount}: enough for ${most} rings full of persistent grants`,
    'raise it: `sysctl vm.max_map_count=1048576`; or serve with --transfer copy',
  )
}

function openFiles({ limits: { openFiles: files } }: Facts): Check {
  if (files >= FILES_WANTED) return pass('open-files', `${files} open files`)
  return warn(
    'open-files',
    `only ${files} open files: a disk takes about 4, and 2 for each ring`,
    'raise it: `ulimit -n 65536`, or LimitNOFILE= of the service',
  )
}

function memlock({ limits: { memlockBytes } }: Facts): Check {
  const name = 'memlock'
  if (memlockBytes === Number.POSITIVE_INFINITY) return pass(name, 'locked memory without limit')
  const size = `${Math.floor(memlockBytes / MIB)} MiB`
  // Root is not held to it.
  if (memlockBytes >= MEMLOCK_WANTED || process.getuid?.() === 0) {
    return pass(name, `${size} of locked memory`)
  }
  return warn(
    name,
    `only ${size} of locked memory: io_uring works without registered buffers then, a little slower`,
    'raise it: `ulimit -l unlimited`, or LimitMEMLOCK= of the service',
  )
}

/** The page pools and tables reserve address space, gigabytes of it, and use little. */
function overcommit({ limits }: Facts): Check[] {
  if (limits.overcommit !== 2) return []
  return [
    fail(
      'overcommit',
      'vm.overcommit_memory is 2: address space that is only reserved counts as memory',
      'set it to 0 or 1: `sysctl vm.overcommit_memory=0`',
    ),
  ]
}

/** Of a machine that shall serve on the mock alone. */
function noXen({ xen }: Facts): Check {
  const name = 'xen'
  if (xen !== undefined)
    return pass(name, `there is a Xen here, too: ${xen.version}; see --xen host`)
  return pass(
    name,
    'no Xen here: on the mock everything works but serving real guests: rings, grants, xenstore, every command',
  )
}

const EACCES = 13
const ENOENT = 2

function errnoText(errno: number): string {
  if (errno === ENOENT) return 'not there'
  return errno === EACCES ? 'permission denied' : `cannot be opened (errno ${errno})`
}

/** `v20.19.1` as [20, 19, 1]. */
function numbers(version: string): number[] {
  return [...version.matchAll(/\d+/g)].slice(0, 3).map(([digits]) => Number(digits))
}

function before(version: readonly number[], floor: readonly number[]): boolean {
  for (const [i, least] of floor.entries()) {
    const part = version[i] ?? 0
    if (part !== least) return part < least
  }
  return false
}

function day(ms: number): string {
  return new Date(ms).toISOString().slice(0, 10)
}
