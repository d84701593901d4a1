/** Descriptions of script disks: what is checked before anything is opened, and what types lead to. */
import { describe, expect, expectTypeOf, it } from 'vitest'
import { defineDisk } from '../../../lib/disk/define.js'
import { checkDefinition, openDefinition } from '../../../lib/disk/open_definition.js'
import { type DiskDefinition, DiskError, errnoOf } from '../../../lib/disk/script.js'

const READ = { name: 'd', size: '1MiB', read() {} } satisfies DiskDefinition

describe('defineDisk', () => {
  it('describes', () => {
    const disk = defineDisk(READ)
    expect(disk.description).toBe('script(d, 1MiB)')
    expect(disk.params).toBe('script:d')
    expect(disk.shared).toBe(true)
    expect(disk.identity()).toBeUndefined()
    expect(disk.asReadOnly().spec).toMatchObject({ driver: 'script', readOnly: true })
    expect(disk.asReadOnly().asReadOnly().spec).toMatchObject({ readOnly: true })
    expect(defineDisk({ ...READ, write() {} }).spec).toMatchObject({ readOnly: false })
    expect(defineDisk({ ...READ, size: () => 512 }).description).toBe('script(d)')
  })

  it('names modules by path, file URL or URL', () => {
    for (const module of ['/srv/d.mjs', 'file:///srv/d.mjs', new URL('file:///srv/d.mjs')]) {
      const disk = defineDisk({ module })
      expect(disk.spec).toMatchObject({ name: 'd.mjs', source: { module: 'file:///srv/d.mjs' } })
      expect(disk.description).toBe('script(d.mjs, own thread)')
    }
    expect(defineDisk({ module: '/srv/d.mjs', name: 'mine' }).params).toBe('script:mine')
    expect(() => defineDisk({ module: new URL('https://example.org/d.mjs') })).toThrow('no module')
  })

  it.each([
    [{ name: '' }, 'no name'],
    [{ name: 'täglich' }, 'no name'],
    [{ size: 1000 }, '1000 bytes'],
    [{ size: 0 }, '0 bytes'],
    [{ size: 'big' }, "'big'"],
    [{ size: undefined }, 'no size'],
    [{ size: 512, sectorSize: 4096 }, '512 bytes'],
    [{ sectorSize: 1024 }, 'sectorSize 1024'],
    [{ read: undefined }, 'no read'],
    [{ write: true }, 'write that is no function'],
    [{ concurrency: 0 }, 'concurrency 0'],
    [{ concurrency: 257 }, 'concurrency 257'],
    [{ deadline: 0 }, 'deadline 0'],
    [{ deadline: '25h' }, 'deadline 25h'],
    [{ deadline: 'soon' }, "'soon'"],
  ])('refuses %j', (changes, message) => {
    expect(() => defineDisk({ ...READ, ...(changes as object) })).toThrow(message)
    expect(() => checkDefinition({ ...READ, ...(changes as object) } as never)).toThrow(message)
  })

  it('knows what open returned, wherever it is used', () => {
    defineDisk({
      name: 'typed',
      open: async () => ({ bytes: 512 }),
      size: ({ bytes }) => bytes,
      read(buf, offset, io) {
        expectTypeOf(io.state).toEqualTypeOf<{ bytes: number }>()
        expectTypeOf(buf).toEqualTypeOf<Buffer>()
        expectTypeOf(offset).toEqualTypeOf<number>()
      },
      close(state) {
        expectTypeOf(state.bytes).toBeNumber()
      },
    })
    defineDisk({
      ...READ,
      read(_buf, _offset, io) {
        expectTypeOf(io.state).toEqualTypeOf<undefined>()
        expectTypeOf(io.signal).toEqualTypeOf<AbortSignal>()
      },
    })
    // @ts-expect-error the buffer is given, not returned
    defineDisk({ ...READ, read: () => Buffer.alloc(512) })
    // @ts-expect-error there is no such sector size
    expect(() => defineDisk({ ...READ, sectorSize: 520 })).toThrow()
  })
})

describe('openDefinition', () => {
  it('gives every property its default', async () => {
    const { shape, functions, state } = await openDefinition(READ as never)
    expect(shape).toEqual({
      name: 'd',
      sizeBytes: 1 << 20,
      sectorSize: 512,
      physicalSectorSize: 512,
      readOnly: true,
      canFlush: false,
      canDiscard: false,
      canResize: false,
      discardGranularity: 0,
      concurrency: 32,
      deadlineMs: 30_000,
    })
    expect(state).toBeUndefined()
    expect(functions.write).toBeUndefined()
  })

  it.each([
    [{ physicalSectorSize: 1000 }, 'physicalSectorSize 1000'],
    [{ sectorSize: 4096, physicalSectorSize: 512 }, 'physicalSectorSize 512'],
    [{ discardGranularity: 777 }, 'discardGranularity 777'],
  ])('refuses %j', async (changes, message) => {
    await expect(openDefinition({ ...READ, ...changes } as never)).rejects.toThrow(message)
  })

  it('keeps `this` for definitions that are objects of classes', async () => {
    class Counting {
      readonly name = 'counting'
      readonly size = 512
      count = 0
      read() {
        this.count++
      }
    }
    const counting = new Counting()
    const { functions } = await openDefinition(counting as never)
    functions.read(Buffer.alloc(0), 0, undefined as never)
    expect(counting.count).toBe(1)
  })
})

it('DiskErrors are known from whichever copy of the package they come', () => {
  expect(errnoOf(new DiskError('ENOSPC'))).toBe(28)
  expect(new DiskError('EIO').message).toBe('EIO')
  expect(new DiskError('EIO', 'the tape is torn').message).toBe('the tape is torn')
  const foreign = Object.assign(new Error('x'), { name: 'DiskError', code: 'EOPNOTSUPP' })
  expect(errnoOf(foreign)).toBe(95)
  expect(errnoOf(new Error('EIO'))).toBeUndefined()
  expect(errnoOf('EIO')).toBeUndefined()
  expect(
    errnoOf(Object.assign(new Error('x'), { name: 'DiskError', code: 'EPERM' })),
  ).toBeUndefined()
})
