/** An NbdDisk in a Buffer, which records what was done to it and can be made slow or broken. */
import type { NbdDisk } from '../../lib/testing/nbd/disk.js'

export class BufferDisk implements NbdDisk {
  data: Buffer
  readonly blockSize = 512
  readonly preferredBlockSize = 4096
  readonly canTrim = true
  readonly description = 'a buffer'
  readOnly = false
  flushes = 0
  fuas = 0
  trims: [number, number][] = []
  /** Writes done since the last flush: what a crash would lose. */
  dirty = 0
  active = 0
  mostActive = 0
  /** Throws in place of any operation. */
  failure: Error | undefined
  #gate: Promise<void> | undefined
  #open: () => void = () => {}

  constructor(bytes: number) {
    this.data = Buffer.alloc(bytes)
  }

  size(): number {
    return this.data.length
  }

  /** Operations wait until release(). */
  hold(): void {
    this.#gate = new Promise((resolve) => {
      this.#open = resolve
    })
  }

  release(): void {
    this.#gate = undefined
    this.#open()
  }

  async #enter(): Promise<void> {
    this.mostActive = Math.max(this.mostActive, ++this.active)
    try {
      await this.#gate
      // Another turn of the loop: answers come in another order than requests.
      if (Math.random() < 0.5) await new Promise(setImmediate)
      if (this.failure !== undefined) throw this.failure
    } finally {
      this.active--
    }
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    await this.#enter()
    this.data.copy(into, 0, offset, offset + into.length)
  }

  async write(offset: number, data: Uint8Array, fua: boolean): Promise<void> {
    await this.#enter()
    this.data.set(data, offset)
    if (fua) this.fuas++
    else this.dirty++
  }

  async flush(): Promise<void> {
    await this.#enter()
    this.flushes++
    this.dirty = 0
  }

  async trim(offset: number, length: number): Promise<void> {
    await this.#enter()
    this.trims.push([offset, length])
    this.data.fill(0, offset, offset + length)
  }
}
