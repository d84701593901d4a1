/**
 * The demo's image: a small ext4 filesystem with files in it, or a copy of the operator's image. Two copies of it are
 * made: one is served, the other says what must be there. The operator's own file is only read.
 */
import { spawn } from 'node:child_process'
import { accessSync, constants, statSync } from 'node:fs'
import { mkdir, open, stat, statfs, truncate, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { throwIfAborted, VbdError } from '../../errors.js'
import { formatSize } from '../../units.js'
import { Random } from './random.js'

export interface DemoImage {
  /** Served, and written to. */
  readonly served: string
  /** Never written to. */
  readonly reference: string
  /** Length of the image; the served one is longer. */
  readonly imageBytes: number
  /** Whether e2fsck understands it. */
  readonly isExt: boolean
}

/** Of the filesystem that the demo makes. */
const FRESH_BYTES = 32 * 1024 * 1024
export const FILES = 41
/** What the served copy has behind the image, for random writes. */
export const SCRATCH_BYTES = 16 * 1024 * 1024
const SECTOR_BYTES = 512
/** Both copies and the scratch area, and something to spare. */
const HEADROOM_BYTES = 256 * 1024 * 1024

/**
 * Looks whether the demo can use the image.
 *
 * @throws ERR_VBD_BACKING in one line when there is none, it is no file, cannot be read or has an odd length
 */
export function checkImage(path: string): void {
  const unusable = (why: string, remedy: string) =>
    new VbdError('ERR_VBD_BACKING', `${path} ${why}`, { path, remedy })
  const stats = statSync(path, { throwIfNoEntry: false })
  if (stats === undefined) throw unusable('does not exist', 'check the path given to --image')
  if (stats.isDirectory()) throw unusable('is a directory', 'name an image file')
  if (!stats.isFile()) throw unusable('is not a regular file', 'name an image file')
  if (stats.size === 0 || stats.size % SECTOR_BYTES !== 0) {
    throw unusable(
      `has ${stats.size} bytes, not a multiple of ${SECTOR_BYTES}`,
      'name a raw disk image',
    )
  }
  try {
    accessSync(path, constants.R_OK)
  } catch {
    throw unusable('cannot be read', 'make it readable for this user')
  }
}

/**
 * Makes both copies in `folder`; `path` is the operator's image, absent for one of our own.
 *
 * @throws ERR_VBD_BACKING when there is no room, or its filesystem is not clean; ERR_VBD_UNSUPPORTED without e2fsprogs;
 *   ERR_VBD_ABORTED
 */
export async function prepareImage(
  folder: string,
  path: string | undefined,
  signal: AbortSignal,
): Promise<DemoImage> {
  const served = join(folder, 'disk.img')
  const reference = join(folder, 'reference.img')
  if (path === undefined) await makeFilesystem(folder, reference, signal)
  else await copyImage(path, reference, signal)
  await run('cp', ['--sparse=always', '--reflink=auto', reference, served], signal)
  const { size: imageBytes } = await stat(reference)
  const isExt = await hasExtMagic(reference)
  if (isExt && path !== undefined && (await checkFilesystem(reference, signal)).code !== 0) {
    throw new VbdError(
      'ERR_VBD_BACKING',
      `the filesystem in ${path} has errors before the demo begins`,
      {
        path,
        remedy: `look at it with: e2fsck -fn ${path}`,
      },
    )
  }
  await truncate(served, imageBytes + SCRATCH_BYTES)
  return { served, reference, imageBytes, isExt }
}

/** `e2fsck -fn`, which changes nothing; code 0: clean. */
export function checkFilesystem(
  image: string,
  signal: AbortSignal,
): Promise<{ code: number; output: string }> {
  return output('e2fsck', ['-fn', image], signal)
}

/** Whether the served copy still holds what the other one does. */
export async function sameBytes(image: DemoImage, signal: AbortSignal): Promise<boolean> {
  const { served, reference, imageBytes } = image
  return (
    (await output('cmp', ['-s', '-n', String(imageBytes), served, reference], signal)).code === 0
  )
}

async function makeFilesystem(folder: string, image: string, signal: AbortSignal): Promise<void> {
  const tree = join(folder, 'files')
  await mkdir(join(tree, 'documents'), { recursive: true })
  await writeFile(join(tree, 'README'), 'This filesystem was made by vbdkit demo.\n')
  const random = new Random(1)
  for (let i = 0; i < FILES - 1 && !signal.aborted; i++) {
    const name = join(tree, 'documents', `file-${String(i).padStart(2, '0')}.bin`)
    await writeFile(name, random.bytes(1 + random.below(512 * 1024)))
  }
  await writeFile(image, '')
  await truncate(image, FRESH_BYTES)
  await run('mke2fs', ['-q', '-t', 'ext4', '-L', 'vbdkit-demo', '-d', tree, image], signal)
}

async function copyImage(path: string, copy: string, signal: AbortSignal): Promise<void> {
  const { blocks } = await stat(path)
  const { bavail, bsize } = await statfs(dirname(copy))
  const needed = blocks * 512 * 2 + HEADROOM_BYTES
  if (needed > bavail * bsize) {
    throw new VbdError(
      'ERR_VBD_BACKING',
      `no room for two copies of ${path}: ${formatSize(needed)} needed, ${formatSize(bavail * bsize)} free`,
      { path, remedy: 'point TMPDIR at a folder with more room, or use a smaller image' },
    )
  }
  await run('cp', ['--sparse=always', '--reflink=auto', path, copy], signal)
}

/** 0xEF53 at byte 56 of the superblock, which begins at byte 1024. */
async function hasExtMagic(image: string): Promise<boolean> {
  const handle = await open(image)
  try {
    const magic = Buffer.alloc(2)
    const { bytesRead } = await handle.read(magic, 0, 2, 1024 + 56)
    return bytesRead === 2 && magic.readUInt16LE(0) === 0xef53
  } finally {
    await handle.close()
  }
}

async function run(command: string, args: readonly string[], signal: AbortSignal): Promise<void> {
  const { code, output: said } = await output(command, args, signal)
  if (code === 0) return
  const [line = ''] = said.trim().split('\n')
  throw new VbdError('ERR_VBD_BACKING', `${command} failed with exit code ${code}: ${line}`)
}

/** Runs a program to its end, or kills it when the signal fires; both of its outputs as one text. */
function output(
  command: string,
  args: readonly string[],
  signal: AbortSignal,
): Promise<{ code: number; output: string }> {
  throwIfAborted(signal)
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      // Debian keeps e2fsprogs where only root looks.
      env: { ...process.env, PATH: `${process.env.PATH ?? ''}:/usr/sbin:/sbin` },
      signal,
      killSignal: 'SIGKILL',
    })
    let text = ''
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (chunk: Buffer) => {
        text += chunk.toString()
      })
    }
    let failure: NodeJS.ErrnoException | undefined
    child.once('error', (error) => {
      failure = error
    })
    // Only now is it gone, and nothing writes any more.
    child.once('close', (code) => {
      if (failure === undefined) resolve({ code: code ?? 1, output: text })
      else if (signal.aborted) reject(new VbdError('ERR_VBD_ABORTED', 'interrupted'))
      else {
        reject(
          new VbdError('ERR_VBD_UNSUPPORTED', `${command} cannot be run (${failure.code})`, {
            cause: failure,
            remedy: `install what has ${command}; e2fsprogs and coreutils are needed`,
          }),
        )
      }
    })
  })
}
