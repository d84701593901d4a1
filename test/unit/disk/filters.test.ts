/** Filters, compositions and keys: what they describe, what they refuse, and that no key is ever part of it. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { FILTERS, parseFilter } from '../../../lib/cli/filters.js'
import { cache, readAhead } from '../../../lib/disk/caching.js'
import { concat, partition, slice } from '../../../lib/disk/compose.js'
import type { Disk } from '../../../lib/disk/disk.js'
import { file, memory, pattern, zero } from '../../../lib/disk/drivers.js'
import { encrypt, keyOf } from '../../../lib/disk/encrypt.js'
import { delay, fault, log, throttle, verify } from '../../../lib/disk/filters.js'
import { overlay } from '../../../lib/disk/overlay.js'
import { mapStages, stagesOf } from '../../../lib/disk/spec.js'
import { VbdError } from '../../../lib/errors.js'

const KEY = Buffer.from(Array.from({ length: 64 }, (_, i) => i * 3 + 1))
let folder = ''

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'vbdkit-filters-'))
  writeFileSync(join(folder, 'key'), KEY)
  writeFileSync(join(folder, 'short'), KEY.subarray(1))
})
afterAll(() => rmSync(folder, { recursive: true }))

/** What the act throws. */
function complaint(act: () => unknown): VbdError {
  try {
    act()
  } catch (thrown) {
    expect(thrown).toBeInstanceOf(VbdError)
    return thrown as VbdError
  }
  throw new Error('it was accepted')
}

describe('filters', () => {
  it('are plain data, outermost first', () => {
    const disk = memory('1MiB').with(
      throttle({ iops: 500, bps: '10MiB', burst: '1s', group: 'a' }),
      delay({ read: '5ms' }),
      fault({ op: 'read', code: 'ENOSPC', probability: 0.5, when: { offset: '1KiB', count: 2 } }),
      log('/tmp/x.log'),
      verify({ onMismatch: 'report' }),
      encrypt({ key: KEY }),
    )
    const kinds = [...stagesOf(disk.spec)].map(({ driver }) => driver)
    expect(kinds).toEqual(['encrypt', 'verify', 'log', 'fault', 'delay', 'throttle', 'memory'])
    expect(structuredClone(disk.spec)).toEqual(JSON.parse(JSON.stringify(disk.spec)))
    expect(disk.description).toBe(
      'memory(1MiB) → throttle(500 iops, 10MiB/s, group a) → delay(read 5ms) → ' +
        'fault(ENOSPC 50% of read) → log(/tmp/x.log) → verify(report) → encrypt(aes-xts-plain64)',
    )
    expect(mapStages(disk.spec, (spec) => spec)).toEqual(disk.spec)
    disk.validate()
  })

  it('keep what the disk below is', () => {
    const disk = memory('1MiB').with(throttle({ iops: 5 }))
    expect(disk.shared).toBe(true)
    expect(disk.params).toBe('memory:1048576')
    expect(disk.identity()).toBeUndefined()
    expect(disk.asReadOnly().spec).toEqual(disk.spec)
    expect(concat(memory('1MiB'), zero('1MiB'), pattern('1MiB', { seed: 3 })).spec).toMatchObject({
      driver: 'concat',
      parts: [{ driver: 'memory' }, { driver: 'zero' }, { driver: 'pattern', seed: 3 }],
    })
    expect(partition(memory('1MiB'), 2).description).toBe('memory(1MiB) → partition(2)')
  })

  it('may be functions of the user', () => {
    const half = (next: Disk) => slice(next, { length: '512KiB' })
    expect(memory('1MiB').with(half, throttle({ iops: 1 })).spec).toMatchObject({
      driver: 'throttle',
      base: { driver: 'slice', lengthBytes: 524288 },
    })
  })

  it.each<[string, () => unknown, string]>([
    ['a rate below 0', () => throttle({ iops: -1 }), 'iops'],
    ['a rate beyond all', () => throttle({ iops: 1e300 }), 'iops'],
    ['a rate of bytes beyond all', () => throttle({ bps: 2e15 }), 'bps'],
    ['a rate that is no number', () => throttle({ iops: Number.NaN }), 'iops'],
    ['an endless burst', () => throttle({ burst: '2h' }), 'burst'],
    ['a nameless group', () => throttle({ group: '' }), 'group'],
    ['a long delay', () => delay('2h'), 'longer than an hour'],
    ['an unknown errno', () => fault({ code: 'EWHAT' }), 'EWHAT'],
    ['an unknown operation', () => fault({ op: 'seek' as 'read' }), 'seek'],
    ['an impossible probability', () => fault({ probability: 1.5 }), '1.5'],
    ['a broken seed', () => fault({ seed: 0.5 }), 'seed'],
    ['a log nowhere', () => log(''), 'empty'],
    ['an odd number of records', () => log({ path: 'x', records: 100 }), '100'],
    ['an odd block', () => verify({ blockSize: 1000 }), '1000'],
    ['no key', () => encrypt({}), 'needs a key'],
    ['two keys', () => encrypt({ key: KEY, keyFile: 'x' }), 'only one'],
    ['a key of another length', () => encrypt({ key: KEY.subarray(1) }), '63 bytes'],
    ['a unit of another size', () => encrypt({ key: KEY, sectorSize: 1024 as 512 }), '1024'],
    ['one disk in a row', () => concat(memory('1MiB')), 'two disks'],
    ['partition 0', () => partition(memory('1MiB'), 0), 'number 0'],
    ['a cache of nothing', () => cache({ memory: '64KiB' }), '65536 bytes'],
    ['a cache of everything', () => cache({ memory: '1TiB' }), '1099511627776 bytes'],
    ['a cache that keeps its writes', () => cache({ writeBackAfter: '2h' }), 'longer than an hour'],
    ['a narrow window', () => readAhead({ window: 4096 }), '4096 bytes'],
    ['a window without memory', () => readAhead({ window: '1MiB', memory: '1MiB' }), '1048576'],
    ['a seed below 0', () => pattern('1MiB', { seed: -1 }), 'seed'],
  ])('refuse %s', (_what, act, words) => {
    const error = complaint(act)
    expect(error.code).toBe('ERR_VBD_ARGUMENT')
    expect(error.message).toContain(words)
    expect(error.remedy).toBeTruthy()
  })
})

describe('keys', () => {
  const disk = memory('1MiB').with(encrypt({ key: KEY }))

  it('are nowhere in a description', () => {
    const told = JSON.stringify([disk.spec, disk.description, disk.params, disk.identity()])
    for (const form of ['hex', 'base64', 'latin1'] as const) {
      expect(told).not.toContain(KEY.toString(form))
    }
    expect(told).not.toContain([...KEY].join(','))
  })

  it('are found by whoever opens the disk, as a copy', () => {
    const { key } = disk.spec as Extract<Disk['spec'], { driver: 'encrypt' }>
    keyOf(key).fill(0)
    expect(keyOf(key)).toEqual(KEY)
    expect(complaint(() => keyOf({ keyId: 'another' })).message).toContain('not in this process')
  })

  it('may be in a file, which is looked at by validate', () => {
    const at = (name: string) => memory('1MiB').with(encrypt({ keyFile: join(folder, name) }))
    at('key').validate()
    expect(complaint(() => at('short').validate()).message).toContain('63 bytes')
    expect(complaint(() => at('none').validate()).code).toBe('ERR_VBD_BACKING')
  })
})

describe('overlay', () => {
  it('opens the disk below without the right to write, and its own file with it', () => {
    const image = join(folder, 'key')
    const scratch = join(folder, 'new')
    const disk = overlay(file(image), { scratch, granularity: '64KiB' })
    expect(disk.spec).toMatchObject({
      ...{ driver: 'overlay', scratch, granuleBytes: 65536, readOnly: false },
      base: { driver: 'file', readOnly: true },
    })
    expect(disk.uses()).toMatchObject([
      { path: image, writes: false },
      { path: scratch, writes: true },
    ])
    const before = disk.identity()
    writeFileSync(scratch, '')
    expect(disk.identity()).toBe(before)
    expect(disk.asReadOnly().uses()).toMatchObject([{ writes: false }, { writes: false }])
  })

  it.each([{ granularity: 5000 }, { granularity: '2MiB' }, { granularity: 512 }, { scratch: '' }])(
    '%j is refused',
    (options) => {
      const error = complaint(() => overlay(memory('1MiB'), options))
      expect(error.code).toBe('ERR_VBD_ARGUMENT')
    },
  )
})

describe('--filter', () => {
  const made = (text: string) => memory('1MiB').with(parseFilter(text)).spec

  it('has every filter in the form that its complaint shows', () => {
    for (const [name, form] of Object.entries(FILTERS)) {
      for (const each of form.split(' or ')) {
        expect(made(each.replace('burst=1s', 'burst=500ms'))).toMatchObject({ driver: name })
      }
    }
  })

  it('means what the library means', () => {
    expect(made('throttle:iops=1.5,bps=10MiB,burst=2s,group=x')).toEqual({
      ...memory('1MiB').with(throttle({ iops: 1.5, bps: '10MiB', burst: '2s', group: 'x' })).spec,
    })
    expect(made('delay:5ms')).toMatchObject({ readMs: 5, writeMs: 5, flushMs: 0 })
    expect(made('fault:ENOSPC,op=read+write')).toMatchObject({ errno: 28, ops: ['read', 'write'] })
    expect(made('fault')).toMatchObject({ errno: 5, ops: ['read', 'write', 'flush', 'discard'] })
    expect(made('encrypt:keyfile=/x,sector=4096,discard')).toMatchObject({
      key: { keyFile: '/x' },
      unitBytes: 4096,
      discard: true,
    })
    expect(made('partition:3')).toMatchObject({ number: 3 })
    expect(made('cache')).toMatchObject({ memoryBytes: 64 << 20, writeBackMs: 5000 })
    expect(made('cache:1GiB,writeback=1s')).toMatchObject({
      memoryBytes: 2 ** 30,
      writeBackMs: 1000,
    })
    expect(made('readAhead:16MiB')).toMatchObject({ windowBytes: 16 << 20, memoryBytes: 32 << 20 })
  })

  it.each([
    ['thrttle:iops=1', "no filter 'thrttle'"],
    ['throttle:speed=1', "no 'speed'"],
    ['throttle:iops=fast', "'fast' is not a number"],
    ['throttle:iops=1,iops=2', 'given twice'],
    ['throttle:5', "no '5'"],
    ['verify:mismatch=shrug', 'neither error nor report'],
    ['partition:x', "'x' is not a number"],
    ['toString', "no filter 'toString'"],
    ['slice:offset=1', 'multiple of 512'],
  ])('refuses %s', (text, words) => {
    const error = complaint(() => parseFilter(text))
    expect(error.message).toContain(words)
    expect(error.remedy).toBeTruthy()
  })
})

describe('what a chain uses', () => {
  it('is what all of its files are', () => {
    const [a, b] = [join(folder, 'key'), join(folder, 'short')]
    const uses = concat(file(a), file(b, { readOnly: true })).uses()
    expect(uses).toMatchObject([
      { path: a, writes: true },
      { path: b, writes: false },
    ])
  })
})
