/**
 * Facts: what this machine has of what a backend needs, as read from /proc, /sys, the addon and xenstore. Opens nothing
 * that stays open, changes nothing. What the facts mean is doctor.ts's affair.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { HostProbe } from '../engine/addon.js'
import { isControlDomain, openXenbusDevice, probeHost } from '../engine/host.js'
import { loadAddon } from '../engine/load_addon.js'
import { toVbdError } from '../errors.js'
import { connectXenstore } from '../xenstore/client.js'
import { type Conflict, findConflicts } from './conflicts.js'

/** Xen, as the kernel tells of it under /sys/hypervisor. */
export interface XenFacts {
  /** `4.17.7` */
  readonly version: string
  /** Undefined where it is not told, or cannot be read as a date. */
  readonly builtMs: number | undefined
  /** This domain controls the others. */
  readonly controlDomain: boolean
}

/** One kernel. */
export interface KernelFacts {
  /** The distribution's own number where it tells one, as Debian does: `6.1.192`; else that of `uname -r`. */
  readonly version: string
  readonly release: string
  readonly builtMs: number | undefined
}

export interface Facts {
  readonly node: string
  /** Of vbdkit; an error in one line where the addon cannot be loaded. */
  readonly addon: { readonly version: string } | { readonly error: string }
  readonly ioUring: { readonly usable: boolean; readonly reason: string }
  readonly kernel: KernelFacts
  /** Undefined on a machine that runs no Xen. */
  readonly xen: XenFacts | undefined
  readonly probe: HostProbe | undefined
  /** Whether xenstore answered; why not. */
  readonly xenstore: { readonly error: string | undefined; readonly remedy: string | undefined }
  readonly conflicts: readonly Conflict[]
  /** The kernel loads xen-blkback by itself when the first disk of kind `vbd` appears. */
  readonly blkbackLoadsItself: boolean
  /** xl's folder of hotplug scripts is there, and our script in it. */
  readonly scripts: 'no-folder' | 'missing' | 'installed'
  readonly limits: {
    /** vm.max_map_count */
    readonly maxMapCount: number
    /** RLIMIT_NOFILE, the soft one. */
    readonly openFiles: number
    /** RLIMIT_MEMLOCK in bytes, the soft one; Infinity: unlimited. */
    readonly memlockBytes: number
    /** vm.overcommit_memory; 2: address space counts as memory. */
    readonly overcommit: number
  }
}

export interface FactsOptions {
  /** Kinds of backend directories that shall be served. */
  readonly kinds: readonly string[]
  /** Where our hotplug script belongs. */
  readonly scriptPath: string
  /** Where /proc and /sys are; for tests. */
  readonly root?: string
}

/** Milliseconds that xenstore may take to answer. */
const XENSTORE_MS = 3000

/** Looks at everything. */
export async function gatherFacts(options: FactsOptions): Promise<Facts> {
  const { kinds, scriptPath, root = '/' } = options
  const native = lookAtAddon()
  const xen = xenFacts(root)
  return {
    node: process.version,
    addon: native.addon,
    ioUring: native.ioUring,
    kernel: kernelFacts(text(join(root, 'proc/version'))),
    xen,
    probe: native.probe,
    xenstore: xen === undefined ? { error: 'no Xen', remedy: undefined } : await askXenstore(),
    conflicts: findConflicts(kinds, root),
    blkbackLoadsItself: kinds.includes('vbd') && loadsBlkback(root),
    scripts: scriptFacts(scriptPath),
    limits: limitFacts(root, native.memlockBytes),
  }
}

function lookAtAddon() {
  try {
    const addon = loadAddon()
    const { ioUring, ioUringReason, memlockBytes } = addon.probe()
    return {
      addon: { version: addon.version },
      ioUring: { usable: ioUring, reason: ioUringReason },
      memlockBytes,
      probe: probeHost(),
    }
  } catch (thrown) {
    const { message } = toVbdError(thrown)
    const ioUring = { usable: false, reason: 'not looked at: no addon' }
    return { addon: { error: message }, ioUring, memlockBytes: 0, probe: undefined }
  }
}

function xenFacts(root: string): XenFacts | undefined {
  const at = (name: string) => text(join(root, 'sys/hypervisor', name)).trim()
  if (at('type') !== 'xen') return undefined
  return {
    version: `${at('version/major')}.${at('version/minor')}${at('version/extra')}`,
    builtMs: dateOf(at('compilation/compile_date')),
    controlDomain: isControlDomain(join(root, 'proc/xen/capabilities')),
  }
}

/** From /proc/version: `Linux version 6.1.0-56-amd64 (...) #1 SMP ... Debian 6.1.192-2 (2026-10-01)`. */
export function kernelFacts(procVersion: string): KernelFacts {
  const release = /^Linux version (\S+)/.exec(procVersion)?.[1] ?? ''
  const debian = /#\d+ .*Debian (\d+(?:\.\d+)+)/.exec(procVersion)?.[1]
  const built = /#\d+.* (\w{3} \w{3} +\d+ [\d:]+ \w+ \d{4}|\(?\d{4}-\d\d-\d\d\)?)\s*$/.exec(
    procVersion,
  )
  return {
    release,
    version: debian ?? /^\d+(?:\.\d+)+/.exec(release)?.[0] ?? '',
    builtMs: dateOf((built?.[1] ?? '').replace(/[()]/g, '')),
  }
}

/** A dialogue, not only a connection: a socket may belong to a daemon that is stuck. */
async function askXenstore(): Promise<Facts['xenstore']> {
  const asking = (async () => {
    const store = await connectXenstore({ openDevice: openXenbusDevice })
    try {
      await store.tryRead('domid')
    } finally {
      await store.close()
    }
  })()
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error('xenstore does not answer')), XENSTORE_MS)
  })
  try {
    await Promise.race([asking, late])
    return { error: undefined, remedy: undefined }
  } catch (thrown) {
    const { message, remedy } = toVbdError(thrown)
    return { error: message, remedy }
  } finally {
    clearTimeout(timer)
    asking.catch(() => {})
  }
}

/** udev loads it by the alias `xen-backend:vbd`, unless modprobe is told not to. */
function loadsBlkback(root: string): boolean {
  const { release } = kernelFacts(text(join(root, 'proc/version')))
  const alias = text(join(root, 'lib/modules', release, 'modules.alias'))
  if (!/^alias xen-backend:vbd xen_blkback$/m.test(alias)) return false
  const folder = join(root, 'etc/modprobe.d')
  const never = /^\s*(install\s+xen[-_]blkback\s|blacklist\s+xen[-_]blkback\b)/m
  return !names(folder).some((name) => never.test(text(join(folder, name))))
}

function scriptFacts(path: string): Facts['scripts'] {
  if (existsSync(path)) return 'installed'
  return existsSync(join(path, '..')) ? 'missing' : 'no-folder'
}

function limitFacts(root: string, memlockBytes: number): Facts['limits'] {
  const limits = text(join(root, 'proc/self/limits'))
  return {
    maxMapCount: Number(text(join(root, 'proc/sys/vm/max_map_count'))),
    overcommit: Number(text(join(root, 'proc/sys/vm/overcommit_memory'))),
    openFiles: Number(/^Max open files +(\d+)/m.exec(limits)?.[1] ?? Number.POSITIVE_INFINITY),
    memlockBytes: /^Max locked memory +unlimited/m.test(limits)
      ? Number.POSITIVE_INFINITY
      : Number(/^Max locked memory +(\d+)/m.exec(limits)?.[1] ?? memlockBytes),
  }
}

function dateOf(written: string): number | undefined {
  const ms = Date.parse(written)
  return Number.isNaN(ms) ? undefined : ms
}

function names(folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch {
    return []
  }
}

function text(path: string): string {
  try {
    return readFileSync(path, 'latin1')
  } catch {
    return ''
  }
}
