/**
 * `encrypt` as a script, for chains in which a script lies below it: the same bytes on the disk below as from the
 * native one, so that either reads what the other wrote.
 */
import { createCipheriv, createDecipheriv } from 'node:crypto'
import { VbdError } from '../errors.js'
import { keyOf } from './encrypt.js'
import type { MakeFilter } from './script.js'
import type { KeySource } from './spec.js'

/** What `encrypt` is told. */
export interface EncryptStage {
  readonly key: KeySource
  /** Bytes that are encrypted as one: 512 or 4096. */
  readonly unitBytes: number
  readonly ivOffsetSectors: number
  readonly discard: boolean
}

/** One direction of AES-XTS: a unit at a sector. */
type Turn = typeof createCipheriv | typeof createDecipheriv

/** AES-XTS as dm-crypt's aes-xts-plain64 lays it out. */
export function encryptStage(stage: EncryptStage): MakeFilter<unknown> {
  const { unitBytes, ivOffsetSectors } = stage
  return (next) => {
    if (next.size % unitBytes !== 0) {
      const message = `the disk has no whole number of encrypted sectors of ${unitBytes} bytes`
      throw new VbdError('ERR_VBD_ARGUMENT', message, { remedy: 'give sectorSize 512' })
    }
    const key = checked(keyOf(stage.key))
    const algorithm = key.length === 32 ? 'aes-128-xts' : 'aes-256-xts'
    const tweak = Buffer.alloc(16)
    /** Every unit of `from`, which is at `offset` of the disk, into `to`, which may be the same. */
    const run = (turn: Turn, from: Uint8Array, to: Uint8Array, offset: number): void => {
      for (let at = 0; at < from.length; at += unitBytes) {
        tweak.writeBigUInt64LE(BigInt(ivOffsetSectors + (offset + at) / 512))
        const cipher = turn(algorithm, key, tweak)
        to.set(cipher.update(from.subarray(at, at + unitBytes)), at)
      }
    }
    // What is a hole below, or zeroes there, is neither for who reads it here.
    const { write, discard, zero: _zero, extents: _extents, ...rest } = next
    const sectorSize = next.sectorSize === 4096 || unitBytes === 4096 ? 4096 : 512
    return {
      ...rest,
      sectorSize,
      physicalSectorSize: Math.max(next.physicalSectorSize, sectorSize),
      async read(buf, offset, io) {
        await next.read(buf, offset, io)
        run(createDecipheriv, buf, buf, offset)
      },
      ...(write && {
        async write(buf, offset, io) {
          // The caller's data stays as it is.
          const hidden = Buffer.allocUnsafe(buf.length)
          run(createCipheriv, buf, hidden, offset)
          await write(hidden, offset, io)
        },
      }),
      ...(discard && stage.discard && { discard }),
      ...(!stage.discard && { discardGranularity: 0 }),
      close: () => void key.fill(0),
    }
  }
}

/** The key, unless XTS is weak with it. */
function checked(key: Buffer): Buffer {
  const half = key.length / 2
  if (!key.subarray(0, half).equals(key.subarray(half))) return key
  key.fill(0)
  const message = 'the two halves of the key are equal, which makes XTS weak'
  throw new VbdError('ERR_VBD_ARGUMENT', message, {
    remedy: 'make one with `head -c 64 /dev/urandom`',
  })
}
