import { describe, expect, it } from 'vitest'
import {
  frontKeys,
  negotiateIndirect,
  negotiateTransport,
  parseNumber,
  readProperties,
  staleKeys,
  type Wishes,
} from '../../../lib/testing/front_keys.js'
import { MANNERS, type MannersName } from '../../../lib/testing/manners.js'

function wishes(manners: MannersName, more: Partial<Wishes> = {}): Wishes {
  return {
    manners: MANNERS[manners],
    protocol: 'x86_64-abi',
    queues: 4,
    ringOrder: 4,
    indirectSegments: 32,
    persistent: true,
    ...more,
  }
}

const GENEROUS = new Map([
  ['max-ring-page-order', '4'],
  ['max-ring-pages', '16'],
  ['multi-queue-max-queues', '8'],
  ['feature-max-indirect-segments', '256'],
])

it.each([
  ['0', 0],
  ['51712', 51712],
  ['', undefined],
  ['01', undefined],
  ['-1', undefined],
  ['1e3', undefined],
  [' 1', undefined],
  ['99999999999999999999', undefined],
  [undefined, undefined],
])('parseNumber(%j) is %j', (text, expected) => {
  expect(parseNumber(text)).toBe(expected)
})

describe('negotiateTransport', () => {
  it('is the lesser of both sides', () => {
    expect(negotiateTransport(GENEROUS, wishes('linux'))).toMatchObject({
      queues: 4,
      ringPages: 16,
    })
    const small = new Map([
      ...GENEROUS,
      ['multi-queue-max-queues', '2'],
      ['max-ring-page-order', '1'],
    ])
    expect(negotiateTransport(small, wishes('linux'))).toMatchObject({ queues: 2, ringPages: 2 })
  })

  it('takes one page and one queue from a backend that says nothing, or nonsense', () => {
    const one = { queues: 1, ringPages: 1 }
    expect(negotiateTransport(new Map(), wishes('linux'))).toMatchObject(one)
    const junk = new Map([
      ['max-ring-page-order', '-1'],
      ['multi-queue-max-queues', '__proto__'],
    ])
    expect(negotiateTransport(junk, wishes('linux'))).toMatchObject(one)
    expect(negotiateTransport(new Map([['max-ring-pages', '0']]), wishes('linux'))).toMatchObject(
      one,
    )
  })

  it('uses the deprecated key where only that is there', () => {
    const old = new Map([['max-ring-pages', '8']])
    expect(negotiateTransport(old, wishes('linux')).ringPages).toBe(8)
  })

  it.each(['grub', 'mini-os', 'netbsd'] as const)('%s has one page and one queue', (name) => {
    const transport = negotiateTransport(GENEROUS, wishes(name))
    expect(transport).toMatchObject({ queues: 1, ringPages: 1, offersPersistent: false })
  })
})

it.each([
  ['linux', '11', 0],
  ['linux', '12', 12],
  ['linux', '256', 32],
  ['netbsd', '16', 0],
  ['netbsd', '17', 17],
  ['grub', '256', 0],
  ['linux', undefined, 0],
] as const)('%s with %s segments offered sends %i', (manners, offered, expected) => {
  const keys = new Map([['feature-max-indirect-segments', offered]])
  expect(negotiateIndirect(keys, wishes(manners))).toBe(expected)
})

describe('frontKeys', () => {
  const oneRing = [{ refs: [8], port: 3 }]
  const bigRings = [
    { refs: [8, 9], port: 3 },
    { refs: [10, 11], port: 4 },
  ]
  const keysOf = (manners: MannersName, rings: typeof oneRing, ringPages: number) => {
    const transport = {
      protocol: 'x86_64-abi' as const,
      queues: rings.length,
      ringPages,
      offersPersistent: true,
    }
    return Object.fromEntries(frontKeys(MANNERS[manners], transport, rings))
  }

  it('linux, one page, one queue: the oldest form', () => {
    expect(keysOf('linux', oneRing, 1)).toEqual({
      'ring-ref': '8',
      'event-channel': '3',
      protocol: 'x86_64-abi',
      'feature-persistent': '1',
    })
  })

  it('linux, several of both', () => {
    expect(keysOf('linux', bigRings, 2)).toEqual({
      'ring-page-order': '1',
      'multi-queue-num-queues': '2',
      'queue-0/ring-ref0': '8',
      'queue-0/ring-ref1': '9',
      'queue-0/event-channel': '3',
      'queue-1/ring-ref0': '10',
      'queue-1/ring-ref1': '11',
      'queue-1/event-channel': '4',
      protocol: 'x86_64-abi',
      'feature-persistent': '1',
    })
  })

  it('windows counts its one queue, and is silent about persistent grants', () => {
    const keys = keysOf('windows', oneRing, 1)
    expect(keys).toMatchObject({ 'multi-queue-num-queues': '1', 'ring-ref': '8' })
    expect(keys).not.toHaveProperty('feature-persistent')
  })

  it('freebsd writes the deprecated twin', () => {
    const ring = [{ refs: [8, 9], port: 3 }]
    expect(keysOf('freebsd', ring, 2)).toMatchObject({ 'num-ring-pages': '2', 'ring-ref1': '9' })
  })

  it('an earlier connection of another shape is swept away', () => {
    const written = frontKeys(
      MANNERS.linux,
      { protocol: 'x86_64-abi', queues: 1, ringPages: 1, offersPersistent: true },
      oneRing,
    )
    const present = ['backend', 'state', 'ring-ref0', 'queue-0', 'queue-3', 'protocol', 'ring-ref']
    expect(staleKeys(written, present)).toEqual(['ring-ref0', 'queue-0', 'queue-3'])
  })
})

describe('readProperties', () => {
  const transport = negotiateTransport(GENEROUS, wishes('linux'))
  const where = { path: '/b', vbd: '1:51712' }
  const read = (keys: Record<string, string>, manners: MannersName = 'linux') =>
    readProperties(new Map(Object.entries(keys)), wishes(manners), transport, where)
  const least = { sectors: '2048', info: '0', 'sector-size': '512' }

  it('has defaults for all that is optional', () => {
    expect(read(least)).toEqual({
      sectors: 2048,
      sizeBytes: 1048576,
      sectorSize: 512,
      physicalSectorSize: 512,
      readOnly: false,
      removable: false,
      cdrom: false,
      flush: false,
      barrier: false,
      discard: false,
      secureDiscard: false,
      discardGranularity: 512,
      discardAlignment: 0,
      persistent: false,
      indirectSegments: 0,
    })
  })

  it('sectors are 512 bytes whatever the sector size', () => {
    expect(read({ ...least, 'sector-size': '4096' })).toMatchObject({
      sizeBytes: 1048576,
      discardGranularity: 4096,
    })
  })

  it('secure discard needs discard', () => {
    expect(read({ ...least, 'discard-secure': '1' }).secureDiscard).toBe(false)
  })

  it.each(['sectors', 'info', 'sector-size'])('refuses a backend without %s', (key) => {
    const { [key as keyof typeof least]: _, ...rest } = least
    expect(() => read(rest as typeof least)).toThrowError(
      expect.objectContaining({ code: 'ERR_VBD_PROTOCOL', message: expect.stringContaining(key) }),
    )
  })

  it.each(['0', '513', '1000', 'x'])('refuses sector-size %s', (size) => {
    expect(() => read({ ...least, 'sector-size': size })).toThrow(/sector-size/)
  })
})
