/** Descriptions of disks, and the pool that opens them. */
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { slice, sliced } from '../../../lib/disk/compose.js'
import { file, memory, nullDisk } from '../../../lib/disk/drivers.js'
import { VbdError } from '../../../lib/errors.js'
import { DiskPool } from '../../../lib/vbd/disk_pool.js'
import { FakeEngine } from '../../support/fake_engine.js'

let directory = ''
let image = ''

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'vbdkit-disk-'))
  image = join(directory, 'disk.img')
  writeFileSync(image, '')
  truncateSync(image, 1 << 20)
})

afterAll(() => rmSync(directory, { recursive: true }))

/** What validate throws. */
function complaint(path: string, options: Parameters<typeof file>[1] = {}): VbdError {
  try {
    file(path, options).validate()
  } catch (thrown) {
    expect(thrown).toBeInstanceOf(VbdError)
    return thrown as VbdError
  }
  throw new Error('valid')
}

describe('file', () => {
  it('describes, and is immutable', () => {
    const disk = file(image, { direct: true, shared: true })
    expect(disk.spec).toEqual({ driver: 'file', path: image, direct: true, sectorSize: 512 })
    expect(disk.description).toBe(`file(${image})`)
    expect(disk.shared).toBe(true)
    expect(Object.isFrozen(disk.spec)).toBe(true)
    expect(disk.asReadOnly().spec).toMatchObject({ readOnly: true, direct: true })
    expect(disk.asReadOnly().asReadOnly().spec).toMatchObject({ readOnly: true })
    disk.validate()
  })

  it('takes relative paths from the present directory', () => {
    expect(file('a.img').spec).toMatchObject({ path: join(process.cwd(), 'a.img') })
  })

  it.each([
    ['nothing there', () => join(directory, 'none.img'), 'does not exist'],
    ['a path through a file', () => join(image, 'x'), 'does not exist'],
    ['a directory', () => directory, 'is a directory'],
    ['a device of characters', () => '/dev/null', 'is neither a file nor a block device'],
  ])('%s', (_what, path, message) => {
    const error = complaint(path())
    expect(error.code).toBe('ERR_VBD_BACKING')
    expect(error.message).toContain(message)
    expect(error.path).toBe(path())
    expect(error.remedy).toBeTruthy()
  })

  it('sizes that are no disk', () => {
    const odd = join(directory, 'odd.img')
    writeFileSync(odd, '')
    expect(complaint(odd).message).toContain('is empty')
    truncateSync(odd, 1000)
    expect(complaint(odd).message).toContain('1000 bytes, not a multiple of 512')
    truncateSync(odd, 512)
    expect(complaint(odd, { sectorSize: 4096 }).message).toContain('not a multiple of 4096')
    file(odd).validate()
  })

  it.skipIf(process.getuid?.() === 0)('a file that cannot be written', () => {
    chmodSync(image, 0o400)
    try {
      expect(complaint(image).remedy).toContain('read-only')
      file(image, { readOnly: true }).validate()
    } finally {
      chmodSync(image, 0o600)
    }
  })

  it('the same file has the same identity by any name', () => {
    const link = join(directory, 'link.img')
    symlinkSync(image, link)
    mkdirSync(join(directory, 'sub'))
    const names = [image, link, join(directory, 'sub/../disk.img')]
    expect(new Set(names.map((name) => file(name).identity())).size).toBe(1)
    expect(file(join(directory, 'none')).identity()).toBeUndefined()
  })

  it.each(['', 'a\0b'])('path %j is refused', (path) => {
    expect(() => file(path)).toThrow(expect.objectContaining({ code: 'ERR_VBD_ARGUMENT' }))
  })
})

describe('memory and null', () => {
  it('have a size', () => {
    expect(memory('1MiB').spec).toEqual({ driver: 'memory', sizeBytes: 1 << 20, sectorSize: 512 })
    expect(nullDisk(4096, { sectorSize: 4096 }).description).toBe('null(4KiB)')
  })

  it.each([0, 1, 513, '1.5K '])('size %s is checked', (size) => {
    if (size === '1.5K ') expect(memory(size).spec).toMatchObject({ sizeBytes: 1536 })
    else expect(() => memory(size)).toThrow(expect.objectContaining({ code: 'ERR_VBD_ARGUMENT' }))
  })

  it('sector sizes are 512 or 4096', () => {
    expect(() => nullDisk(4096, { sectorSize: 1024 as never })).toThrow(/sectorSize cannot be 1024/)
  })
})

describe('DiskPool', () => {
  const nothing = () => {}

  it('opens a description once, and closes it with its last lease', async () => {
    const engine = new FakeEngine()
    const pool = new DiskPool(engine)
    const disk = memory('1MiB')
    const one = await pool.lease(disk, '1:xvda', nothing)
    const [other] = await Promise.all([
      pool.lease(disk, '2:xvda', nothing),
      pool.lease(memory('1MiB'), '3:xvda', nothing).then((lease) => lease.release()),
    ])
    expect(engine.disks.size).toBe(1)
    expect(other.engineDisk).toBe(one.engineDisk)
    await one.release()
    await one.release()
    expect(engine.disks.size).toBe(1)
    await other.release()
    expect(engine.disks.size).toBe(0)
    expect(engine.violations).toEqual([])
  })

  it('tells every holder of a new size', async () => {
    const pool = new DiskPool(new FakeEngine())
    const disk = memory('1MiB')
    const told: string[] = []
    const one = await pool.lease(disk, '1:xvda', () => told.push('one'))
    const other = await pool.lease(disk, '2:xvda', () => told.push('other'))
    await other.resize(2 << 20)
    expect(told).toEqual(['one', 'other'])
    expect(one.info.sizeBytes).toBe(2 << 20)
  })

  it('refuses to let two guests have an image that one of them writes', async () => {
    const pool = new DiskPool(new FakeEngine())
    const lease = await pool.lease(file(image), '1:xvda', nothing)
    for (const disk of [file(image), file(image, { readOnly: true })]) {
      await expect(pool.lease(disk, '2:xvda', nothing)).rejects.toMatchObject({
        code: 'ERR_VBD_BUSY',
        path: image,
      })
    }
    await lease.release()
    const first = await pool.lease(file(image, { readOnly: true }), '1:xvda', nothing)
    const second = await pool.lease(file(image, { readOnly: true }), '2:xvda', nothing)
    expect(second.engineDisk).toBe(first.engineDisk)
    const shared = await pool.lease(file(image, { shared: true }), '3:xvda', nothing)
    expect(shared.info.readOnly).toBe(false)
  })

  it('an opening that failed leaves nothing behind', async () => {
    const engine = new FakeEngine()
    const pool = new DiskPool(engine)
    engine.openFailure = new VbdError('ERR_VBD_BACKING', 'no')
    const disk = memory('1MiB')
    await expect(pool.lease(disk, '1:xvda', nothing)).rejects.toThrow('no')
    engine.openFailure = undefined
    await (await pool.lease(disk, '1:xvda', nothing)).release()
    expect(engine.disks.size).toBe(0)
  })
})

describe('slice', () => {
  it('describes a part of another disk', () => {
    const disk = file(image).with(sliced({ offset: '1KiB', length: '4KiB' }))
    const base = { driver: 'file', path: image, sectorSize: 512 }
    const spec = { driver: 'slice', base, offsetBytes: 1024, lengthBytes: 4096 }
    expect(disk.spec).toEqual(spec)
    expect(JSON.parse(JSON.stringify(disk.spec))).toEqual(spec)
    expect(disk.description).toBe(`file(${image}) → slice(4KiB at 1KiB)`)
    expect(disk.identity()).toBe(file(image).identity())
    expect(disk.uses()).toMatchObject([{ path: image, writes: true }])
    expect(disk.asReadOnly().uses()).toMatchObject([{ path: image, writes: false }])
    expect(disk.asReadOnly().asReadOnly().spec).toMatchObject({ base: { readOnly: true } })
    expect(slice(memory('1MiB')).identity()).toBeUndefined()
    expect(slice(memory('1MiB')).asReadOnly().description).toBe('memory(1MiB) → slice(at 0B)')
  })

  it('checks what is below it, and itself', () => {
    expect(() => slice(file(join(directory, 'none'))).validate()).toThrow('does not exist')
    expect(() => slice(memory('1MiB'), { offset: 100 })).toThrow('no multiple of 512')
    expect(() => slice(memory('1MiB'), { length: 0 })).toThrow('is 0')
  })

  it('filters are applied outwards', () => {
    const disk = memory('1MiB').with(sliced({ offset: 512 }), sliced({ offset: 1024 }))
    expect(disk.spec).toMatchObject({ offsetBytes: 1024, base: { offsetBytes: 512 } })
  })
})
