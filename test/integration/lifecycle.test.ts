/**
 * The control plane as a whole, from Backend.serve to xenstore's keys, with a xenstore in this process and an engine
 * that moves nothing: how each frontend of the field opens and closes, and what toolstacks do.
 */
import { getEventListeners } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, describe, expect, it } from 'vitest'
import { file, memory } from '../../lib/disk/drivers.js'
import { VbdError } from '../../lib/errors.js'
import { ATTACH_MARK } from '../../lib/xenbus/toolstack.js'
import { Random } from '../support/product_verify.js'
import { BACKEND_PATH, FRONTEND_PATH, VbdWorld } from '../support/vbd_world.js'

let world: VbdWorld

async function open(options: Parameters<typeof VbdWorld.open>[0] = {}): Promise<VbdWorld> {
  world = await VbdWorld.open(options)
  return world
}

/** A world where xl attached 1:xvda and we serve it. */
async function attached(keys: Record<string, string> = {}): Promise<VbdWorld> {
  await open()
  await world.createDomain()
  await world.attach(keys)
  await world.backend.serve('1:xvda', memory('1MiB'), { toolstack: 'wait' })
  return world
}

afterEach(async () => {
  await world.backend.close({ timeoutMs: 50 })
  expect(world.violations).toEqual([])
  expect(world.engine.violations).toEqual([])
  expect(world.engine.mapped).toBe(0)
  expect(world.engine.vbds.size).toBe(0)
  expect(world.engine.disks.size).toBe(0)
  expect(world.ours.watches).toBe(0)
})

describe('frontends', () => {
  it('Linux: 1, 2, 3, 4, 4; and back', async () => {
    await attached()
    await world.reach(2)
    // Everything is there before InitWait (NetBSD and Windows read early).
    const keys = ['feature-flush-cache', 'feature-persistent', 'max-ring-page-order', 'sectors']
    for (const key of keys) expect(world.back(key), key).toBeDefined()
    await world.connectLinux({ 'feature-persistent': '1' })
    const vbd = world.backend.vbd('1:xvda')
    expect(vbd.connection).toMatchObject({ protocol: 'x86_64-abi', transfer: 'persistent' })
    expect(world.vbd?.connection).toEqual({
      domid: 1,
      protocol: 'x86_64-abi',
      rings: [{ ringRefs: [8], eventChannel: 15 }],
      persistent: true,
    })
    await world.frontState(5)
    await world.reach(5)
    expect(world.engine.mapped).toBe(1)
    await world.frontState(6)
    await world.reach(6)
    expect(world.written).toEqual([2, 4, 5, 6])
  })

  it('GRUB: waits for exactly 2, closes with 6 and no 5, leaves 1 to the system', async () => {
    await attached()
    await world.connectLinux()
    await world.frontState(6)
    await world.reach(6)
    await world.frontState(1)
    await world.reach(2)
    await world.connectLinux({ 'ring-ref': '9' })
    expect(world.written).toEqual([2, 4, 6, 2, 4])
    expect(world.vbd?.connection?.rings[0]?.ringRefs).toEqual([9])
  })

  it('mini-os and U-Boot: 4 at once; close 5, 6, 1 and wait for 2', async () => {
    await attached()
    await world.reach(2)
    await world.publishRing()
    await world.frontState(4)
    await world.reach(4)
    await world.frontState(5)
    await world.reach(5)
    await world.frontState(6)
    await world.reach(6)
    await world.frontState(1)
    await world.reach(2)
    expect(world.written).toEqual([2, 4, 5, 6, 2])
  })

  it('Windows: begins with a close, then opens', async () => {
    await attached()
    await world.reach(2)
    await world.frontState(5)
    await world.reach(5)
    await world.frontState(6)
    await world.reach(6)
    await world.frontState(1)
    await world.connectLinux({ 'multi-queue-num-queues': '1' })
    expect(world.written).toEqual([2, 5, 6, 2, 4])
  })

  it('NetBSD: does not wait for InitWait', async () => {
    await open()
    await world.createDomain()
    await world.attach()
    await world.publishRing()
    await world.frontState(3)
    await world.backend.serve('1:xvda', memory('1MiB'))
    await world.reach(4)
    expect(world.written).toEqual([2, 4])
  })

  it('a frontend that begins again without closing first', async () => {
    await attached()
    await world.connectLinux()
    await world.frontState(1)
    await world.until(() => world.written.length === 4, 'reopened')
    await world.connectLinux()
    expect(world.written).toEqual([2, 4, 6, 2, 4])
  })

  it('several queues and pages, with the advertised limits', async () => {
    await open()
    await world.createDomain()
    await world.attach()
    const options = { queues: 2, ringOrder: 1, indirectSegments: 0 }
    await world.backend.serve('1:xvda', memory('1MiB'), options)
    await world.reach(2)
    expect(world.back('multi-queue-max-queues')).toBe('2')
    expect(world.back('max-ring-pages')).toBe('2')
    expect(world.back('feature-max-indirect-segments')).toBeUndefined()
    await world.publishRing({
      'multi-queue-num-queues': '2',
      'ring-page-order': '1',
      'queue-0/ring-ref0': '8',
      'queue-0/ring-ref1': '9',
      'queue-0/event-channel': '15',
      'queue-1/ring-ref0': '10',
      'queue-1/ring-ref1': '11',
      'queue-1/event-channel': '16',
    })
    await world.frontState(3)
    await world.reach(4)
    expect(world.backend.vbd('1:xvda').connection).toMatchObject({ queues: 2, ringPages: 2 })
  })
})

describe('refusals', () => {
  it('keys that break the protocol: Closing, an error node, and another chance after a close', async () => {
    await attached()
    await world.reach(2)
    await world.publishRing({ 'event-channel': '0x0f' })
    await world.frontState(3)
    await world.reach(5)
    expect(world.store.get('/local/domain/0/error/backend/vbd/1/51712/error')).toBe(
      "22 the frontend cannot be connected: event-channel is not a number: '0x0f'",
    )
    await world.frontState(6)
    await world.reach(6)
    await world.frontState(1)
    await world.connectLinux()
    expect(world.store.get('/local/domain/0/error/backend/vbd/1/51712/error')).toBeUndefined()
    expect(world.written).toEqual([2, 5, 6, 2, 4])
  })

  it('grants that the engine cannot map', async () => {
    await attached()
    world.engine.connectFailures.push(new VbdError('ERR_VBD_GRANT', 'grant 8 was refused'))
    await world.reach(2)
    await world.publishRing()
    await world.frontState(3)
    await world.reach(5)
    expect(world.warnings).toEqual(['the frontend cannot be connected: grant 8 was refused'])
    expect(world.backend.vbd('1:xvda').lifecycle.holdsNothing).toBe(true)
  })

  it.each([
    ['frontend', '/local/domain/2/device/vbd/51712'],
    ['frontend', `${FRONTEND_PATH}/../51728`],
    ['frontend-id', '2'],
  ])('a directory whose %s is %s', async (key, value) => {
    await attached({ [key]: value })
    await world.reach(6)
    expect(world.back('hotplug-status')).toBe('error')
    expect(world.back('hotplug-error')).toContain(`its ${key} key is not`)
    expect(world.written).toEqual([5, 6])
  })

  it('a frontend directory of another owner', async () => {
    await open()
    await world.createDomain()
    await world.attach()
    await world.xl.setPermissions(FRONTEND_PATH, [{ access: 'n', domid: 2 }])
    await world.backend.serve('1:xvda', memory('1MiB'), { toolstack: 'wait' })
    await world.reach(6)
    expect(world.back('hotplug-error')).toContain('does not belong to domain 1')
  })

  it('states that no block device has', async () => {
    await attached()
    await world.connectLinux()
    await world.frontState(7)
    await world.reach(5)
    await world.until(() => world.engine.mapped === 0, 'let go')
    await world.frontState('6abc')
    await world.reach(6)
  })

  it('keys that we may not read count as absent', async () => {
    await attached()
    await world.connectLinux()
    world.ours.unreadable.add(`${FRONTEND_PATH}/state`)
    await world.guest.write(`${FRONTEND_PATH}/state`, '4')
    await world.reach(6)
  })
})

describe('engine events', () => {
  it('a corrupt ring: the ring is let go of, Closing, one error', async () => {
    await attached()
    await world.connectLinux()
    world.vbd?.emit({ type: 'ring-corrupt', queue: 0, message: 'producer 999 overflows' })
    await world.reach(5)
    await world.until(() => world.engine.mapped === 0, 'let go')
    expect(world.errors).toEqual(['ring 0 is corrupt: producer 999 overflows'])
    expect(world.store.get('/local/domain/0/error/backend/vbd/1/51712/error')).toContain(
      '71 ring 0',
    )
    await world.frontState(6)
    await world.reach(6)
  })

  it('a flush that failed: told, and the guest is kept', async () => {
    await attached()
    await world.connectLinux()
    world.vbd?.emit({ type: 'flush-failed', message: 'EIO' })
    await world.settle()
    expect(world.errors).toEqual(['a flush failed: EIO'])
    expect(world.state).toBe('4')
  })

  it('a flush that failed, with the policy close', async () => {
    await open()
    await world.createDomain()
    await world.attach()
    await world.backend.serve('1:xvda', memory('1MiB'), { onFlushFailure: 'close' })
    await world.connectLinux()
    world.vbd?.emit({ type: 'flush-failed', message: 'EIO' })
    await world.reach(5)
    expect(world.vbd?.connection).toBeUndefined()
  })

  it('an engine that cannot let go: Closed waits until it can', async () => {
    await attached()
    await world.connectLinux()
    world.engine.disconnectFailures = 2
    await world.frontState(6)
    await world.reach(6)
    expect(world.engine.disconnectFailures).toBe(0)
  })
})

describe('toolstacks', () => {
  it('xl detach: online=0 and 5 in use, then the guest closes', async () => {
    await attached()
    await world.connectLinux()
    await world.detach()
    await world.settle()
    // A guest that is in use goes on being served.
    expect(world.engine.mapped).toBe(1)
    await world.frontState(5)
    await world.frontState(6)
    await world.reach(6)
    await world.removeDirectories()
    await world.until(() => world.backend.vbd('1:xvda').state === 'none', 'dropped')
    expect(world.written).toEqual([2, 4, 6])
  })

  it('xl detach of a guest that never connected', async () => {
    await attached()
    await world.reach(2)
    await world.detach()
    await world.reach(6)
  })

  it('xl detach --force: the frontend directory goes first', async () => {
    await attached()
    await world.connectLinux()
    await world.xl.remove(FRONTEND_PATH)
    await world.reach(6)
    await world.xl.remove(BACKEND_PATH)
    await world.settle()
    expect(world.store.children('/local/domain/0/backend/vbd/1')).toEqual([])
  })

  it('directories that vanish while connected, and come back', async () => {
    await attached()
    await world.connectLinux()
    await world.removeDirectories()
    await world.until(() => world.engine.mapped === 0, 'let go')
    await world.attach()
    await world.connectLinux()
    expect(world.backend.vbd('1:xvda').connected).toBe(true)
  })

  it('the guest dies: everything is let go of', async () => {
    await attached()
    await world.connectLinux()
    await world.store.destroy(1)
    await world.until(() => world.engine.mapped === 0, 'let go')
    await world.reach(6)
  })

  it('the guest dies and its directory stays behind', async () => {
    await attached()
    await world.connectLinux()
    world.store.domains.delete(1)
    world.store.touch('@releaseDomain')
    await world.reach(6)
  })

  it('xl detach in the moment of connecting: the request is not overwritten', async () => {
    await attached()
    await world.reach(2)
    await world.publishRing()
    world.ours.interruption = () => world.detach()
    await world.frontState(3)
    await world.until(() => world.written.length > 1 || world.state === '5', 'answered')
    await world.frontState(6)
    await world.reach(6)
    expect(world.written).toEqual([2, 6])
  })

  it.each([1, 3])(
    'directories that vanish in the moment of a write, front %d, stay gone',
    async (front) => {
      await attached()
      await world.reach(2)
      await world.publishRing()
      if (front === 1) await world.frontState(6)
      if (front === 1) await world.reach(6)
      world.ours.interruption = () => world.removeDirectories()
      await world.frontState(front)
      await world.until(() => world.backend.vbd('1:xvda').state === 'none', 'dropped')
      expect(world.store.children(BACKEND_PATH)).toEqual([])
    },
  )

  it('is served again after close, through the same directories', async () => {
    await attached()
    await world.connectLinux()
    const closed = world.backend.vbd('1:xvda').close()
    await world.reach(5)
    await world.frontState(6)
    await closed
    await world.frontState(1)
    await world.backend.serve('1:xvda', memory('2MiB'))
    await world.connectLinux()
    expect(world.back('sectors')).toBe('4096')
  })

  it('closes while its watches are being registered', async () => {
    await open()
    await world.createDomain()
    await world.attach()
    await world.settle()
    const vbd = await world.backend.serve('1:xvda', memory('1MiB'), { toolstack: 'wait' })
    await vbd.close({ timeoutMs: 0 })
    const registered = world.ours.watches
    await world.settle()
    expect(world.ours.watches).toBe(registered)
  })

  it('mode=r after mode=w: the image is opened anew, without the right to write', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'vbdkit-lifecycle-'))
    try {
      const image = join(directory, 'disk.img')
      writeFileSync(image, Buffer.alloc(512))
      await open()
      await world.createDomain()
      await world.attach()
      await world.backend.serve('1:xvda', file(image))
      await world.reach(2)
      expect(world.backend.vbd('1:xvda').disk.readOnly).toBe(false)
      await world.removeDirectories()
      await world.until(() => world.backend.vbd('1:xvda').state === 'none', 'dropped')
      await world.attach({ mode: 'r' })
      await world.reach(2)
      expect(world.backend.vbd('1:xvda').disk.readOnly).toBe(true)
      expect(world.back('info')).toBe('4')
      expect(world.engine.disks.size).toBe(1)
    } finally {
      rmSync(directory, { recursive: true })
    }
  })

  it('mode=r, discard-enable=0 and a CD-ROM', async () => {
    await attached({ mode: 'r', 'discard-enable': '0', 'device-type': 'cdrom', removable: '1' })
    await world.reach(2)
    expect(world.back('info')).toBe('7')
    expect(world.back('feature-discard')).toBe('0')
    expect(world.back('discard-granularity')).toBeUndefined()
    expect(world.vbd?.features).toMatchObject({ readOnly: true, discard: false })
  })

  it('takes over the directories of a backend that died: asks the frontend to begin again', async () => {
    await open()
    await world.createDomain()
    await world.attach({ state: '4' })
    await world.publishRing()
    await world.frontState(4)
    await world.backend.serve('1:xvda', memory('1MiB'))
    await world.reach(5)
    await world.frontState(6)
    await world.reach(6)
    await world.frontState(1)
    await world.connectLinux()
    expect(world.written).toEqual([5, 6, 2, 4])
  })

  it('leaves a connected guest to the next process, which goes on with its rings', async () => {
    await open()
    await world.createDomain()
    await world.attach()
    const first = await world.backend.serve('1:xvda', memory('1MiB'))
    await world.connectLinux()
    const before = world.vbd!.connection
    await first.close({ keepGuest: true })
    expect(world.engine.mapped).toBe(0)
    expect(world.written).toEqual([2, 4])
    expect(world.back('vbdkit-rings')).toMatch(/^1 drained /)
    const second = await world.backend.serve('1:xvda', memory('2MiB'))
    expect(await second.whenConnected()).toMatchObject({ protocol: 'x86_64-abi', queues: 1 })
    expect(world.vbd!.connection).toEqual({ ...before, takeOver: 'drained' })
    await world.until(() => world.back('sectors') === '4096', 'the new size is told')
    expect(world.back('vbdkit-rings')).toMatch(/^1 open /)
    // State 4 once more: that is how a size is told.
    expect(world.written).toEqual([2, 4, 4])
  })

  it('goes on after the old one, as soon as it has let go of its ports', async () => {
    await open()
    await world.createDomain()
    await world.attach()
    const first = await world.backend.serve('1:xvda', memory('1MiB'))
    await world.connectLinux()
    await first.close({ keepGuest: true })
    for (let turn = 0; turn < 2; turn++) {
      world.engine.connectFailures.push(new VbdError('ERR_VBD_GRANT', 'the port is bound'))
    }
    const second = await world.backend.serve('1:xvda', memory('1MiB'))
    await second.whenConnected()
    // Not `idle`, although the record says `open` by now: that was us.
    expect(world.vbd!.connection?.takeOver).toBe('drained')
    expect(world.written).toEqual([2, 4])
  })

  it('does not go on with rings that hold what was never answered', async () => {
    await open()
    await world.createDomain()
    await world.attach()
    const first = await world.backend.serve('1:xvda', memory('1MiB'))
    await world.connectLinux()
    world.vbd!.drained = false
    await first.close({ keepGuest: true })
    expect(world.back('vbdkit-rings')).toMatch(/^1 open /)
    world.engine.connectFailures.push(new VbdError('ERR_VBD_PROTOCOL', 'requests are under way'))
    await world.backend.serve('1:xvda', memory('1MiB'))
    await world.reach(5)
    expect(world.warnings.join()).toContain('requests are under way')
    await world.frontState(6)
    await world.reach(6)
    await world.frontState(1)
    await world.connectLinux()
    expect(world.vbd!.connection?.takeOver).toBeUndefined()
  })

  it('rings that broke in this process are not taken for those of an earlier one', async () => {
    await open()
    await world.createDomain()
    await world.attach()
    await world.backend.serve('1:xvda', memory('1MiB'))
    await world.connectLinux()
    // Let go of, and Closing not written yet.
    world.ours.interruption = () => Promise.reject(new Error('passing'))
    world.vbd!.emit({ type: 'ring-corrupt', queue: 0, message: 'too far' })
    await world.reach(5)
    expect(world.vbd!.connects).toBe(1)
    expect(world.warnings.join()).toContain('passing')
  })

  it('takes over an InitWait of a backend that died, on its own terms', async () => {
    await open()
    await world.createDomain()
    await world.attach({ state: '2', 'max-ring-page-order': '9' })
    await world.publishRing()
    await world.frontState(3)
    await world.backend.serve('1:xvda', memory('1MiB'))
    await world.reach(4)
    expect(world.back('max-ring-page-order')).toBe('4')
    expect(world.written).toEqual([4])
  })

  it('a device that nobody serves is left alone, and served when somebody does', async () => {
    await open()
    await world.createDomain()
    await world.attach()
    await world.settle()
    expect(world.state).toBe('1')
    await world.backend.serve('1:xvda', memory('1MiB'))
    await world.reach(2)
  })

  it('offers what nobody serves: accepted, until it is detached', async () => {
    await open()
    world.backend.on('vbd', async (offer) => {
      expect([offer.id, offer.params, offer.mode]).toEqual(['1:xvda', 'aio:disk.img', 'w'])
      await offer.accept(memory('1MiB'))
      await expect(async () => offer.accept(memory('1MiB'))).rejects.toThrow('has been answered')
    })
    await world.createDomain()
    await world.attach()
    await world.connectLinux()
    await world.detach()
    await world.frontState(6)
    await world.reach(6)
    await world.removeDirectories()
    await world.until(() => world.backend.vbds().length === 0, 'closed itself')
  })

  it('offers what nobody serves: refused', async () => {
    await open()
    let offers = 0
    world.backend.on('vbd', (offer) => {
      offers++
      return offer.refuse('not\x1b[31m ours')
    })
    await world.createDomain()
    await world.attach()
    // Where the toolstack's hotplug script runs, and looks.
    await world.reach(2)
    expect(world.back('hotplug-error')).toBe('not?[31m ours')
    expect(world.back('hotplug-status')).toBe('error')
    await world.settle()
    expect(world.written).toEqual([2])
    await world.detach()
    await world.reach(6)
    await world.removeDirectories()
    expect(offers).toBe(1)
    await world.attach()
    await world.until(() => offers === 2, 'offered again')
  })

  it('offers again what could not be looked at because xenstore was lost', async () => {
    await open()
    world.backend.on('vbd', async (offer) => {
      await offer.accept(memory('1MiB'))
    })
    const tryRead = world.ours.tryRead.bind(world.ours)
    world.ours.tryRead = async (path) => {
      if (path.endsWith('/params')) {
        world.ours.tryRead = tryRead
        world.ours.lose()
      }
      return tryRead(path)
    }
    await world.createDomain()
    await world.attach()
    await world.until(() => !world.ours.connected, 'lost')
    await world.settle()
    world.ours.restore()
    await world.reach(2)
  })

  it('a guest that connects to what was refused is asked to close', async () => {
    await open()
    world.backend.on('vbd', (offer) => offer.refuse('not ours'))
    await world.createDomain()
    await world.attach()
    await world.reach(2)
    await world.publishRing()
    await world.frontState(3)
    await world.reach(5)
    await world.frontState(6)
    await world.reach(6)
  })

  it('offers what was there before anybody listened, once', async () => {
    await open()
    await world.createDomain()
    await world.attach()
    await world.settle()
    let offers = 0
    world.backend.on('vbd', () => void offers++)
    world.backend.on('vbd', () => {})
    await world.until(() => offers === 1, 'offered')
    await world.settle()
    expect(offers).toBe(1)
  })

  it('a device of another backend is never touched, and offered again when it is made again', async () => {
    await open()
    const scripts: (string | undefined)[] = []
    world.backend.on('vbd', async (offer) => {
      scripts.push(offer.script)
      if (offer.script === 'block') offer.ignore()
      else await offer.accept(memory('1MiB'))
    })
    await world.createDomain()
    await world.attach({ script: 'block' })
    await world.until(() => scripts.length === 1, 'offered')
    // The other backend answers, and its frontend connects.
    for (const state of ['2', '4']) await world.xl.write(`${BACKEND_PATH}/state`, state)
    await world.settle()
    expect(world.written).toEqual([])
    await world.removeDirectories()
    await world.attach({ script: 'ours' })
    await world.connectLinux()
    expect(scripts.at(-1)).toBe('ours')
    expect(new Set(scripts)).toEqual(new Set(['block', 'ours']))
  })

  it('a directory that is replaced in one instant is a new device, offered as such', async () => {
    await open()
    const params: (string | undefined)[] = []
    world.backend.on('vbd', async (offer) => {
      params.push(offer.params)
      await offer.accept(memory('1MiB'))
    })
    await world.createDomain()
    await world.attach({ params: 'one' })
    await world.connectLinux()
    await world.xl.transaction(async (tx) => {
      await tx.remove(BACKEND_PATH)
      await tx.remove(FRONTEND_PATH)
    })
    await world.attach({ params: 'two' })
    await world.connectLinux()
    expect(params).toEqual(['one', 'two'])
    expect(world.engine.mapped).toBe(1)
  })

  it('made again while the vbd before closes, and its caretaker looks on: a disk of its own', async () => {
    await open()
    world.backend.on('vbd', async (offer) => {
      await offer.accept(memory(offer.params!))
    })
    await world.createDomain()
    const random = new Random(1)
    world.ours.turns = () => 1 + random.below(10)
    let sizeMiB = 1
    const attach = () => world.attach({ params: `${sizeMiB}MiB`, 'created-by': ATTACH_MARK })
    world.store.onCommit.add(({ client, path, value }) => {
      if (client === 'backend' && path === `${BACKEND_PATH}/state` && value === '6') void attach()
    })
    await attach()
    while (sizeMiB <= 40) {
      await world.until(() => world.back('sectors') === `${2048 * sizeMiB}`, `${sizeMiB} MiB`)
      await world.reach(2)
      sizeMiB++
      await world.detach()
    }
  })

  /** Each offer is answered when the test says so, with the disk that it asked for. */
  async function answeringLate(): Promise<() => void> {
    await open()
    let answer = () => {}
    const told = new Promise<void>((resolve) => {
      answer = resolve
    })
    world.backend.on('vbd', async (offer) => {
      await told
      await offer.accept(memory(offer.params!)).catch((thrown) => {
        expect(thrown).toMatchObject({ code: 'ERR_VBD_NOT_FOUND' })
      })
    })
    await world.createDomain()
    await world.attach({ params: '1MiB' })
    await world.settle()
    return answer
  }

  it.each([
    ['in one instant', async () => {}],
    ['in two', () => world.removeDirectories().then(() => world.settle())],
  ])(
    'made again %s before its offer is answered: the disk that it asks for now',
    async (_how, remove) => {
      const answer = await answeringLate()
      await remove()
      await world.attach({ params: '2MiB' })
      await world.settle()
      answer()
      await world.reach(2)
      expect(world.back('sectors')).toBe('4096')
      await world.settle()
      expect(world.written).toEqual([2])
    },
  )

  it('detached for good: the disk is free when Closed says so', async () => {
    await open()
    let openDisks: number | undefined
    world.store.onCommit.add(({ path, value }) => {
      if (path === `${BACKEND_PATH}/state` && value === '6') openDisks = world.engine.disks.size
    })
    world.backend.on('vbd', async (offer) => {
      await offer.accept(memory('1MiB'))
    })
    await world.createDomain()
    await world.attach()
    await world.connectLinux()
    // Closed by the guest alone: it may come back.
    await world.frontState(6)
    await world.reach(6)
    expect(openDisks).toBe(1)
    await world.frontState(1)
    await world.connectLinux()
    await world.detach()
    await world.frontState(6)
    await world.reach(6)
    expect(openDisks).toBe(0)
  })
})

describe('our own toolstack', () => {
  it('makes the directories as libxl does, waits for the domain, cleans up', async () => {
    await open()
    const vbd = await world.backend.serve('1:xvda', memory('1MiB'))
    await world.settle()
    expect(world.state).toBeUndefined()
    await world.createDomain()
    await world.reach(2)
    expect(world.back('dev')).toBe('xvda')
    expect(world.front('virtual-device')).toBe('51712')
    expect(world.store.nodes.get(FRONTEND_PATH)?.permissions).toEqual([
      { access: 'n', domid: 1 },
      { access: 'r', domid: 0 },
    ])
    expect(world.store.nodes.get(BACKEND_PATH)?.permissions).toEqual([
      { access: 'n', domid: 0 },
      { access: 'r', domid: 1 },
    ])
    await world.connectLinux()
    const closed = vbd.close()
    await world.reach(5)
    expect(world.back('online')).toBe('0')
    await world.frontState(6)
    await closed
    expect(world.state).toBeUndefined()
    expect(world.front('state')).toBeUndefined()
    expect(world.store.children('/local/domain/0/backend/vbd')).toEqual([])
  })

  it('makes them again when the domain comes back', async () => {
    await open()
    await world.createDomain()
    await world.backend.serve('1:xvda', memory('1MiB'))
    await world.connectLinux()
    await world.store.destroy(1)
    await world.until(() => world.state === undefined, 'removed')
    await world.createDomain()
    await world.connectLinux()
    expect(world.backend.vbd('1:51712').connected).toBe(true)
  })

  it('makes them again when the domain comes back at once', async () => {
    await open()
    await world.createDomain()
    await world.backend.serve('1:xvda', memory('1MiB'))
    await world.connectLinux()
    await world.store.destroy(1)
    await world.createDomain()
    await world.until(() => world.front('state') === '1' && world.state === '2', 'made again')
    await world.connectLinux()
  })

  it('leaves the directories of a toolstack alone', async () => {
    await open()
    await world.createDomain()
    await world.attach()
    const vbd = await world.backend.serve('1:xvda', memory('1MiB'))
    await world.reach(2)
    await vbd.close()
    expect(world.state).toBe('6')
    expect(world.back('params')).toBe('aio:disk.img')
  })

  it('refuses to make what a toolstack has made', async () => {
    await open()
    await world.createDomain()
    await world.attach()
    const serving = world.backend.serve('1:xvda', memory('1MiB'), { toolstack: 'create' })
    await expect(serving).rejects.toMatchObject({ code: 'ERR_VBD_BUSY' })
    expect(world.backend.vbds()).toEqual([])
  })

  it('recognises what an earlier process left behind', async () => {
    await open()
    await world.createDomain()
    await world.attach({ 'created-by': 'vbdkit', mode: 'r', online: '0', state: '6' })
    const vbd = await world.backend.serve('1:xvda', memory('1MiB'))
    await world.reach(2)
    expect(world.back('mode')).toBe('w')
    await vbd.close()
    expect(world.state).toBeUndefined()
  })

  it('a guest that will not close is left after the time', async () => {
    await open()
    await world.createDomain()
    const vbd = await world.backend.serve('1:xvda', memory('1MiB'))
    await world.connectLinux()
    await vbd.close({ timeoutMs: 50 })
    expect(world.engine.mapped).toBe(0)
    expect(world.state).toBeUndefined()
  })
})

describe('resize', () => {
  it('writes sectors and state again, in one transaction, again on EAGAIN', async () => {
    await attached()
    await world.connectLinux()
    world.ours.conflicts = 3
    const seen: string[] = []
    world.store.onCommit.add(({ client, path, value }) => {
      if (client === 'backend') seen.push(`${path.slice(BACKEND_PATH.length + 1)}=${value}`)
    })
    const disk = await world.backend.vbd('1:xvda').resize('2MiB')
    expect(disk.sizeBytes).toBe(2 << 20)
    expect(seen).toEqual(['sectors=4096', 'state=4'])
  })

  it('before a frontend is there, and while it connects', async () => {
    await attached()
    await world.reach(2)
    const vbd = world.backend.vbd('1:xvda')
    await vbd.resize('2MiB')
    expect(world.back('sectors')).toBe('4096')
    await world.publishRing()
    await world.frontState(3)
    await Promise.all([world.reach(4), vbd.resize('3MiB')])
    await world.settle()
    expect(world.back('sectors')).toBe('6144')
  })

  it('tells every guest of a shared disk', async () => {
    await attached()
    await world.connectLinux()
    const disk = memory('1MiB')
    await world.createDomain(2)
    const [one, other] = [
      await world.backend.serve('2:xvda', disk),
      await world.backend.serve('2:xvdb', disk),
    ]
    await one.resize('4MiB')
    await world.until(
      () => world.store.get('/local/domain/0/backend/vbd/2/51728/sectors') === '8192',
      'the other was told',
    )
    expect(other.disk.sizeBytes).toBe(4 << 20)
    expect(world.back('sectors')).toBe('2048')
  })

  it('refuses what cannot be', async () => {
    await attached()
    const vbd = world.backend.vbd('1:xvda')
    await expect(vbd.resize('512K')).rejects.toMatchObject({ code: 'ERR_VBD_ARGUMENT' })
    await expect(vbd.resize(1000)).rejects.toMatchObject({ code: 'ERR_VBD_ARGUMENT' })
    await expect(vbd.resize(0)).rejects.toMatchObject({ code: 'ERR_VBD_ARGUMENT' })
    expect((await vbd.resize('512K', { shrink: true })).sizeBytes).toBe(512 << 10)
  })
})

describe('the connection to xenstore', () => {
  it('is lost: guests are served on, and what changed meanwhile is caught up with', async () => {
    await attached()
    await world.connectLinux()
    const states: string[] = []
    world.backend.on('xenstore', ({ state }) => states.push(state))
    world.ours.lose()
    await world.frontState(6)
    await world.settle()
    expect(world.engine.mapped).toBe(1)
    expect(world.state).toBe('4')
    world.ours.restore()
    await world.reach(6)
    expect(states).toEqual(['lost', 'connected'])
  })

  it('is lost while the device is connecting', async () => {
    await attached()
    await world.reach(2)
    await world.publishRing()
    await world.frontState(3)
    await world.until(() => world.vbd?.connection !== undefined, 'connected in the engine')
    world.ours.lose()
    await world.settle()
    world.ours.restore()
    await world.reach(4)
    expect(world.vbd?.connects).toBe(1)
  })

  it.each([1, 2, 3])(
    'is lost after commit %d took effect, and before it was answered',
    async (commit) => {
      await open()
      await world.createDomain()
      await world.attach()
      world.ours.loseAfterCommit = commit === 1
      const vbd = await world.backend.serve('1:xvda', memory('1MiB'), { toolstack: 'wait' })
      await world.reach(2)
      const restore = async () => {
        await world.until(() => !world.ours.connected, 'lost')
        await world.settle()
        world.ours.restore()
      }
      if (commit === 1) await restore()
      world.ours.loseAfterCommit = commit === 2
      await world.publishRing()
      await world.frontState(3)
      await world.reach(4)
      if (commit === 2) await restore()
      await vbd.whenConnected({ timeoutMs: 10_000 })
      world.ours.loseAfterCommit = commit === 3
      await world.frontState(6)
      await world.reach(6)
      if (commit === 3) await restore()
      await world.frontState(1)
      await world.reach(2)
      expect(vbd.connected).toBe(false)
      expect(world.vbd?.connects).toBe(1)
    },
  )

  it('is lost for good: closing does not wait for it', async () => {
    await attached()
    await world.connectLinux()
    world.ours.lose()
    await world.backend.close()
    expect(world.engine.mapped).toBe(0)
  })
})

describe('Backend', () => {
  it('knows its vbds by any spelling, and says what is served', async () => {
    await attached()
    expect(world.backend.vbd('1:51712')).toBe(world.backend.vbd('1:d0p0'))
    expect(() => world.backend.vbd('1:xvdb')).toThrow(
      expect.objectContaining({ code: 'ERR_VBD_NOT_FOUND', remedy: 'served are: 1:xvda' }),
    )
    await expect(world.backend.serve('1:xvda', memory('1MiB'))).rejects.toMatchObject({
      code: 'ERR_VBD_BUSY',
    })
  })

  it('gives everything back when the disk cannot be opened', async () => {
    await open()
    world.engine.openFailure = new VbdError('ERR_VBD_BACKING', 'no')
    await expect(world.backend.serve('1:xvda', memory('1MiB'))).rejects.toMatchObject({
      code: 'ERR_VBD_BACKING',
    })
    expect(world.backend.vbds()).toEqual([])
    world.engine.openFailure = undefined
    await world.backend.serve('1:xvda', memory('1MiB'))
  })

  it('tunes all of them, now and later', async () => {
    await attached()
    await world.reach(2)
    world.backend.tune({ pollUs: 7, logStats: true })
    expect(world.vbd?.tunables.pollUs).toBe(7)
    expect(world.engine.tuned).toEqual({ pollUs: 7 })
    const later = await world.backend.serve('1:xvdb', memory('1MiB'), { tunables: { pollUs: 8 } })
    expect(later.info().tunables.pollUs).toBe(8)
    expect(() => world.backend.tune({ pollUs: -1 })).toThrow(
      expect.objectContaining({ code: 'ERR_VBD_ARGUMENT' }),
    )
    expect(world.backend.vbd('1:xvda').info().tunables.pollUs).toBe(7)
  })

  it('tells connected, disconnected and states in order; a listener that throws hurts nobody', async () => {
    await open()
    const events: string[] = []
    world.backend.on('connected', () => {
      throw new Error('a bad listener')
    })
    world.backend.on('connected', ({ vbd }) => events.push(`connected ${vbd.id}`))
    world.backend.on('disconnected', ({ vbd }) => events.push(`disconnected ${vbd.id}`))
    world.backend.on('state', ({ side, state }) => {
      if (side === 'backend') events.push(state)
    })
    const warned = new Promise((resolve) => process.once('warning', resolve))
    await world.createDomain()
    await world.attach()
    const vbd = await world.backend.serve('1:xvda', memory('1MiB'))
    const connected = vbd.whenConnected({ timeoutMs: 10_000 })
    await world.connectLinux()
    await connected
    await world.frontState(6)
    await world.reach(6)
    expect(events).toEqual([
      'Initialising',
      'InitWait',
      'Connected',
      'connected 1:xvda',
      'disconnected 1:xvda',
      'Closed',
    ])
    expect(String(await warned)).toContain('a bad listener')
  })

  it('leaves no listener on a signal that outlives it', async () => {
    await open()
    await world.createDomain()
    const abort = new AbortController()
    const vbd = await world.backend.serve('1:xvda', memory('1MiB'), { signal: abort.signal })
    expect(getEventListeners(abort.signal, 'abort').length).toBe(1)
    await vbd.close({ timeoutMs: 50 })
    expect(getEventListeners(abort.signal, 'abort').length).toBe(0)
  })

  it('obeys signals', async () => {
    await open()
    const abort = new AbortController()
    const vbd = await world.backend.serve('1:xvda', memory('1MiB'), { signal: abort.signal })
    const waiting = vbd.whenConnected()
    abort.abort()
    await expect(waiting).rejects.toMatchObject({ code: 'ERR_VBD_STATE' })
    expect(world.backend.vbds()).toEqual([])
    const timeout = (await world.backend.serve('1:xvda', memory('1MiB'))).whenConnected({
      timeoutMs: 5,
    })
    await expect(timeout).rejects.toMatchObject({ code: 'ERR_VBD_TIMEOUT' })
    const aborted = world.backend.serve('1:xvdb', memory('1MiB'), { signal: AbortSignal.abort() })
    await expect(aborted).rejects.toMatchObject({ code: 'ERR_VBD_ABORTED' })
  })

  it('streams statistics until it is closed', async () => {
    await attached()
    const vbd = world.backend.vbd('1:xvda')
    expect(vbd.stats()).toMatchObject({ vbd: '1:xvda', connected: false, inFlight: 0 })
    const items: number[] = []
    for await (const stats of vbd.stats({ every: 10 })) {
      items.push(stats.intervalMs)
      if (items.length === 2) void vbd.close({ timeoutMs: 0 })
    }
    expect(items.length).toBeGreaterThanOrEqual(2)
    expect(() => vbd.tune({ pollUs: 1 })).toThrow('1:xvda has been closed')
  })
})
