import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import {
  hotplugScript,
  installScript,
  uninstallScript,
} from '../../../lib/daemon/hotplug_script.js'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'vbdkit-script-'))
})
afterEach(() => rmSync(folder, { recursive: true }))

const DEVICE = 'backend/vbd/3/51712'

/** Runs the script with tools that have a folder for a store. */
function run(word: string, keys: Record<string, string>, env: Record<string, string> = {}) {
  const store = join(folder, 'store')
  mkdirSync(join(store, DEVICE), { recursive: true })
  for (const [key, value] of Object.entries(keys)) writeFileSync(join(store, DEVICE, key), value)
  const tools = join(folder, 'bin')
  mkdirSync(tools, { recursive: true })
  const tool = (name: string, text: string) => {
    writeFileSync(join(tools, name), `#!/bin/sh\n${text}\n`)
    chmodSync(join(tools, name), 0o755)
  }
  tool('xenstore-read', `exec cat "${store}/$1"`)
  tool('xenstore-write', `while [ $# -gt 0 ]; do printf %s "$2" >"${store}/$1"; shift 2; done`)
  // Fifty waits, and none of them real.
  tool('sleep', 'exit 0')
  installScript(folder)
  const { status, stderr } = spawnSync(join(folder, 'block-vbdkit'), [word], {
    encoding: 'utf8',
    env: { PATH: `${tools}:${process.env.PATH}`, XENBUS_PATH: DEVICE, SYSFS: folder, ...env },
  })
  const error = join(store, DEVICE, 'hotplug-error')
  return { status, stderr, told: existsSync(error) ? readFileSync(error, 'utf8') : undefined }
}

describe('the hotplug script', () => {
  it('is content with a disk that the daemon has taken', () => {
    expect(run('add', { 'hotplug-status': 'connected' })).toEqual({
      status: 0,
      stderr: '',
      told: undefined,
    })
  })

  it('passes on why the daemon has not', () => {
    const result = run('add', { 'hotplug-status': 'error', 'hotplug-error': '/srv/x "is" empty' })
    expect(result).toMatchObject({ status: 1, told: '/srv/x "is" empty' })
    expect(result.stderr).toBe('block-vbdkit: /srv/x "is" empty\n')
  })

  it('says when nobody answers', () => {
    const { status, told } = run('add', {})
    expect(status).toBe(1)
    expect(told).toContain('no vbdkit daemon has taken this disk')
  })

  it('says when the kernel was faster', () => {
    mkdirSync(join(folder, 'bus/xen-backend/drivers/vbd/vbd-3-51712'), { recursive: true })
    const { status, told } = run('add', { 'hotplug-status': 'connected' })
    expect(status).toBe(1)
    expect(told).toContain('xen-blkback has taken this disk')
  })

  it('has nothing to do for a removal, and refuses what it does not know', () => {
    expect(run('remove', {}).status).toBe(0)
    expect(run('online', {}).status).toBe(2)
    expect(run('add', {}, { XENBUS_PATH: '' })).toMatchObject({ status: 2 })
  })
})

describe('its installation', () => {
  it('writes it once, executable, and takes it away', () => {
    const path = join(folder, 'block-vbdkit')
    expect(installScript(folder)).toEqual({ path, done: 'written' })
    expect(readFileSync(path, 'utf8')).toBe(hotplugScript())
    expect(statSync(path).mode & 0o777).toBe(0o755)
    expect(installScript(folder).done).toBe('unchanged')
    writeFileSync(path, `${hotplugScript()}# of another version\n`)
    expect(installScript(folder).done).toBe('written')
    expect(uninstallScript(folder).done).toBe('removed')
    expect(uninstallScript(folder).done).toBe('absent')
  })

  it('leaves what is not ours, and says what is missing', () => {
    writeFileSync(join(folder, 'block-vbdkit'), '#!/bin/sh\nexit 0\n')
    expect(() => installScript(folder)).toThrow('is not ours')
    expect(() => uninstallScript(folder)).toThrow('is not ours')
    expect(() => installScript(join(folder, 'none'))).toThrow('there is no folder')
  })
})
