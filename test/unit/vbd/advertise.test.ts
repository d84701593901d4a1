/** What frontends are told. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { advertise, makeOffer, type ToolstackKeys } from '../../../lib/vbd/advertise.js'
import { resolveVbdOptions, type VbdOptions } from '../../../lib/vbd/options.js'
import { diskInfo } from '../../support/fake_engine.js'

function keys(options: VbdOptions = {}, toolstack: ToolstackKeys = {}, disk = diskInfo()) {
  const offer = makeOffer(disk, resolveVbdOptions({ queues: 4, ...options }), toolstack)
  return { offer, ...advertise(disk, offer) }
}

describe('advertise', () => {
  it('a writable disk with everything', () => {
    const { write, remove } = keys()
    expect(Object.fromEntries(write)).toEqual({
      'feature-barrier': '1',
      'feature-flush-cache': '1',
      'feature-discard': '1',
      'discard-granularity': '4096',
      'discard-alignment': '0',
      'discard-secure': '0',
      'feature-persistent': '1',
      'feature-max-indirect-segments': '256',
      'hotplug-status': 'connected',
      'max-ring-page-order': '4',
      'max-ring-pages': '16',
      'multi-queue-max-queues': '4',
      sectors: '2048',
      'sector-size': '512',
      'physical-sector-size': '4096',
      info: '0',
    })
    expect(remove).toEqual(['hotplug-error'])
  })

  it('sectors are of 512 bytes whatever the sector size is', () => {
    const { write } = keys({}, {}, diskInfo({ sectorSize: 4096, sizeBytes: 3 * 2 ** 41 }))
    expect([write.get('sectors'), write.get('sector-size')]).toEqual(['12884901888', '4096'])
  })

  it('without indirect requests the key does not exist', () => {
    const { write, remove } = keys({ indirectSegments: 0 })
    expect(write.has('feature-max-indirect-segments')).toBe(false)
    expect(remove).toContain('feature-max-indirect-segments')
  })

  it.each([
    ['auto', '1'],
    ['persistent', '1'],
    ['copy', '0'],
    ['map', '0'],
  ] as const)('transfer %s: feature-persistent %s', (transfer, value) => {
    expect(keys({ transfer }).write.get('feature-persistent')).toBe(value)
  })

  it.each<[VbdOptions, ToolstackKeys, string]>([
    [{}, { mode: 'w' }, '0'],
    [{}, { mode: 'rw' }, '0'],
    [{}, { mode: 'r' }, '4'],
    [{}, { mode: '' }, '4'],
    [{ readOnly: true }, { mode: 'w' }, '4'],
    [{ cdrom: true }, {}, '1'],
    [{}, { 'device-type': 'cdrom', removable: '1', mode: 'r' }, '7'],
    [{ removable: true }, { 'device-type': 'disk' }, '2'],
  ])('info bits for %j and %j', (options, toolstack, info) => {
    expect(keys(options, toolstack).write.get('info')).toBe(info)
  })

  it('what cannot be written cannot be discarded', () => {
    for (const [options, toolstack] of [
      [{}, { mode: 'r' }],
      [{}, { 'discard-enable': '0' }],
      [{ discard: false }, {}],
    ] as const) {
      const { write, remove, offer } = keys(options, toolstack)
      expect(offer.features.discard).toBe(false)
      expect(write.get('feature-discard')).toBe('0')
      expect(remove).toEqual([
        'discard-granularity',
        'discard-alignment',
        'discard-secure',
        'hotplug-error',
      ])
    }
  })

  it('never offers what the disk has not', () => {
    const flag = fc.boolean()
    fc.assert(
      fc.property(
        fc.record({ canFlush: flag, canDiscard: flag, canSecureDiscard: flag, readOnly: flag }),
        fc.record({
          flush: flag,
          barrier: flag,
          discard: flag,
          secureDiscard: flag,
          readOnly: flag,
        }),
        (disk, options) => {
          const { features } = keys(options, {}, diskInfo(disk)).offer
          expect(features.flush && !disk.canFlush).toBe(false)
          expect(features.barrier && !features.flush).toBe(false)
          expect(features.discard && (disk.readOnly || !disk.canDiscard)).toBe(false)
          expect(features.secureDiscard && !features.discard).toBe(false)
          expect(features.readOnly).toBe(disk.readOnly || options.readOnly)
        },
      ),
    )
  })
})

describe('options', () => {
  it.each<[VbdOptions, string]>([
    [{ queues: 0 }, 'queues'],
    [{ queues: 65 }, 'queues'],
    [{ queues: 1.5 }, 'queues'],
    [{ ringOrder: 5 }, 'ringOrder'],
    [{ indirectSegments: 4097 }, 'indirectSegments'],
    [{ transfer: 'dma' as never }, 'transfer'],
    [{ defaultProtocol: 'native' as never }, 'defaultProtocol'],
    [{ onFlushFailure: 'panic' as never }, 'onFlushFailure'],
  ])('%j is refused', (options, name) => {
    expect(() => resolveVbdOptions(options)).toThrow(
      expect.objectContaining({ code: 'ERR_VBD_ARGUMENT', message: expect.stringContaining(name) }),
    )
  })
})
