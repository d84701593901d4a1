/**
 * Filters that keep parts of a disk in memory: `cache` and `readAhead`, for `disk.with(...)`. Plain descriptions; see
 * disk.ts.
 */
import { VbdError } from '../errors.js'
import { parseDuration, parseSize } from '../units.js'
import type { DiskFilter } from './disk.js'
import { filter } from './filters.js'

/** Options of `cache`. */
export interface CacheOptions {
  /** How much of the disk is kept: 1MiB to 64GiB; 64MiB by default. Memory is taken as it is used. */
  readonly memory?: string | number | bigint
  /** For how long a write may be in memory alone while nobody flushes; an hour at most, `'5s'` by default. */
  readonly writeBackAfter?: string | number
}

/**
 * A write-back cache. Writes are answered when they are in memory; a flush, or a write that has to be durable, is
 * answered when all that was written before it is on the disk below and that has flushed. Until then it is what a
 * disk's volatile cache is: when this process or its machine dies, what was written since the last flush is gone.
 *
 * What cannot be written to the disk below is kept, and tried again; every flush meanwhile fails. A vbd that is paused,
 * swapped, closed or snapshot has everything written back first, and fails where that does.
 *
 * @throws ERR_VBD_ARGUMENT for a size or a time out of range
 */
export function cache(options: CacheOptions = {}): DiskFilter {
  const memoryBytes = parseSize(options.memory ?? '64MiB')
  const writeBackMs = parseDuration(options.writeBackAfter ?? '5s')
  if (memoryBytes < 1 << 20 || memoryBytes > 64 * 2 ** 30) {
    throw bad(`a cache cannot have ${memoryBytes} bytes`, 'give 1MiB to 64GiB of memory')
  }
  if (writeBackMs > 3_600_000) {
    throw bad('writeBackAfter is longer than an hour', 'give a shorter time')
  }
  return filter(`cache(${inMiB(memoryBytes)})`, { driver: 'cache', memoryBytes, writeBackMs })
}

/** Options of `readAhead`. */
export interface ReadAheadOptions {
  /** How far ahead of a reader, at most: 128KiB to half of `memory`; 1MiB by default. */
  readonly window?: string | number | bigint
  /** For all readers of the disk: 1MiB to 64MiB; by default 8MiB, or twice the window where that is more. */
  readonly memory?: string | number | bigint
}

/**
 * Notices who reads in a row, and reads on before it is asked to, further with every step up to the window. What others
 * write or discard there meanwhile is never missed.
 *
 * @throws ERR_VBD_ARGUMENT for a size out of range
 */
export function readAhead(options: ReadAheadOptions = {}): DiskFilter {
  const windowBytes = parseSize(options.window ?? '1MiB')
  const memoryBytes = parseSize(options.memory ?? Math.max(8 << 20, 2 * windowBytes))
  if (windowBytes < 128 * 1024 || windowBytes > 32 << 20) {
    throw bad(`reading ahead cannot have a window of ${windowBytes} bytes`, 'give 128KiB to 32MiB')
  }
  if (memoryBytes < 1 << 20 || memoryBytes > 64 << 20 || memoryBytes < 2 * windowBytes) {
    throw bad(
      `reading ahead cannot have ${memoryBytes} bytes of memory`,
      'give twice the window or more, 1MiB to 64MiB',
    )
  }
  return filter(`readAhead(${windowBytes >> 10}KiB)`, {
    driver: 'readAhead',
    memoryBytes,
    windowBytes,
  })
}

function inMiB(bytes: number): string {
  return `${Math.round(bytes / 2 ** 20)}MiB`
}

function bad(message: string, remedy: string): VbdError {
  return new VbdError('ERR_VBD_ARGUMENT', message, { remedy })
}
