/** What the NBD server serves: any disk that can do this. */

export interface NbdDisk {
  /** Bytes now. A change is seen by connections made later: NBD has no word for it. */
  size(): number
  /** Every offset and length is a multiple of this power of two. */
  readonly blockSize: number
  /** Works best with multiples of this. */
  readonly preferredBlockSize: number
  readonly readOnly: boolean
  readonly canTrim: boolean
  /** For people. */
  readonly description: string
  /** Fills all of `into` from byte `offset`. */
  read(offset: number, into: Uint8Array): Promise<unknown>
  /** With `fua` it resolves when the data is on stable storage. */
  write(offset: number, data: Uint8Array, fua: boolean): Promise<unknown>
  /** Makes durable every write that resolved before, on whichever connection. */
  flush(): Promise<unknown>
  /** A hint: the bytes are not needed any more, and may read as anything. */
  trim(offset: number, length: number): Promise<unknown>
}
