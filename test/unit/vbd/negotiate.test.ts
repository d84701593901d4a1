/** Negotiation: what frontends of the field write, what hostile ones write, and anything at all. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  type FrontendKeys,
  negotiate,
  parseDecimal,
  ringKeys,
  SHAPE_KEYS,
  type Terms,
} from '../../../lib/vbd/negotiate.js'

const TERMS: Terms = {
  domid: 7,
  maxRingPageOrder: 4,
  maxQueues: 4,
  persistent: true,
  defaultProtocol: 'x86_32-abi',
}

/** Asks as the lifecycle does: only the keys that it would have read are there. */
function ask(all: Record<string, string>, terms: Terms = TERMS) {
  const present = (keys: readonly string[]) =>
    keys.filter((key) => Object.hasOwn(all, key)).map((key) => [key, all[key]!] as const)
  const shape: FrontendKeys = new Map(present(SHAPE_KEYS))
  return negotiate(new Map([...shape, ...present(ringKeys(shape, terms))]), terms)
}

const ONE = { 'ring-ref': '8', 'event-channel': '15' }
const TWO = {
  'multi-queue-num-queues': '2',
  'queue-0/ring-ref': '8',
  'queue-0/event-channel': '15',
  'queue-1/ring-ref': '9',
  'queue-1/event-channel': '16',
}

function connection(all: Record<string, string>, terms?: Terms) {
  const result = ask(all, terms)
  if (!result.ok) throw new Error(result.reason)
  return result.connection
}

function reason(all: Record<string, string>, terms?: Terms): string {
  const result = ask(all, terms)
  if (result.ok) throw new Error('accepted')
  return result.reason
}

describe('accepted', () => {
  it('one page, no protocol: the default', () => {
    expect(connection(ONE)).toEqual({
      domid: 7,
      protocol: 'x86_32-abi',
      rings: [{ ringRefs: [8], eventChannel: 15 }],
      persistent: false,
    })
  })

  it.each(['x86_64-abi', 'x86_32-abi', 'arm-abi'])('protocol %s', (protocol) => {
    expect(connection({ ...ONE, protocol }).protocol).toBe(protocol)
  })

  it('Windows: one queue said aloud, its keys at the top', () => {
    const keys = { ...ONE, 'multi-queue-num-queues': '1', 'feature-large-sector-size': '1' }
    expect(connection(keys).rings).toHaveLength(1)
  })

  it('two queues in directories of their own', () => {
    expect(connection(TWO).rings).toEqual([
      { ringRefs: [8], eventChannel: 15 },
      { ringRefs: [9], eventChannel: 16 },
    ])
  })

  it('16 pages, in order', () => {
    const refs = Object.fromEntries(
      Array.from({ length: 16 }, (_, i) => [`ring-ref${i}`, `${99 - i}`]),
    )
    const keys = { ...refs, 'ring-page-order': '4', 'event-channel': '15' }
    expect(connection(keys).rings[0]?.ringRefs).toEqual(
      Array.from({ length: 16 }, (_, i) => 99 - i),
    )
  })

  it('one page by either name, whatever ring-page-order says', () => {
    const ref = (keys: Record<string, string>) =>
      connection({ 'event-channel': '15', ...keys }).rings[0]?.ringRefs
    expect(ref({ 'ring-ref': '8' })).toEqual([8])
    expect(ref({ 'ring-ref0': '9' })).toEqual([9])
    expect(ref({ 'ring-page-order': '0', 'ring-ref0': '9' })).toEqual([9])
    expect(ref({ 'ring-page-order': '0', 'ring-ref': '8' })).toEqual([8])
    // Both: whether ring-page-order is there decides.
    expect(ref({ 'ring-ref': '8', 'ring-ref0': '9' })).toEqual([8])
    expect(ref({ 'ring-page-order': '0', 'ring-ref': '8', 'ring-ref0': '9' })).toEqual([9])
  })

  it('persistent grants only when both sides say 1', () => {
    expect(connection({ ...ONE, 'feature-persistent': '1' }).persistent).toBe(true)
    for (const value of ['0', '', '2', '01', 'yes', ' 1']) {
      expect(connection({ ...ONE, 'feature-persistent': value }).persistent).toBe(false)
    }
    const terms = { ...TERMS, persistent: false }
    expect(connection({ ...ONE, 'feature-persistent': '1' }, terms).persistent).toBe(false)
  })
})

describe('refused', () => {
  it.each<[Record<string, string>, string]>([
    [{ 'event-channel': '15' }, 'ring-ref is missing'],
    [{ 'ring-ref': '8' }, 'event-channel is missing'],
    [{ ...ONE, 'ring-ref': '' }, "ring-ref is not a number: ''"],
    [{ ...ONE, 'ring-ref': '-1' }, "ring-ref is not a number: '-1'"],
    [{ ...ONE, 'ring-ref': '08' }, "ring-ref is not a number: '08'"],
    [{ ...ONE, 'ring-ref': '8 ' }, "ring-ref is not a number: '8 '"],
    [{ ...ONE, 'ring-ref': '8\0' }, "ring-ref is not a number: '8\\x00'"],
    [{ ...ONE, 'ring-ref': '1e3' }, "ring-ref is not a number: '1e3'"],
    [{ ...ONE, 'ring-ref': '4294967296' }, 'ring-ref is 4294967296, not within 0 to 4294967295'],
    [{ ...ONE, 'ring-ref': '99999999999' }, "ring-ref is not a number: '99999999999'"],
    [{ ...ONE, 'event-channel': '0' }, 'event-channel is 0, not within 1 to 131071'],
    [{ ...ONE, 'event-channel': '131072' }, 'event-channel is 131072, not within 1 to 131071'],
    [{ ...ONE, protocol: 'x86_64-abi ' }, "unknown protocol 'x86_64-abi '"],
    [{ ...ONE, protocol: '' }, "unknown protocol ''"],
    [{ ...ONE, protocol: '__proto__' }, "unknown protocol '__proto__'"],
    [{ ...ONE, 'ring-page-order': '5' }, 'ring-page-order is 5, not within 0 to 4'],
    [{ ...ONE, 'ring-page-order': '1 ' }, "ring-page-order is not a number: '1 '"],
    [{ ...ONE, 'ring-page-order': '0x1' }, "ring-page-order is not a number: '0x1'"],
    [{ ...ONE, 'ring-page-order': '1', 'ring-ref0': '8' }, 'ring-ref1 is missing'],
    [
      { ...ONE, 'ring-page-order': '1', 'ring-ref0': '8', 'ring-ref1': '8' },
      'ring-ref 8 is given twice',
    ],
    [{ ...ONE, 'multi-queue-num-queues': '0' }, 'multi-queue-num-queues is 0, not within 1 to 4'],
    [{ ...ONE, 'multi-queue-num-queues': '5' }, 'multi-queue-num-queues is 5, not within 1 to 4'],
    [{ ...ONE, 'multi-queue-num-queues': '2' }, 'queue-0/ring-ref is missing'],
    [{ ...TWO, 'queue-1/event-channel': '15' }, 'event-channel 15 is given twice'],
    [{ ...TWO, 'queue-1/ring-ref': '8' }, 'ring-ref 8 is given twice'],
  ])('%j', (keys, why) => expect(reason(keys)).toBe(why))

  it('values without end are not looked at, and not repeated', () => {
    expect(reason({ ...ONE, 'ring-ref': '8'.repeat(4000) }).length).toBeLessThan(100)
    expect(parseDecimal('1'.repeat(11))).toBeUndefined()
  })

  it('anything at all: a connection within the terms, or a refusal in printable words', () => {
    const number = fc.oneof(
      fc.nat(20).map(String),
      fc.constantFrom(
        '',
        '0',
        '-1',
        '4294967295',
        '4294967296',
        '1e3',
        '0x1',
        ' 1',
        '1\n',
        '__proto__',
      ),
      fc.string({ unit: 'binary', maxLength: 80 }),
    )
    const keys = fc.dictionary(
      fc.constantFrom(
        ...SHAPE_KEYS,
        ...['ring-ref', 'ring-ref0', 'ring-ref1', 'ring-ref2', 'ring-ref3', 'event-channel'],
        ...[
          'queue-0/ring-ref',
          'queue-0/event-channel',
          'queue-1/ring-ref',
          'queue-1/event-channel',
        ],
      ),
      fc.oneof(number, fc.constantFrom('x86_64-abi', 'x86_32-abi')),
    )
    const terms = fc.record({
      domid: fc.constant(7),
      maxRingPageOrder: fc.nat(4),
      maxQueues: fc.integer({ min: 1, max: 64 }),
      persistent: fc.boolean(),
      defaultProtocol: fc.constantFrom('x86_32-abi' as const, 'x86_64-abi' as const),
    })
    fc.assert(
      fc.property(keys, terms, (all, limits) => {
        const result = ask({ ...all }, limits)
        if (!result.ok) {
          expect(result.reason).toMatch(/^[\x20-\x7e]{1,300}$/)
          return
        }
        const { rings } = result.connection
        expect(rings.length).toBeLessThanOrEqual(limits.maxQueues)
        const refs = rings.flatMap((ring) => ring.ringRefs)
        expect(new Set(refs).size).toBe(refs.length)
        expect(new Set(rings.map((ring) => ring.eventChannel)).size).toBe(rings.length)
        for (const ring of rings) {
          expect(Math.log2(ring.ringRefs.length) % 1).toBe(0)
          expect(ring.ringRefs.length).toBeLessThanOrEqual(1 << limits.maxRingPageOrder)
        }
      }),
      { numRuns: 2000 },
    )
  })

  it('reads no more keys than the advertised limits need', () => {
    const shape = new Map([
      ['multi-queue-num-queues', '4'],
      ['ring-page-order', '4'],
    ])
    expect(ringKeys(shape, TERMS)).toHaveLength(4 * 17)
    expect(ringKeys(new Map([['multi-queue-num-queues', '4000000000']]), TERMS)).toEqual([])
  })
})
