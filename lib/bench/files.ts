/**
 * TestFiles: the files that disks are made of while they are measured: one on a disk, one in memory (tmpfs). Both
 * hold the pattern. Owns them: they are gone when it is closed.
 */
import { constants, mkdtempSync, rmSync, statfsSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { throwIfAborted, VbdError } from '../errors.js'
import { formatSize } from '../units.js'
import { patternAt } from './pattern.js'

const CHUNK_BYTES = 1024 * 1024
const TMPFS_MAGIC = 0x01021994
const SHARED_MEMORY = '/dev/shm'

export interface TestFiles {
  readonly sizeBytes: number
  /** On a real file system. */
  readonly disk: string
  /** The file system of `disk` takes O_DIRECT. */
  readonly direct: boolean
  /** In memory; undefined where there is no tmpfs. */
  readonly tmpfs: string | undefined
  /** Reads a file, so that the page cache has it. */
  warm(path: string): Promise<void>
  close(): void
}

/**
 * Makes them.
 *
 * @param folder for the file on a disk; by default /var/tmp, or the system's folder for temporary files
 * @throws ERR_VBD_BACKING where there is no room, or `folder` is in memory
 */
export async function makeTestFiles(
  folder: string | undefined,
  sizeBytes: number,
  signal: AbortSignal,
): Promise<TestFiles> {
  const home = mkdtempSync(join(folder ?? firstOnDisk(), 'vbdkit-bench-'))
  const shared = isTmpfs(SHARED_MEMORY)
    ? mkdtempSync(join(SHARED_MEMORY, 'vbdkit-bench-'))
    : undefined
  const close = () => {
    for (const made of [home, shared]) {
      if (made !== undefined) rmSync(made, { recursive: true, force: true })
    }
  }
  try {
    if (isTmpfs(home)) throw inMemory(home)
    const disk = join(home, 'disk.img')
    await fill(disk, sizeBytes, signal)
    const tmpfs = shared && join(shared, 'disk.img')
    if (tmpfs !== undefined) await fill(tmpfs, sizeBytes, signal)
    return { sizeBytes, disk, direct: await takesDirect(disk), tmpfs, warm, close }
  } catch (thrown) {
    close()
    throw thrown
  }
}

function firstOnDisk(): string {
  return ['/var/tmp', tmpdir(), process.cwd()].find((path) => !isTmpfs(path)) ?? tmpdir()
}

function isTmpfs(path: string): boolean {
  try {
    return statfsSync(path).type === TMPFS_MAGIC
  } catch {
    return false
  }
}

function inMemory(path: string): VbdError {
  return new VbdError('ERR_VBD_BACKING', `${path} is in memory, not on a disk`, {
    path,
    remedy: 'name a folder on a disk with --dir',
  })
}

async function fill(path: string, sizeBytes: number, signal: AbortSignal): Promise<void> {
  let file: FileHandle | undefined
  try {
    file = await open(path, 'wx')
    for (let offset = 0; offset < sizeBytes; offset += CHUNK_BYTES) {
      throwIfAborted(signal)
      const bytes = Math.min(CHUNK_BYTES, sizeBytes - offset)
      await file.write(patternAt(offset, bytes), 0, bytes, offset)
    }
    await file.datasync()
  } catch (cause) {
    if (cause instanceof VbdError) throw cause
    const { code } = cause as NodeJS.ErrnoException
    throw new VbdError('ERR_VBD_BACKING', `${path} cannot be made (${code})`, {
      path,
      remedy: `name a folder with ${formatSize(sizeBytes)} of room with --dir`,
      cause,
    })
  } finally {
    await file?.close()
  }
}

async function warm(path: string): Promise<void> {
  const file = await open(path, 'r')
  const chunk = Buffer.alloc(CHUNK_BYTES)
  while ((await file.read(chunk, 0, CHUNK_BYTES)).bytesRead > 0);
  await file.close()
}

async function takesDirect(path: string): Promise<boolean> {
  try {
    const file = await open(path, constants.O_RDONLY | constants.O_DIRECT)
    await file.close()
    return true
  } catch {
    return false
  }
}
