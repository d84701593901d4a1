import { describe, expect, it } from 'vitest'
import type { Connection } from '../../../lib/engine/engine.js'
import {
  brokenPromise,
  drainedRecord,
  ringRecord,
  takeOverOf,
} from '../../../lib/vbd/succession.js'

const connection: Connection = {
  domid: 1,
  protocol: 'x86_64-abi',
  persistent: true,
  rings: [
    { ringRefs: [8, 9], eventChannel: 15 },
    { ringRefs: [10, 11], eventChannel: 16 },
  ],
}

describe('the record of rings', () => {
  it('says whether everything that was taken was answered', () => {
    const open = ringRecord(connection)
    expect(open).toMatch(/^1 open [0-9a-f]{32}$/)
    expect(takeOverOf(open, connection)).toBe('idle')
    expect(takeOverOf(drainedRecord(open), connection)).toBe('drained')
    const journaled = ringRecord(connection, 'journaled')
    expect(takeOverOf(journaled, connection)).toBe('journaled')
    for (const record of [open, journaled]) {
      expect(drainedRecord(record)).toBe(ringRecord(connection, 'drained'))
    }
  })

  it.each<[string, Partial<Connection>]>([
    ['protocol', { protocol: 'x86_32-abi' }],
    ['persistent', { persistent: false }],
    ['ring-ref', { rings: [{ ringRefs: [8, 12], eventChannel: 15 }, connection.rings[1]!] }],
    ['event-channel', { rings: [{ ringRefs: [8, 9], eventChannel: 17 }, connection.rings[1]!] }],
    ['order of pages', { rings: [{ ringRefs: [9, 8], eventChannel: 15 }, connection.rings[1]!] }],
    ['queues', { rings: [connection.rings[0]!] }],
  ])('is of these rings alone: another %s is not known', (_what, changes) => {
    for (const state of ['open', 'drained'] as const) {
      const record = ringRecord(connection, state)
      expect(takeOverOf(record, { ...connection, ...changes })).toBeUndefined()
    }
  })

  it('of another version, cut short or absent, is not understood', () => {
    const record = ringRecord(connection, 'drained')
    for (const wrong of [
      undefined,
      '',
      record.slice(0, -1),
      record.replace('1', '2'),
      `${record} `,
    ]) {
      expect(takeOverOf(wrong, connection)).toBeUndefined()
    }
  })
})

describe('promises to a connected guest', () => {
  const old = {
    'feature-barrier': '1',
    'feature-flush-cache': '1',
    'feature-discard': '1',
    'discard-secure': '0',
    'feature-max-indirect-segments': '256',
    'sector-size': '512',
    info: '0',
  }
  const now = (changes: Record<string, string | undefined> = {}) =>
    new Map(
      Object.entries({ ...old, ...changes }).filter(
        (entry): entry is [string, string] => entry[1] !== undefined,
      ),
    )

  it.each<[string, Record<string, string | undefined>]>([
    ['the same', {}],
    ['more segments', { 'feature-max-indirect-segments': '512' }],
    ['more features', { 'discard-secure': '1' }],
  ])('are kept by %s', (_what, changes) => {
    expect(brokenPromise(old, now(changes))).toBeUndefined()
  })

  it.each<[string, Record<string, string | undefined>]>([
    ['feature-flush-cache', { 'feature-flush-cache': '0' }],
    ['feature-discard', { 'feature-discard': undefined }],
    ['feature-max-indirect-segments', { 'feature-max-indirect-segments': '32' }],
    ['feature-max-indirect-segments', { 'feature-max-indirect-segments': undefined }],
    ['sector-size', { 'sector-size': '4096' }],
    ['read-only', { info: '4' }],
  ])('are broken by less: %s', (what, changes) => {
    expect(brokenPromise(old, now(changes))).toContain(what)
  })

  it('are what was made, not what could have been', () => {
    const little = { ...old, 'feature-discard': '0', 'feature-max-indirect-segments': undefined }
    expect(brokenPromise(little, now({ 'feature-discard': '0' }))).toBeUndefined()
    expect(brokenPromise({ ...old, info: '4' }, now({ info: '4' }))).toBeUndefined()
  })
})
