/** The directory of a mock Xen: made when it is not there, and removed again by who made it. */
import { mkdir, mkdtemp, rm, rmdir, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { VbdError } from '../errors.js'
import { checkSocketPath, storeSocketPath } from '../xenstore/socket_file.js'

/** The highest number that Xen gives to a domain is below this (DOMID_FIRST_RESERVED). */
export const DOMID_LIMIT = 0x7ff0

export interface MockDir {
  readonly path: string
  /** Removes the directory if `openMockDir` made it; a named one stays when something else is in it by now. */
  remove(): Promise<void>
}

/**
 * Makes `dir` with mode 0700, or a temporary directory when it is absent. One that is there is used as it is.
 * @throws VbdError ERR_VBD_ARGUMENT when it cannot be made, is no directory, or is too long for its sockets' names
 */
export async function openMockDir(dir: string | undefined): Promise<MockDir> {
  if (dir === undefined) {
    const path = await mkdtemp(join(tmpdir(), 'vbdkit-mock-'))
    return { path, remove: () => rm(path, { recursive: true, force: true }) }
  }
  const path = resolve(dir)
  checkSocketPath(storeSocketPath(path, DOMID_LIMIT))
  const made = await make(path)
  return { path, remove: made ? () => rmdir(path).catch(() => {}) : async () => {} }
}

/** False: it was there before. */
async function make(path: string): Promise<boolean> {
  try {
    await mkdir(path, { mode: 0o700 })
    return true
  } catch (error) {
    const errno = (error as NodeJS.ErrnoException).code ?? String(error)
    if (errno === 'EEXIST') {
      await requireDirectory(path)
      return false
    }
    const remedy =
      errno === 'ENOENT' ? `make ${dirname(path)} first` : 'use a directory where you may write'
    throw new VbdError('ERR_VBD_ARGUMENT', `cannot make the directory ${path} (${errno})`, {
      path,
      remedy,
      cause: error,
    })
  }
}

async function requireDirectory(path: string): Promise<void> {
  const found = await stat(path).catch(() => undefined)
  if (found?.isDirectory()) return
  throw new VbdError('ERR_VBD_ARGUMENT', `${path} is not a directory`, {
    path,
    remedy: 'name a directory, or one that does not exist yet',
  })
}
