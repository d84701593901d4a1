/**
 * Shadow: what a disk must hold, byte for byte, kept beside it while it is worked on. Where nothing is promised, as
 * where a write failed, a sector is unknown until it is written again.
 */
const SECTOR = 512

/**
 * What becomes of a write. `keeps`: it is there from then on. `forgets`: it is answered well, and gone. `compares`: it is
 * refused unless it is what the disk holds anyway.
 */
export type Nature = 'keeps' | 'forgets' | 'compares'

/** A range of the disk, in sectors of 512 bytes; `to` is the one behind it. */
export interface Range {
  readonly from: number
  readonly to: number
}

/** What a range held when a read of it was sent. */
export interface Expectation {
  readonly bytes: Buffer
  /** By sector: 1 where anything may be. */
  readonly unknown: Uint8Array
}

export class Shadow {
  readonly nature: Nature
  readonly bytes: Buffer
  readonly sectors: number
  readonly #unknown: Uint8Array

  /** @param content what the disk holds at first */
  constructor(content: Buffer, nature: Nature = 'keeps') {
    this.nature = nature
    this.bytes = Buffer.from(content)
    this.sectors = content.length / SECTOR
    this.#unknown = new Uint8Array(this.sectors)
  }

  /** Whether this write is to be answered well. */
  accepts({ from, to }: Range, data: Uint8Array): boolean {
    if (this.nature !== 'compares') return true
    return this.bytes.subarray(from * SECTOR, to * SECTOR).equals(data)
  }

  write({ from, to }: Range, data: Uint8Array): void {
    if (this.nature !== 'keeps') return
    this.bytes.set(data, from * SECTOR)
    this.#unknown.fill(0, from, to)
  }

  discard({ from, to }: Range, leaves: 'zeroes' | 'anything'): void {
    if (this.nature !== 'keeps') return
    if (leaves === 'anything') this.forget({ from, to })
    else this.write({ from, to }, Buffer.alloc((to - from) * SECTOR))
  }

  /** Nothing is known of this range any more. */
  forget({ from, to }: Range): void {
    this.#unknown.fill(1, from, to)
  }

  expect({ from, to }: Range): Expectation {
    return {
      bytes: Buffer.from(this.bytes.subarray(from * SECTOR, to * SECTOR)),
      unknown: this.#unknown.slice(from, to),
    }
  }

  get whole(): Range {
    return { from: 0, to: this.sectors }
  }
}

/** The first sector, counted from the range's own, that is not as expected; undefined where all is well. */
export function firstWrong({ bytes, unknown }: Expectation, found: Buffer): number | undefined {
  if (found.equals(bytes)) return undefined
  const wrong = [...unknown.keys()].find((sector) => {
    const [begin, end] = [sector * SECTOR, (sector + 1) * SECTOR]
    return unknown[sector] === 0 && !found.subarray(begin, end).equals(bytes.subarray(begin, end))
  })
  return wrong
}
