import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { type Check, diagnose, verdict } from '../../../lib/host/doctor.js'
import { type Facts, gatherFacts, kernelFacts } from '../../../lib/host/facts.js'

const LIBRARY = { error: '', missing: [] }

/** A dom0 on which all is well. */
function healthy(changes: Partial<Facts> = {}): Facts {
  return {
    node: 'v20.19.0',
    addon: { version: '0.1.0' },
    ioUring: { usable: true, reason: '' },
    kernel: { version: '6.1.192', release: '6.1.0-56-amd64', builtMs: Date.UTC(2026, 8, 1) },
    xen: { version: '4.17.7', builtMs: Date.UTC(2026, 8, 1), controlDomain: true },
    probe: {
      gnttab: { soname: 'libxengnttab.so.1', path: '/usr/lib/libxengnttab.so.1.2', ...LIBRARY },
      evtchn: { soname: 'libxenevtchn.so.1', path: '/usr/lib/libxenevtchn.so.1.2', ...LIBRARY },
      devices: [
        { path: '/dev/xen/gntdev', errno: 0 },
        { path: '/dev/xen/evtchn', errno: 0 },
      ],
      grantCopy: true,
      smallPages: true,
      problems: [],
    },
    xenstore: { error: undefined, remedy: undefined },
    conflicts: [],
    blkbackLoadsItself: false,
    scripts: 'installed',
    limits: {
      maxMapCount: 65_530,
      openFiles: 1024,
      memlockBytes: Number.POSITIVE_INFINITY,
      overcommit: 0,
    },
    ...changes,
  }
}

/** What is not as it should be. */
function complaints(changes: Partial<Facts>): Check[] {
  return diagnose(healthy(changes), 'host').filter(({ status }) => status !== 'pass')
}

describe('diagnose', () => {
  it('passes a healthy dom0, with no remedies', () => {
    const checks = diagnose(healthy(), 'host')
    expect(checks.filter(({ remedy }) => remedy !== undefined)).toEqual([])
    expect(verdict(checks)).toBe('pass')
    expect(new Set(checks.map(({ name }) => name)).size).toBe(checks.length)
  })

  const probe = healthy().probe!
  it.each<[string, 'warn' | 'fail', Partial<Facts>]>([
    ['node', 'fail', { node: 'v18.20.4' }],
    ['addon', 'fail', { addon: { error: 'the native addon cannot be loaded' } }],
    ['io-uring', 'warn', { ioUring: { usable: false, reason: 'EPERM' } }],
    ['kernel', 'warn', { kernel: { version: '5.10.16', release: '5.10.16', builtMs: undefined } }],
    [
      'kernel',
      'warn',
      { kernel: { version: '6.1.50', release: '6.1.50', builtMs: Date.UTC(2023, 8, 1) } },
    ],
    ['xen', 'fail', { xen: undefined }],
    [
      'xen',
      'warn',
      { xen: { version: '4.17.5', builtMs: Date.UTC(2026, 5, 30), controlDomain: true } },
    ],
    ['xen', 'warn', { xen: { version: '4.14.6', builtMs: undefined, controlDomain: false } }],
    ['xenstore', 'fail', { xenstore: { error: 'no xenstore', remedy: undefined } }],
    ['gntdev', 'fail', { probe: { ...probe, devices: [{ path: '/dev/xen/gntdev', errno: 2 }] } }],
    ['evtchn', 'fail', { probe: { ...probe, devices: [{ path: '/dev/xen/evtchn', errno: 13 }] } }],
    [
      'libxengnttab.so.1',
      'fail',
      { probe: { ...probe, gnttab: { ...probe.gnttab, error: 'not found' } } },
    ],
    [
      'libxenevtchn.so.1',
      'fail',
      { probe: { ...probe, evtchn: { ...probe.evtchn, missing: ['xenevtchn_fd'] } } },
    ],
    ['grant-copy', 'warn', { probe: { ...probe, grantCopy: false } }],
    ['xen-blkback', 'warn', { blkbackLoadsItself: true }],
    ['xl-script', 'warn', { scripts: 'missing' }],
    ['xl-script', 'warn', { scripts: 'no-folder' }],
    ['max-map-count', 'warn', { limits: { ...healthy().limits, maxMapCount: 30_000 } }],
    ['open-files', 'warn', { limits: { ...healthy().limits, openFiles: 256 } }],
    ['overcommit', 'fail', { limits: { ...healthy().limits, overcommit: 2 } }],
  ])('%s: %s, with a remedy', (name, status, changes) => {
    const found = complaints(changes)
    expect(found).toContainEqual(expect.objectContaining({ name, status }))
    for (const { remedy, message } of found) {
      expect(remedy).toMatch(/\S/)
      expect(message).not.toMatch(/\n|\.$/)
    }
  })

  it('names each conflict, and fails', () => {
    const conflict = {
      kind: 'vbd',
      owner: 'xen-blkback',
      holds: [],
      message: 'm',
      remedy: 'r',
    } as const
    const found = complaints({ conflicts: [conflict] })
    expect(found).toEqual([
      { name: 'conflict-xen-blkback', status: 'fail', message: 'm', remedy: 'r' },
    ])
  })

  it('for the mock asks nothing of Xen', () => {
    const bare = healthy({
      xen: undefined,
      probe: undefined,
      xenstore: { error: 'x', remedy: undefined },
    })
    expect(verdict(diagnose(bare, 'mock'))).toBe('pass')
    expect(verdict(diagnose(bare, 'host'))).toBe('fail')
  })
})

describe('facts', () => {
  it.each([
    [
      'Linux version 6.1.0-56-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14)) ' +
        '#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-10-01)\n',
      { version: '6.1.192', release: '6.1.0-56-amd64', builtMs: Date.UTC(2026, 9, 1) },
    ],
    [
      'Linux version 6.6.20 (a@b) (gcc 13) #1 SMP Tue Mar  5 10:00:00 UTC 2024\n',
      { version: '6.6.20', release: '6.6.20', builtMs: Date.UTC(2024, 2, 5, 10) },
    ],
    ['', { version: '', release: '', builtMs: undefined }],
  ])('%j', (text, facts) => {
    expect(kernelFacts(text)).toEqual(facts)
  })

  let root: string
  beforeEach(() => {
    root = mkdtempSync(join(tmpdir(), 'vbdkit-doctor-'))
  })
  afterEach(() => rmSync(root, { recursive: true }))

  function write(path: string, text: string): void {
    mkdirSync(dirname(join(root, path)), { recursive: true })
    writeFileSync(join(root, path), text)
  }

  it('are read from /proc, /sys, /lib and /etc', async () => {
    write('proc/version', 'Linux version 6.1.0-56-amd64 (x) #1 SMP Debian 6.1.192-2 (2026-10-01)\n')
    write('proc/sys/vm/max_map_count', '65530\n')
    write('proc/sys/vm/overcommit_memory', '2\n')
    write(
      'proc/self/limits',
      'Max open files            1024   4096   files\nMax locked memory  unlimited  x\n',
    )
    write('lib/modules/6.1.0-56-amd64/modules.alias', 'alias xen-backend:vbd xen_blkback\n')
    write('scripts/other', '')
    const options = { kinds: ['vbd'], root, scriptPath: join(root, 'scripts/block-vbdkit') }
    const facts = await gatherFacts(options)
    expect(facts).toMatchObject({
      kernel: { version: '6.1.192' },
      xen: undefined,
      blkbackLoadsItself: true,
      scripts: 'missing',
      limits: { maxMapCount: 65_530, openFiles: 1024, overcommit: 2 },
    })
    expect(facts.limits.memlockBytes).toBe(Number.POSITIVE_INFINITY)
    write('etc/modprobe.d/vbdkit.conf', 'install xen-blkback /bin/false\n')
    write('scripts/block-vbdkit', '')
    expect(await gatherFacts(options)).toMatchObject({
      blkbackLoadsItself: false,
      scripts: 'installed',
    })
  })
})
