/** The mock host with a broker that only keeps account: directories, domains in xenstore, mistakes of the operator. */
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import type { VbdError } from '../../../lib/errors.js'
import { MockHost, type MockHostOptions, mockPaths } from '../../../lib/mock/mock_host.js'
import { connectXenstore, type XenstoreClient } from '../../../lib/xenstore/client.js'
import { FakeBroker, nativeError } from '../../support/fake_broker.js'
import { PATIENT } from '../../support/patience.js'

let parent: string
let broker: FakeBroker
const open: (MockHost | XenstoreClient)[] = []

beforeEach(() => {
  parent = mkdtempSync(join(tmpdir(), 'vbdkit-host-'))
})
afterEach(async () => {
  for (const one of open.splice(0).reverse()) await one.close()
  rmSync(parent, { recursive: true, force: true })
})

async function start(options: Partial<MockHostOptions> = {}): Promise<MockHost> {
  const host = await MockHost.start({
    dir: join(parent, 'mock'),
    broker: (path, onDomain) => {
      broker = new FakeBroker(path, onDomain)
      return broker
    },
    ...options,
  })
  open.push(host)
  return host
}

async function connect(path: string): Promise<XenstoreClient> {
  const xs = await connectXenstore({ path })
  open.push(xs)
  return xs
}

describe('mock host', () => {
  it('makes its directory, and removes it again', async () => {
    const host = await start()
    expect(statSync(host.dir).mode & 0o777).toBe(0o700)
    expect(host.paths).toEqual({
      ...mockPaths(join(parent, 'mock')),
      guestXenstore: expect.any(Function),
    })
    expect(broker.socketPath).toBe(join(parent, 'mock/xen.sock'))
    expect(host.paths.xenstore).toBe(join(parent, 'mock/xenstored.sock'))
    expect(host.paths.guestXenstore(7)).toBe(join(parent, 'mock/xenstored-7.sock'))
    await host.createDomain(1, 10)
    await host.close()
    await host.close()
    expect(broker.closed).toBe(1)
    expect(readdirSync(parent)).toEqual([])
    expect(() => host.domains()).toThrow(expect.objectContaining({ code: 'ERR_VBD_STATE' }))
  })

  it('leaves a directory that was there, and what others put into its own', async () => {
    const before = join(parent, 'before')
    mkdirSync(before)
    await (await start({ dir: before })).close()
    expect(readdirSync(before)).toEqual([])
    const host = await start()
    writeFileSync(join(host.dir, 'mine'), '')
    await host.close()
    expect(readdirSync(host.dir)).toEqual(['mine'])
  })

  it('takes a temporary directory when none is given', async () => {
    const host = await MockHost.start({ broker: (path, told) => new FakeBroker(path, told) })
    expect(existsSync(host.paths.xenstore)).toBe(true)
    await host[Symbol.asyncDispose]()
    expect(existsSync(host.dir)).toBe(false)
  })

  it('gives a domain what a toolstack gives it', async () => {
    const host = await start()
    const xs = await connect(host.paths.xenstore)
    const introduced: string[] = []
    await xs.watch('@introduceDomain', (path) => introduced.push(path))
    await vi.waitFor(() => expect(introduced).toHaveLength(1), PATIENT)
    await host.createDomain(3, 1024)
    await vi.waitFor(() => expect(introduced).toHaveLength(2), PATIENT)
    expect(await xs.isDomainIntroduced(3)).toBe(true)
    expect(await xs.read('/local/domain/3/name')).toBe('guest-3')
    expect(await xs.read('/local/domain/3/domid')).toBe('3')
    expect(await xs.read('/local/domain/3/memory/static-max')).toBe('4096')
    const vm = await xs.read('/local/domain/3/vm')
    expect(vm).toMatch(/^\/vm\/[0-9a-f-]{36}$/)
    expect(await xs.read(`${vm}/uuid`)).toBe(vm.slice('/vm/'.length))
    expect(await xs.getPermissions('/local/domain/3')).toEqual([
      { access: 'n', domid: 0 },
      { access: 'r', domid: 3 },
    ])
    expect(host.domains()).toMatchObject([{ domid: 3, pages: 1024, dying: false }])
  })

  it('lets a domain speak for itself, and no further', async () => {
    const host = await start()
    await host.createDomain(3, 1)
    const guest = await connect(host.paths.guestXenstore(3))
    expect(await guest.read('name')).toBe('guest-3')
    await guest.write('data/report', 'mine')
    expect(await guest.read('/local/domain/3/data/report')).toBe('mine')
    await expect(guest.write('name', 'forged')).rejects.toMatchObject({ errno: 'EACCES' })
    await expect(guest.write('device/vbd/1/state', '1')).rejects.toMatchObject({ errno: 'EACCES' })
    await expect(guest.list('/')).rejects.toMatchObject({ errno: 'EACCES' })
    await expect(guest.isDomainIntroduced(3)).rejects.toMatchObject({ errno: 'EACCES' })
  })

  it('destroys a domain as xl does: its nodes go first, then it is released', async () => {
    const host = await start()
    await host.createDomain(3, 1)
    const guest = await connect(host.paths.guestXenstore(3))
    const xs = await connect(host.paths.xenstore)
    const vm = await xs.read('/local/domain/3/vm')
    const events: string[] = []
    await xs.watch('/local/domain/3', () => events.push('nodes'))
    await xs.watch('@releaseDomain', () => events.push('released'))
    await vi.waitFor(() => expect(events).toHaveLength(2), PATIENT)
    const lost = new Promise<string>((resolve) => guest.onConnection(resolve))
    broker.mapped.add(3)
    await host.destroyDomain(3)
    expect(await lost).toBe('lost')
    await vi.waitFor(() => expect(events.slice(2)).toEqual(['nodes', 'released']), PATIENT)
    expect(await xs.isDomainIntroduced(3)).toBe(false)
    expect(await xs.tryRead('/local/domain/3/name')).toBeUndefined()
    expect(await xs.tryRead(vm)).toBeUndefined()
    expect(existsSync(host.paths.guestXenstore(3))).toBe(false)
    expect(host.domains()).toMatchObject([{ domid: 3, dying: true }])
    await expect(host.destroyDomain(3)).rejects.toMatchObject({ code: 'ERR_VBD_NOT_FOUND' })
  })

  it('follows domains that other processes make and end', async () => {
    const host = await start()
    const xs = await connect(host.paths.xenstore)
    for (let round = 0; round < 3; round++) {
      broker.createDomain(4, 1)
      await vi.waitFor(async () => expect(await xs.isDomainIntroduced(4)).toBe(true), PATIENT)
      expect(await xs.read('/local/domain/4/name')).toBe('guest-4')
      broker.destroyDomain(4)
      await vi.waitFor(async () => expect(await xs.isDomainIntroduced(4)).toBe(false), PATIENT)
    }
    // Born and dead before anybody looked.
    broker.createDomain(5, 1)
    broker.destroyDomain(5)
    await host.createDomain(6, 1)
    expect(await xs.list('/local/domain')).toEqual(['6'])
  })

  it('tells of a domain of another process that it cannot serve', async () => {
    const errors: VbdError[] = []
    const host = await start({ onError: (error) => errors.push(error) })
    writeFileSync(host.paths.guestXenstore(4), 'in the way')
    broker.createDomain(4, 1)
    await vi.waitFor(() => expect(errors).toMatchObject([{ code: 'ERR_VBD_ARGUMENT' }]), PATIENT)
    await expect(host.createDomain(4, 1)).rejects.toMatchObject({ code: 'ERR_VBD_BUSY' })
    rmSync(host.paths.guestXenstore(4))
    await host.destroyDomain(4)
    await host.createDomain(4, 1)
    expect(errors).toHaveLength(1)
  })

  it('fails calls as it is told', async () => {
    const host = await start()
    const faults = [{ call: 'map' as const, errno: 12 }]
    host.setFaults(faults)
    expect(broker.faults).toEqual(faults)
    host.setStoreFaults([{ operation: 'READ', errno: 'EACCES' }])
    const xs = await connect(host.paths.xenstore)
    await expect(xs.read('/tool')).rejects.toMatchObject({ errno: 'EACCES' })
    host.setStoreFaults([])
    expect(await xs.read('/tool')).toBe('')
  })

  it('rejects who waits for a domain when it stops', async () => {
    const host = await start()
    const waiting = host.createDomain(3, 1)
    const rejected = expect(waiting).rejects.toMatchObject({ code: 'ERR_VBD_STATE' })
    await host.close()
    await rejected
  })
})

describe('mistakes of the operator', () => {
  it.each<[string, () => string, string, string]>([
    ['a parent that is not there', () => join(parent, 'no/such'), 'ERR_VBD_ARGUMENT', 'make '],
    [
      'a file',
      () => {
        writeFileSync(join(parent, 'file'), '')
        return join(parent, 'file')
      },
      'ERR_VBD_ARGUMENT',
      'name a directory',
    ],
    ['too long a path', () => join(parent, 'x'.repeat(90)), 'ERR_VBD_ARGUMENT', 'shorter'],
  ])('%s is said with its remedy', async (_name, dir, code, remedy) => {
    const before = readdirSync(parent)
    const path = dir()
    await expect(start({ dir: path })).rejects.toMatchObject({
      code,
      exitCode: 2,
      remedy: expect.stringContaining(remedy),
    })
    expect(readdirSync(parent).filter((name) => name !== 'file')).toEqual(before)
  })

  it('a mock that runs already is left alone', async () => {
    const host = await start()
    await expect(start()).rejects.toMatchObject({ code: 'ERR_VBD_BUSY', exitCode: 2 })
    expect(existsSync(host.paths.xenstore)).toBe(true)
    const xs = await connect(host.paths.xenstore)
    expect(await xs.list('/')).toEqual(['tool'])
  })

  it('a broker that runs already is left alone', async () => {
    mkdirSync(join(parent, 'mock'))
    const other = createServer()
    await new Promise<void>((resolve) =>
      other.listen({ path: mockPaths(join(parent, 'mock')).xen }, resolve),
    )
    await expect(start()).rejects.toMatchObject({ code: 'ERR_VBD_BUSY', exitCode: 2 })
    expect(readdirSync(join(parent, 'mock'))).toEqual(['xen.sock'])
    await new Promise((resolve) => other.close(resolve))
  })

  it('a broker that does not start leaves nothing', async () => {
    const failing = (error: Error) => ({
      broker: () => {
        throw error
      },
    })
    await expect(start(failing(nativeError('in use', 98)))).rejects.toMatchObject({
      code: 'ERR_VBD_BUSY',
    })
    await expect(start(failing(nativeError('no memory', 12)))).rejects.toMatchObject({
      code: 'ERR_VBD_NO_XEN',
    })
    expect(readdirSync(parent)).toEqual([])
  })

  it('numbers that no domain can have are refused', async () => {
    const host = await start()
    for (const domid of [0, -1, 1.5, 0x7ff0, Number.NaN]) {
      await expect(host.createDomain(domid, 1)).rejects.toMatchObject({ code: 'ERR_VBD_ARGUMENT' })
    }
    await expect(host.createDomain(1, 0)).rejects.toMatchObject({ code: 'ERR_VBD_ARGUMENT' })
    await host.createDomain(1, 1)
    await expect(host.createDomain(1, 1)).rejects.toMatchObject({ code: 'ERR_VBD_BUSY' })
    await expect(host.destroyDomain(2)).rejects.toMatchObject({ code: 'ERR_VBD_NOT_FOUND' })
  })
})
