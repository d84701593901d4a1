import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { formatParams, parseParams } from '../../../lib/daemon/params.js'
import { VbdError } from '../../../lib/errors.js'

const plain = { words: {}, vbd: {} }

describe('params of a toolstack', () => {
  it.each([
    ['/srv/vm3.raw', { driver: 'file', argument: '/srv/vm3.raw', ...plain }],
    ['aio:/srv/vm3.raw', { driver: 'file', argument: '/srv/vm3.raw', ...plain }],
    ['file:/srv/vm3.raw', { driver: 'file', argument: '/srv/vm3.raw', ...plain }],
    ['aio:memory:1GiB', { driver: 'memory', argument: '1GiB', ...plain }],
    ['null:1T', { driver: 'null', argument: '1T', ...plain }],
    // A path is a path to its last byte.
    ['/srv/a,b:c d?x=1', { driver: 'file', argument: '/srv/a,b:c d?x=1', ...plain }],
    ['file:/srv/a,direct=on', { driver: 'file', argument: '/srv/a,direct=on', ...plain }],
    [
      'file,direct=on,write-through,queues=2,no-discard:/srv/a:b',
      {
        driver: 'file',
        argument: '/srv/a:b',
        words: { direct: 'on', writeThrough: true },
        vbd: { queues: 2, discard: false },
      },
    ],
    [
      'memory,sector-size=4096,transfer=copy:64MiB',
      {
        driver: 'memory',
        argument: '64MiB',
        words: { sectorSize: '4096' },
        vbd: { transfer: 'copy' },
      },
    ],
  ])('%s', (text, expected) => {
    expect(parseParams(text)).toEqual(expected)
  })

  it.each([
    [undefined, 'the target is empty'],
    ['', 'the target is empty'],
    ['aio:', 'the target is empty'],
    ['disk.img', 'neither an absolute path nor'],
    ['file:disk.img', 'is not absolute'],
    ['file:', 'is not absolute'],
    ['script:disk.ts', 'is not absolute'],
    ['any thing', 'neither an absolute path nor'],
    ['../etc/passwd', 'neither an absolute path nor'],
    ['/srv/a\nb', 'control characters'],
    ['/srv/a\0b', 'control characters'],
    [`/${'x'.repeat(5000)}`, 'too long'],
    ['file,fast:/srv/a', "no option 'fast'"],
    ['file,:/srv/a', "no option ''"],
    ['file,direct=maybe:/srv/a', "direct cannot be 'maybe'"],
    ['file,direct:/srv/a', "direct cannot be ''"],
    ['file,write-through=1:/srv/a', "write-through cannot be '1'"],
    ['file,queues=two:/srv/a', "queues cannot be 'two'"],
    ['file,queues=:/srv/a', "queues cannot be ''"],
    ['file,io=uring,io=uring:/srv/a', 'io is given twice'],
    ['file,toString:/srv/a', "no option 'toString'"],
  ])('refuses %j', (text, why) => {
    expect(() => parseParams(text)).toThrow(why)
  })

  it('of any bytes at all: a disk, or one line that says what is wrong', () => {
    const pieces = fc.constantFrom('aio:', 'file', ',', ':', '=', '/', 'direct=on', 'a', '\0', '\n')
    const text = fc.oneof(
      fc.string(),
      fc.array(pieces).map((parts) => parts.join('')),
    )
    fc.assert(
      fc.property(text, (params) => {
        try {
          const { driver, argument } = parseParams(params)
          expect(params.replace(/^aio:/, '').endsWith(argument)).toBe(true)
          expect(driver).toMatch(/^[a-z][a-z0-9-]*$/)
        } catch (thrown) {
          expect(thrown).toBeInstanceOf(VbdError)
          expect((thrown as VbdError).remedy).toBeDefined()
        }
      }),
    )
  })

  it('are read as they were written', () => {
    const words = fc.record(
      {
        direct: fc.constantFrom('auto', 'on', 'off'),
        io: fc.constantFrom('auto', 'uring', 'sync'),
        sectorSize: fc.constantFrom('512', '4096'),
        writeThrough: fc.constant(true),
        shared: fc.constant(true),
        readOnly: fc.constant(true),
      },
      { requiredKeys: [] },
    )
    const path = fc.string().filter((text) => !/[\0-\x1f\x7f]/.test(text))
    fc.assert(
      fc.property(words, path, (given, name) => {
        const line = formatParams('file', `/${name}`, given as never)
        expect(parseParams(line)).toEqual({
          driver: 'file',
          argument: `/${name}`,
          words: given,
          vbd: {},
        })
      }),
    )
  })
})
