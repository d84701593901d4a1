import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  decodeResponse,
  encodeRequest,
  LAYOUTS,
  ringEntries,
  type WireRequest,
} from '../../../lib/testing/wire.js'

const base = { handle: 51712, id: { lo: 0x55667788, hi: 0x11223344 }, sector: 0x1000 }
const READ: WireRequest = {
  ...base,
  operation: 'read',
  segments: [
    { ref: 0x101, first: 0, last: 7 },
    { ref: 0x102, first: 2, last: 3 },
  ],
}
const DISCARD: WireRequest = { ...base, operation: 'discard', sectors: 0x800, secure: true }
const INDIRECT: WireRequest = {
  ...base,
  operation: 'indirect',
  indirectOperation: 'write',
  segmentCount: 32,
  indirectRefs: [0x201],
}

const VECTORS: [keyof typeof LAYOUTS, string, WireRequest, string][] = [
  [
    'x86_64-abi',
    'read',
    READ,
    '000200ca00000000 8877665544332211 0010000000000000 0101000000070000 0201000002030000',
  ],
  [
    'x86_32-abi',
    'read',
    READ,
    '000200ca 8877665544332211 0010000000000000 0101000000070000 0201000002030000',
  ],
  [
    'x86_64-abi',
    'discard',
    DISCARD,
    '050100ca00000000 8877665544332211 0010000000000000 0008000000000000',
  ],
  ['x86_32-abi', 'discard', DISCARD, '050100ca 8877665544332211 0010000000000000 0008000000000000'],
  [
    'x86_64-abi',
    'indirect',
    INDIRECT,
    `0601200000000000 8877665544332211 0010000000000000 00ca0000 01020000 ${'00'.repeat(28)} 00000000`,
  ],
  [
    'x86_32-abi',
    'indirect',
    INDIRECT,
    `06012000 8877665544332211 0010000000000000 00ca0000 01020000 ${'00'.repeat(28)} ${'00'.repeat(8)}`,
  ],
]

describe('encodeRequest', () => {
  it.each(VECTORS)('%s: the golden vector of a %s', (protocol, _, request, hex) => {
    const layout = LAYOUTS[protocol]
    const memory = Buffer.alloc(512, 0xee)
    const view = new DataView(memory.buffer, memory.byteOffset, memory.length)
    encodeRequest(view, 128, layout, request)
    const expected = Buffer.alloc(layout.stride)
    Buffer.from(hex.replaceAll(' ', ''), 'hex').copy(expected)
    expect(memory.subarray(128, 128 + layout.stride).toString('hex')).toBe(expected.toString('hex'))
    expect(memory[127]).toBe(0xee)
    expect(memory[128 + layout.stride]).toBe(0xee)
  })

  it('arm-abi is x86_64-abi', () => {
    const { protocol: _, ...arm } = LAYOUTS['arm-abi']
    const { protocol: __, ...x86 } = LAYOUTS['x86_64-abi']
    expect(arm).toEqual(x86)
  })

  it('carries any 64-bit sector and id unbent', () => {
    const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n })
    fc.assert(
      fc.property(u64, u64, fc.constantFrom(...Object.values(LAYOUTS)), (id, sector, layout) => {
        const view = new DataView(new ArrayBuffer(112))
        const halves = { lo: Number(id & 0xffffffffn), hi: Number(id >> 32n) }
        const request: WireRequest = {
          operation: 'flush',
          handle: 0,
          id: halves,
          sector,
          segments: [],
        }
        encodeRequest(view, 0, layout, request)
        expect(view.getBigUint64(layout.id, true)).toBe(id)
        expect(view.getBigUint64(layout.sector, true)).toBe(sector)
      }),
    )
  })

  it('writes a sector beyond 2^32 that is a number', () => {
    const view = new DataView(new ArrayBuffer(112))
    const sector = 2 ** 41 + 8
    encodeRequest(view, 0, LAYOUTS['x86_32-abi'], { ...READ, sector } as WireRequest)
    expect(view.getBigUint64(12, true)).toBe(2n ** 41n + 8n)
  })
})

describe('decodeResponse', () => {
  it.each([
    ['88776655443322110155000000000000', 1, 0],
    ['8877665544332211055afeff00000000', 5, -2],
    ['887766554433221100eeffff00000000', 0, -1],
  ])('%s', (hex, operation, status) => {
    const bytes = Buffer.from(hex, 'hex')
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
    const id = { lo: 0x55667788, hi: 0x11223344 }
    expect(decodeResponse(view, 0)).toEqual({ id, operation, status })
  })
})

it('a ring has 32 slots per page, whatever the ABI', () => {
  for (const stride of [108, 112]) {
    const entries = [1, 2, 4, 8, 16, 32].map((pages) => ringEntries(pages, stride))
    expect(entries).toEqual([32, 64, 128, 256, 512, 1024])
  }
})
