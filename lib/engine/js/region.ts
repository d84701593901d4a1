/**
 * Region: memory of the addon's that JavaScript sees as bytes, by the number that the addon knows it by: the arena, one
 * persistent grant, or a group of mapped pages. It is gone when the addon takes it away: `bytes` has length 0 then.
 */
export class Region {
  readonly number: number
  readonly bytes: Uint8Array
  #words: Uint32Array | undefined

  constructor(number: number, buffer: ArrayBuffer) {
    this.number = number
    this.bytes = new Uint8Array(buffer)
  }

  /** The same bytes as words. */
  get words(): Uint32Array {
    this.#words ??= new Uint32Array(this.bytes.buffer)
    return this.#words
  }
}
