/** The wire codec against bytes known from elsewhere, byte by byte, and against any bytes at all. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  encodePacket,
  errnoOf,
  HEADER_BYTES,
  joinStrings,
  MESSAGE,
  messageName,
  PAYLOAD_MAX,
  type Packet,
  PacketParser,
  splitStrings,
  untilNul,
} from '../../../lib/xenstore/wire.js'

const hex = (text: string) => Buffer.from(text.replaceAll(' ', ''), 'hex')

/** Packets whose bytes are known from other implementations of the protocol. */
const vectors: [string, Packet, string][] = [
  [
    'READ in a transaction',
    { type: MESSAGE.READ, reqId: 0, txId: 6, payload: '/a/b/c\0' },
    '02000000 00000000 06000000 07000000 2f612f622f6300',
  ],
  [
    'WRITE, whose value has no NUL',
    { type: MESSAGE.WRITE, reqId: 0, txId: 1, payload: '/key\0value' },
    '0b000000 00000000 01000000 0a000000 2f6b657900 76616c7565',
  ],
  [
    'TRANSACTION_START, which carries one NUL',
    { type: MESSAGE.TRANSACTION_START, reqId: 0, txId: 0, payload: '\0' },
    '06000000 00000000 00000000 01000000 00',
  ],
  [
    'TRANSACTION_END that commits',
    { type: MESSAGE.TRANSACTION_END, reqId: 0, txId: 1, payload: 'T\0' },
    '07000000 00000000 01000000 02000000 5400',
  ],
  [
    'WATCH',
    { type: MESSAGE.WATCH, reqId: 0, txId: 0, payload: '/foo/bar\0something\0' },
    '04000000 00000000 00000000 13000000 2f666f6f2f62617200 736f6d657468696e6700',
  ],
  [
    'an answer without payload',
    { type: MESSAGE.READ, reqId: 0x01020304, txId: 0xfffffffe, payload: '' },
    '02000000 04030201 feffffff 00000000',
  ],
  [
    'ERROR',
    { type: MESSAGE.ERROR, reqId: 9, txId: 0, payload: 'ENOENT\0' },
    '10000000 09000000 00000000 07000000 454e4f454e5400',
  ],
  [
    'bytes above 127',
    { type: MESSAGE.WRITE, reqId: 1, txId: 0, payload: '/k\0\x80\xff' },
    '0b000000 01000000 00000000 05000000 2f6b0080ff',
  ],
]

function parse(chunks: Iterable<Buffer>, maxPayload?: number): Packet[] {
  const packets: Packet[] = []
  const parser = new PacketParser(maxPayload)
  for (const chunk of chunks) parser.push(chunk, (packet) => packets.push(packet))
  return packets
}

const anyPacket = (maxLength: number) =>
  fc.record({
    type: fc.nat(0xffff_ffff),
    reqId: fc.nat(0xffff_ffff),
    txId: fc.nat(0xffff_ffff),
    payload: fc.uint8Array({ maxLength }).map((bytes) => Buffer.from(bytes).toString('latin1')),
  })

describe('packets', () => {
  it.each(vectors)('%s', (_name, packet, bytes) => {
    expect(encodePacket(packet)).toEqual(hex(bytes))
    expect(parse([hex(bytes)])).toEqual([packet])
  })

  it('are the same one byte at a time, and all in one chunk', () => {
    const stream = Buffer.concat(vectors.map(([, , bytes]) => hex(bytes)))
    const packets = vectors.map(([, packet]) => packet)
    expect(parse([...stream].map((byte) => Buffer.from([byte])))).toEqual(packets)
    expect(parse([stream])).toEqual(packets)
  })

  it('come back as they were, however the stream is cut', () => {
    fc.assert(
      fc.property(
        fc.array(anyPacket(300), { maxLength: 8 }),
        fc.array(fc.integer({ min: 1, max: 100 }), { minLength: 1, maxLength: 50 }),
        (packets, sizes) => {
          const stream = Buffer.concat(packets.map((packet) => encodePacket(packet)))
          expect(parse(cutInto(stream, sizes))).toEqual(packets)
        },
      ),
    )
  })

  it('survive any bytes at all: packets or one refusal, never another error', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 400 }), (bytes) => {
        try {
          for (const packet of parse([Buffer.from(bytes)], PAYLOAD_MAX)) {
            expect(packet.payload.length).toBeLessThanOrEqual(PAYLOAD_MAX)
          }
        } catch (error) {
          expect(error).toMatchObject({ errno: 'E2BIG' })
        }
      }),
    )
  })
})

function cutInto(stream: Buffer, sizes: number[]): Buffer[] {
  const chunks: Buffer[] = []
  for (let at = 0, i = 0; at < stream.length; i++) {
    const size = sizes[i % sizes.length]!
    chunks.push(stream.subarray(at, at + size))
    at += size
  }
  return chunks
}

describe('limits', () => {
  const header = (length: number) => {
    const bytes = Buffer.alloc(HEADER_BYTES)
    bytes.writeUInt32LE(length, 12)
    return bytes
  }

  it('sends at most 4096 bytes', () => {
    const packet = { type: MESSAGE.WRITE, reqId: 1, txId: 0, payload: 'x'.repeat(4096) }
    expect(encodePacket(packet)).toHaveLength(HEADER_BYTES + 4096)
    const over = { ...packet, payload: 'x'.repeat(4097) }
    expect(() => encodePacket(over)).toThrow(expect.objectContaining({ errno: 'E2BIG' }))
    expect(() => encodePacket(packet, 4080)).toThrow(expect.objectContaining({ errno: 'E2BIG' }))
  })

  it('accepts 1 MiB and no more', () => {
    const [packet] = parse([header(1 << 20), Buffer.alloc(1 << 20, 'x')])
    expect(packet?.payload).toHaveLength(1 << 20)
    const refused = expect.objectContaining({ errno: 'E2BIG' })
    expect(() => parse([header((1 << 20) + 1)])).toThrow(refused)
    expect(() => parse([header(0xffff_ffff)])).toThrow(refused)
  })

  it('delivers what came before the packet that is too long', () => {
    const seen: Packet[] = []
    const good = encodePacket({ type: 1, reqId: 1, txId: 0, payload: 'a' })
    const push = () =>
      new PacketParser(10).push(Buffer.concat([good, header(11)]), (packet) => seen.push(packet))
    expect(push).toThrow()
    expect(seen).toHaveLength(1)
  })

  it('sends bytes only', () => {
    const packet = { type: MESSAGE.WRITE, reqId: 1, txId: 0, payload: '/k\0\u0100' }
    expect(() => encodePacket(packet)).toThrow(expect.objectContaining({ errno: 'EINVAL' }))
  })
})

describe('payloads', () => {
  it('are lists of strings that end in NUL', () => {
    expect(splitStrings('')).toEqual([])
    expect(splitStrings('a\0')).toEqual(['a'])
    expect(splitStrings('a\0b\0')).toEqual(['a', 'b'])
    expect(splitStrings('a\0\0')).toEqual(['a', ''])
    expect(splitStrings('a')).toEqual(['a'])
    expect(joinStrings(['a', '', 'b'])).toBe('a\0\0b\0')
    expect(untilNul('T\0junk')).toBe('T')
    expect(untilNul('T')).toBe('T')
  })

  it('name an errno, or are EINVAL', () => {
    expect(errnoOf('ENOENT\0')).toBe('ENOENT')
    expect(errnoOf('E2BIG')).toBe('E2BIG')
    expect(errnoOf('')).toBe('EINVAL')
    expect(errnoOf('<script>\0')).toBe('EINVAL')
    expect(errnoOf('ENOENT\nforged log line\0')).toBe('EINVAL')
  })

  it('have a type with a name', () => {
    expect(messageName(MESSAGE.RM)).toBe('RM')
    expect(messageName(99)).toBe('type 99')
  })
})
