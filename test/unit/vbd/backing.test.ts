/**
 * What a vbd stands on, where things happen at once: a close while a disk opens,
 * a pause of rings that cannot be left.
 */
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { memory } from '../../../lib/disk/drivers.js'
import type { Vbd } from '../../../lib/vbd/vbd.js'
import { VbdWorld } from '../../support/vbd_world.js'

let world: VbdWorld

beforeEach(async () => {
  world = await VbdWorld.open()
})
afterEach(async () => {
  await world.backend.close({ timeoutMs: 0 })
  expect(world.engine.violations).toEqual([])
  expect(world.violations).toEqual([])
})

async function connected(): Promise<Vbd> {
  await world.createDomain()
  await world.attach()
  const vbd = await world.backend.serve('1:xvda', memory('1MiB'))
  await world.connectLinux()
  await world.settle()
  return vbd
}

describe('close', () => {
  it('while its disk is being opened: the disk is given back', async () => {
    const serving = world.backend.serve('1:xvda', memory('1MiB'))
    const closed = world.backend.close()
    await expect(serving).rejects.toMatchObject({ code: 'ERR_VBD_STATE' })
    await closed
    expect(world.engine.disks.size).toBe(0)
  })
})

describe('pause', () => {
  it('of rings with requests that are never answered ends them, and is refused', async () => {
    const vbd = await connected()
    world.vbd!.drained = false
    await expect(vbd.pause()).rejects.toMatchObject({ code: 'ERR_VBD_STATE' })
    expect(vbd.paused).toBe(false)
    await world.reach(5)
    expect(world.vbd!.connects).toBe(1)
    expect(world.errors.join()).toContain('never answered')
    await world.frontState(6)
    await world.reach(6)
    world.vbd!.drained = true
    await world.frontState(1)
    await world.connectLinux()
    await vbd.pause()
    await vbd.resume()
    expect(world.vbd!.connects).toBe(3)
  })

  it('and so is a swap of them: the old disk stays', async () => {
    const vbd = await connected()
    world.vbd!.drained = false
    await expect(vbd.swap(memory('2MiB'))).rejects.toMatchObject({ code: 'ERR_VBD_STATE' })
    expect(vbd.disk.sizeBytes).toBe(1 << 20)
    expect(world.engine.disks.size).toBe(1)
  })
})
