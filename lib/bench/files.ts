/**
 * TestFiles: the files that disks are made of while they are measured: one on a disk, one in memory (tmpfs). Both
 * hold the pattern. Owns them: they are gone when it is closed, or the process ends; what a killed process left goes
 * when the next begins.
 */
import {
  constants,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { throwIfAborted, VbdError } from '../errors.js'
import { formatSize } from '../units.js'
import { patternAt } from './pattern.js'

const CHUNK_BYTES = 1024 * 1024
const TMPFS_MAGIC = 0x01021994
const SHARED_MEMORY = '/dev/shm'
const PREFIX = 'vbdkit-bench-'
/** Beside the file: whose it is. */
const OWNER = 'owner'

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
  const home = makeFolder(folder ?? firstOnDisk())
  const shared = isTmpfs(SHARED_MEMORY) ? makeFolder(SHARED_MEMORY) : undefined
  const remove = () => {
    for (const made of [home, shared]) {
      if (made !== undefined) rmSync(made, { recursive: true, force: true })
    }
  }
  const close = () => {
    process.off('exit', remove)
    remove()
  }
  // A second Ctrl-C does not wait for anybody.
  process.once('exit', remove)
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

function makeFolder(parent: string): string {
  removeLeftovers(parent)
  const path = mkdtempSync(join(parent, PREFIX))
  writeFileSync(join(path, OWNER), ownerOf(process.pid) ?? '')
  return path
}

/**
 * A process as nobody else is: its number, in which namespace that counts, and when it started. Undefined where there
 * is none.
 */
function ownerOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // The 22nd field; the name before it, in brackets, may hold anything.
    const started = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]
    return `${pid} ${started} ${readlinkSync('/proc/self/ns/pid')}`
  } catch {
    return undefined
  }
}

/** Removes the folders of processes that are gone; those of other namespaces may be somebody's. */
export function removeLeftovers(parent: string): void {
  const namespace = readlinkSync('/proc/self/ns/pid')
  for (const name of readdirSync(parent).filter((each) => each.startsWith(PREFIX))) {
    try {
      const owner = readFileSync(join(parent, name, OWNER), 'utf8')
      if (!owner.endsWith(` ${namespace}`) || ownerOf(Number.parseInt(owner, 10)) === owner)
        continue
      rmSync(join(parent, name), { recursive: true, force: true })
    } catch {
      // Not ours to look at, or gone meanwhile.
    }
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
