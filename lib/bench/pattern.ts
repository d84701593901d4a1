/**
 * Pattern: data that says where on the disk it belongs: every eight bytes hold their own byte offset, plus a stamp that
 * tells what was written from what was there before. Pure.
 */

/** Bytes `offset` and on, `length` long, both multiples of 8. */
export function patternAt(offset: number, length: number, stamp = 0): Buffer {
  const words = new Uint32Array(length / 4)
  for (let i = 0; i < words.length; i += 2) {
    const at = offset + i * 4
    words[i] = at >>> 0
    words[i + 1] = (Math.floor(at / 2 ** 32) ^ stamp) >>> 0
  }
  return Buffer.from(words.buffer)
}

/** The first byte offset at which `data` is not the pattern; undefined where all is. */
export function mismatch(data: Uint8Array, offset: number, stamp = 0): number | undefined {
  const wanted = patternAt(offset, data.length, stamp)
  if (wanted.equals(data)) return undefined
  return offset + data.findIndex((byte, i) => byte !== wanted[i])
}
