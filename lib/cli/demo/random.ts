/**
 * Random: a small generator with a seed, so that a run can be repeated (xorshift32, Marsaglia
 * 2003). Not for secrets.
 */

/** Numbers and bytes from a seed of 32 bits. */
export class Random {
  #state: number

  constructor(seed: number) {
    // Zero is the one state that the generator never leaves.
    this.#state = (seed | 0) === 0 ? 0x9e3779b9 : seed | 0
  }

  /** A whole number in 0..limit-1; limit 1..2^32. */
  below(limit: number): number {
    return Math.floor((this.#next() / 0x1_0000_0000) * limit)
  }

  /** Fresh bytes, as many as asked for. */
  bytes(length: number): Buffer {
    const words = new Uint32Array(Math.ceil(length / 4))
    for (let i = 0; i < words.length; i++) words[i] = this.#next()
    return Buffer.from(words.buffer, 0, length)
  }

  /** 1..2^32-1 */
  #next(): number {
    let x = this.#state
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    this.#state = x
    return x >>> 0
  }
}
