/**
 * The `encrypt` filter, and the keys of this process. A key is never part of a description: that names it, and only
 * the engine that opens the disk takes it from here.
 */
import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { VbdError } from '../errors.js'
import { parseSize } from '../units.js'
import type { DiskFilter } from './disk.js'
import { filter } from './filters.js'
import type { KeySource } from './spec.js'

export interface EncryptOptions {
  /** The key itself: 32 bytes (AES-128) or 64 (AES-256), copied. */
  readonly key?: Uint8Array
  /** A file that holds nothing but the key's bytes, read when the disk is opened. */
  readonly keyFile?: string
  /** Bytes that are encrypted as one, 512 (default) or 4096; dm-crypt's `sector_size`. */
  readonly sectorSize?: 512 | 4096
  /** Added to the number of each sector, in 512 bytes; dm-crypt's `iv_offset`. 0 by default. */
  readonly ivOffset?: number
  /** Pass discards on, which shows whoever sees the disk below which sectors are in use. False by default. */
  readonly discard?: boolean
}

/**
 * Encrypts the disk below as dm-crypt's aes-xts-plain64 does, sector by sector in place. It keeps others from reading
 * the data; it does not notice if they change it.
 *
 * @throws ERR_VBD_ARGUMENT unless there is one key of 32 or 64 bytes, or one key file
 */
export function encrypt(options: EncryptOptions): DiskFilter {
  const { key, keyFile, sectorSize = 512, ivOffset = 0, discard = false } = options
  const unitBytes = parseSize(sectorSize)
  if (unitBytes !== 512 && unitBytes !== 4096) {
    throw bad(`sectors cannot be encrypted by ${unitBytes} bytes`, 'give sectorSize 512 or 4096')
  }
  if (!Number.isSafeInteger(ivOffset) || ivOffset < 0) {
    throw bad(`ivOffset cannot be ${ivOffset}`, 'give a whole number of sectors of 512 bytes')
  }
  if ((key === undefined) === (keyFile === undefined)) {
    throw bad('encrypt needs a key or a key file, and only one of them', 'give key or keyFile')
  }
  const source: KeySource =
    key === undefined ? { keyFile: resolve(keyFile!) } : { keyId: remember(key) }
  return filter(
    'encrypt(aes-xts-plain64)',
    { driver: 'encrypt', key: source, unitBytes, ivOffsetSectors: ivOffset, discard },
    { validate: () => void keyOf(source).fill(0) },
  )
}

const keys = new Map<string, Buffer>()

function remember(key: Uint8Array): string {
  checkLength(key.length, 'the key')
  const id = randomUUID()
  keys.set(id, Buffer.from(key))
  return id
}

/**
 * A copy of the key, for whoever opens the disk; it is wiped by its user.
 *
 * @throws ERR_VBD_BACKING for a key file that cannot be read, ERR_VBD_ARGUMENT for what is no key of this process
 */
export function keyOf(source: KeySource): Buffer {
  if (source.keyFile === undefined) {
    const key = keys.get(source.keyId)
    if (key !== undefined) return Buffer.from(key)
    throw bad('the key of an encrypted disk is not in this process', 'describe the disk here')
  }
  const key = readKey(source.keyFile)
  checkLength(key.length, `the key in ${source.keyFile}`)
  return key
}

function readKey(path: string): Buffer {
  try {
    return readFileSync(path)
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    throw new VbdError('ERR_VBD_BACKING', `the key file ${path} cannot be read (${code})`, {
      path,
      remedy: 'check the path and its permissions',
      cause,
    })
  }
}

function checkLength(bytes: number, what: string): void {
  if (bytes === 32 || bytes === 64) return
  throw bad(
    `${what} has ${bytes} bytes, and AES-XTS takes 32 or 64`,
    'make one with `head -c 64 /dev/urandom`',
  )
}

function bad(message: string, remedy: string): VbdError {
  return new VbdError('ERR_VBD_ARGUMENT', message, { remedy })
}
