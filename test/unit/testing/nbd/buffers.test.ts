import fc from 'fast-check'
import { expect, it } from 'vitest'
import { BufferPool, ByteQueue } from '../../../../lib/testing/nbd/buffers.js'

it('a ByteQueue gives the bytes in order, however they came and however they are taken', () => {
  const how = fc.record({ way: fc.constantFrom('take', 'copy', 'skip'), count: fc.nat(40) })
  const chunks = fc.array(fc.uint8Array({ maxLength: 20 }), { maxLength: 20 })
  fc.assert(
    fc.property(chunks, fc.array(how, { maxLength: 30 }), (pieces, steps) => {
      const queue = new ByteQueue()
      const all = Buffer.concat(pieces)
      for (const piece of pieces) queue.push(Buffer.from(piece))
      let at = 0
      for (const { way, count } of steps) {
        const expected = all.subarray(at, at + count)
        if (way === 'take') {
          if (count > queue.length) continue
          expect(queue.take(count).equals(expected)).toBe(true)
          at += count
        } else if (way === 'copy') {
          const target = Buffer.alloc(count)
          const copied = queue.copyTo(target)
          expect(target.subarray(0, copied).equals(expected)).toBe(true)
          at += copied
        } else at += queue.skip(count)
        expect(queue.length).toBe(all.length - at)
      }
    }),
  )
})

it('a BufferPool gives back what it got, and keeps no more than it may', () => {
  const pool = new BufferPool(8192)
  const first = pool.take(5000)
  expect(first).toHaveLength(8192)
  expect(pool.take(1)).toHaveLength(4096)
  pool.give(first)
  pool.give(Buffer.alloc(4096))
  expect(pool.take(8192)).toBe(first)
  expect(pool.take(8192)).not.toBe(first)
  expect(pool.take(0)).toHaveLength(4096)
})
