/** The unit that `vbdkit unit` prints, judged by systemd itself. */
import { writeFileSync } from 'node:fs'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { missingTools, tool } from '../support/product_tools.js'
import { Scene } from './cli_process.js'

let scene: Scene
beforeEach(async () => {
  scene = await Scene.make()
})
afterEach(() => scene.close())

async function unit(...args: string[]): Promise<string> {
  const { code, out, err } = await scene.run('unit', ...args)
  expect(err).toBe('')
  expect(code).toBe(0)
  return out
}

describe('the unit', () => {
  it('runs this package with this node, and what was asked for', async () => {
    const text = await unit('--device', '/dev/vg/a b', '--writable', '/data', '--', '--kind', 'x%y')
    const start = /^ExecStart=(\S+) (\S+) daemon --kind x%%y$/m.exec(text)
    expect(start?.[1]).toMatch(/^\/.*node$/)
    expect(start?.[2]).toMatch(/^\/.*bin\/vbdkit\.js$/)
    expect(text).toContain('DeviceAllow="/dev/vg/a b" rw\n')
    expect(text).toContain('ReadWritePaths=-/data\n')
    expect(text).not.toContain('/srv')
  })

  it.skipIf(missingTools('systemd-analyze'))('is clean, and exposes little', async () => {
    const path = scene.path('vbdkit.service')
    writeFileSync(path, await unit('--device', 'block-device-mapper'))
    const verified = await tool('systemd-analyze', ['verify', '--man=no', path])
    expect(verified.stdout + verified.stderr).toBe('')
    // Fails above an exposure of 2.0.
    await tool('systemd-analyze', ['security', '--offline=yes', '--threshold=20', path])
  })
})
