/** Sizes, durations and device names, against tables and round trips. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { VbdError } from '../../lib/errors.js'
import {
  formatNanoseconds,
  formatSize,
  formatVbdId,
  formatVdev,
  parseDuration,
  parseSize,
  parseVbdId,
  parseVdev,
} from '../../lib/units.js'

const ARGUMENT = expect.objectContaining({ code: 'ERR_VBD_ARGUMENT', exitCode: 2 })

describe('parseSize', () => {
  it.each<[string | number | bigint, number]>([
    ['0', 0],
    ['512', 512],
    ['512B', 512],
    ['512K', 512 * 1024],
    ['512k', 512 * 1024],
    ['10GiB', 10 * 1024 ** 3],
    ['10 gib', 10 * 1024 ** 3],
    ['1.5TB', 1_500_000_000_000],
    ['0.5M', 512 * 1024],
    ['2kb', 2000],
    [' 1T ', 1024 ** 4],
    ['7P', 7 * 1024 ** 5],
    [4096, 4096],
    [4096n, 4096],
  ])('%s is %d bytes', (text, bytes) => expect(parseSize(text)).toBe(bytes))

  it.each([
    '',
    '-1',
    '1.2',
    '0.3K',
    '1X',
    'GiB',
    '1e3',
    '0x10',
    '1GiBB',
    '1 2',
    '99999P',
    '9007199254740992',
    -1,
    0.5,
    Number.NaN,
    2 ** 53,
    -1n,
    1n << 60n,
  ])('%s is refused', (text) => expect(() => parseSize(text)).toThrow(ARGUMENT))

  it('throws nothing but a VbdError', () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        try {
          return parseSize(text) >= 0
        } catch (thrown) {
          return thrown instanceof VbdError
        }
      }),
    )
  })
})

describe('formatSize', () => {
  it.each([
    [0, '0B'],
    [1023, '1023B'],
    [1024, '1KiB'],
    [1536, '1.5KiB'],
    [1024 ** 2 - 1, '1MiB'],
    [1_500_000_000_000, '1.36TiB'],
  ])('%d is %s', (bytes, text) => expect(formatSize(bytes)).toBe(text))

  it('is read back, exactly where nothing was cut and else within half a percent', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 1023 }), fc.integer({ min: 0, max: 4 }), (n, power) => {
        expect(parseSize(formatSize(n * 1024 ** power))).toBe(n * 1024 ** power)
      }),
    )
    fc.assert(
      fc.property(fc.maxSafeNat(), (bytes) => {
        const [, digits, unit] = /^([\d.]+)(\w+)$/.exec(formatSize(bytes))!
        const back = Number(digits) * parseSize(`1${unit}`)
        expect(Math.abs(back - bytes)).toBeLessThanOrEqual(bytes / 200)
      }),
    )
  })
})

describe('durations', () => {
  it.each<[string | number, number]>([
    ['100ms', 100],
    ['0.1s', 100],
    ['1.5 s', 1500],
    ['250us', 0.25],
    ['2m', 120_000],
    ['1h', 3_600_000],
    [7, 7],
  ])('%s is %d ms', (text, milliseconds) => expect(parseDuration(text)).toBe(milliseconds))

  it.each(['', '5', '-1s', '1d', 's', -1, Number.POSITIVE_INFINITY])('%s is refused', (text) =>
    expect(() => parseDuration(text)).toThrow(ARGUMENT),
  )

  it.each([
    [0, '0ns'],
    [999, '999ns'],
    [999.6, '1µs'],
    [12_345, '12.3µs'],
    [4_560_000, '4.56ms'],
    [1.2e9, '1.2s'],
    [3.6e12, '3600s'],
  ])('%d ns is %s', (nanoseconds, text) => expect(formatNanoseconds(nanoseconds)).toBe(text))
})

describe('virtual devices', () => {
  // man xen-vbd-interface, and libxl__device_disk_dev_number.
  it.each([
    ['xvda', 51712],
    ['xvda1', 51713],
    ['xvdb', 51728],
    ['xvdp15', 202 * 256 + 15 * 16 + 15],
    ['xvdq', (1 << 28) | (16 << 8)],
    ['xvda16', (1 << 28) | 16],
    ['xvdaa', (1 << 28) | (26 << 8)],
    ['xvdaa5', (1 << 28) | (26 << 8) | 5],
    ['xvdzz255', (1 << 28) | (701 << 8) | 255],
    ['sda', 2048],
    ['sdp15', 2048 + 255],
    ['hda', 768],
    ['hdb', 832],
    ['hdc', 5632],
    ['hdd63', 5696 + 63],
    ['d0p0', 51712],
    ['d0p1', 51713],
    ['d26p5', (1 << 28) | (26 << 8) | 5],
    ['51712', 51712],
    ['0xca00', 51712],
    ['2147483647', 2147483647],
  ])('%s is %d', (name, number) => expect(parseVdev(name)).toBe(number))

  it.each([
    '',
    'xvd',
    'xvd1',
    'xvda0',
    'xvda01',
    'xvda256',
    'xvdA',
    'xvdbzzzz',
    'sdq',
    'sda16',
    'hde',
    'hda64',
    'd0',
    'd0p256',
    'd1048576p0',
    'd0x0p0',
    'vda',
    '051712',
    '-1',
    '2147483648',
    '51712 ',
    'xvda\n',
    '../xvda',
  ])('%j is refused', (name) => expect(() => parseVdev(name)).toThrow(ARGUMENT))

  it('numbers without a name of their own stay numbers', () => {
    expect(formatVdev((1 << 28) | (1 << 8))).toBe(String((1 << 28) | (1 << 8)))
    expect(formatVdev(0)).toBe('0')
    expect(formatVdev(22 * 256 + 128)).toBe('5760')
  })

  it('every number is found again by its name', () => {
    const interesting = fc.oneof(
      fc.integer({ min: 0, max: 0x7fff_ffff }),
      fc.integer({ min: 0, max: 0xffff }),
      fc.integer({ min: 1 << 28, max: (1 << 28) + (1 << 20) }),
    )
    fc.assert(fc.property(interesting, (number) => parseVdev(formatVdev(number)) === number))
  })

  it('every disk has a name that means it', () => {
    fc.assert(
      fc.property(fc.nat((1 << 20) - 1), fc.nat(255), (disk, partition) => {
        const number = parseVdev(`d${disk}p${partition}`)
        const name = formatVdev(number)
        expect(name).toMatch(/^xvd[a-z]{1,5}([1-9]\d*)?$/)
        expect(parseVdev(name)).toBe(number)
      }),
    )
  })
})

describe('vbd ids', () => {
  it('are a domain and a device', () => {
    expect(parseVbdId('1:xvda')).toEqual({ domid: 1, devid: 51712 })
    expect(parseVbdId('0:51728')).toEqual({ domid: 0, devid: 51728 })
    expect(formatVbdId({ domid: 7, devid: 51712 })).toBe('7:xvda')
  })

  it.each([
    '',
    '1',
    ':xvda',
    '1:',
    'a:xvda',
    '01:xvda',
    '-1:xvda',
    '32752:xvda',
    '1:xvda:2',
    '1: xvda',
  ])('%j is refused', (id) => expect(() => parseVbdId(id)).toThrow(ARGUMENT))
})
