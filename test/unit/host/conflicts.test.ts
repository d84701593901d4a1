import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { findConflicts, refuseConflicts } from '../../../lib/host/conflicts.js'

let root: string
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'vbdkit-conflicts-'))
})
afterEach(() => rmSync(root, { recursive: true }))

function put(path: string, text = ''): void {
  mkdirSync(dirname(join(root, path)), { recursive: true })
  writeFileSync(join(root, path), text)
}

/** A process as /proc shows it. */
function process(pid: number, name: string, ...argv: string[]): void {
  put(`proc/${pid}/comm`, `${name}\n`)
  put(`proc/${pid}/cmdline`, [name, ...argv, ''].join('\0'))
}

const ALL = ['vbd', 'vbd3', 'qdisk']

describe('other backends', () => {
  it('are none on a machine without any, and on this one where there is no Xen', () => {
    process(1, 'init')
    process(77, 'qemu-system-x86', '-enable-kvm')
    expect(findConflicts(ALL, root)).toEqual([])
    expect(findConflicts(ALL, join(root, 'nowhere'))).toEqual([])
    expect(() => refuseConflicts(ALL, root)).not.toThrow()
  })

  it('xen-blkback: as soon as it is loaded, with the devices that it serves', () => {
    put('sys/bus/xen-backend/drivers/vbd/bind')
    put('sys/module/xen_blkback/initstate', 'live\n')
    const [idle] = findConflicts(ALL, root)
    expect(idle).toMatchObject({ kind: 'vbd', owner: 'xen-blkback', holds: [] })
    expect(idle?.remedy).toContain('modprobe -r xen-blkback')
    expect(idle?.remedy).toContain('install xen-blkback /bin/false')
    symlinkSync('../../devices', join(root, 'sys/bus/xen-backend/drivers/vbd/vbd-3-51712'))
    const [bound] = findConflicts(['vbd'], root)
    expect(bound?.holds).toEqual(['vbd-3-51712'])
    expect(bound?.message).toContain('serves vbd-3-51712')
    expect(bound?.remedy).toMatch(/^detach its disks/)
  })

  it('xen-blkback built in: there is nothing to unload', () => {
    put('sys/bus/xen-backend/drivers/vbd/bind')
    put('sys/module/xen_blkback/parameters/max_queues', '4\n')
    const [conflict] = findConflicts(['vbd'], root)
    expect(conflict?.message).toContain('built in')
    expect(conflict?.remedy).toContain('driver domain')
    expect(conflict?.remedy).not.toContain('modprobe -r')
  })

  it('tapback, and the QEMU that waits for disks', () => {
    process(900, 'tapback', '-d')
    process(81, 'tapback', '-x', '3')
    process(82, 'qemu-system-i38', '-xen-domid', '0', '-xen-attach', '-name', 'dom0')
    process(83, 'qemu-system-i38', '-xen-domid', '7')
    expect(findConflicts(ALL, root)).toMatchObject([
      { kind: 'vbd3', owner: 'tapback', holds: ['pid 81', 'pid 900'] },
      { kind: 'qdisk', owner: 'qemu', holds: ['pid 82'] },
    ])
  })

  it('matter only where they serve the same kind', () => {
    put('sys/bus/xen-backend/drivers/vbd/bind')
    process(900, 'tapback')
    expect(findConflicts(['qdisk', 'mine'], root)).toEqual([])
    expect(findConflicts(['vbd3'], root)).toHaveLength(1)
    expect(() => refuseConflicts(['qdisk'], root)).not.toThrow()
    expect(() => refuseConflicts(['vbd'], root)).toThrow(
      expect.objectContaining({ code: 'ERR_VBD_BUSY', remedy: expect.stringContaining('--kind') }),
    )
  })
})
