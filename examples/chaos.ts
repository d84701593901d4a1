/**
 * A disk that misbehaves, for people who write guests: some requests are late, some fail, some never come back.
 *
 *     vbdkit serve 1:xvdb examples/chaos.ts size=1GiB errors=0.01 late=0.05 lost=0.001 seed=7
 *
 * The same seed misbehaves in the same way for the same requests. What was written is what is read, all the same.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { DiskError, defineDisk, parseSize } from 'vbdkit'

interface Options {
  /** Of the disk. */
  readonly size?: string
  /** Share of the requests that fail, 0..1. */
  readonly errors?: string
  /** Share of the requests that take up to a second. */
  readonly late?: string
  /** Share of the requests that are not answered: they fail after the deadline. */
  readonly lost?: string
  readonly seed?: string
}

export default function chaos(options: Options) {
  const disk = Buffer.alloc(parseSize(options.size ?? '64MiB'))
  const random = generator(Number(options.seed ?? 1))
  const errors = Number(options.errors ?? 0.01)
  const late = Number(options.late ?? 0.05)
  const lost = Number(options.lost ?? 0)

  /** Three draws for every request, so that one setting does not change what the others do. */
  async function misbehave(signal: AbortSignal): Promise<void> {
    const [fails, isLate, isLost] = [random() < errors, random() < late, random() < lost]
    if (isLost) await sleep(2 ** 31 - 1, undefined, { signal })
    if (isLate) await sleep(random() * 1000, undefined, { signal })
    if (fails) throw new DiskError('EIO')
  }

  return defineDisk({
    name: 'chaos',
    size: disk.length,
    deadline: '5s',
    async read(buf, offset, { signal }) {
      await misbehave(signal)
      disk.copy(buf, 0, offset, offset + buf.length)
    },
    async write(buf, offset, { signal }) {
      await misbehave(signal)
      buf.copy(disk, offset)
    },
    flush() {},
  })
}

/** mulberry32: numbers from 0 to 1, the same for the same seed. */
function generator(seed: number): () => number {
  let state = seed | 0
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}
