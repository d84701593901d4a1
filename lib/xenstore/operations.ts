/**
 * The operations on nodes, as requests. The same for both worlds: the `send` that it is given goes outside or inside a
 * transaction. Hides what the daemons do differently.
 */

import { ABSOLUTE_PATH_MAX, PATH_MAX } from './path.js'
import { formatPermission, parsePermission } from './permission.js'
import { joinStrings, MESSAGE, splitStrings } from './wire.js'
import { type Permission, XenstoreError, type XenstoreOps } from './xenstore.js'

/** Sends a request about `path` and gives the payload of the answer. */
export type Send = (type: number, payload: string, path: string) => Promise<string>

/** A directory that changes all the time cannot be read in parts: so often it is begun again. */
const LIST_RESTARTS = 16
/** Names that one directory may have in total, in bytes. */
const LIST_MAX = 16 * 1024 * 1024

/** XenstoreOps on a way to send requests. */
export class Operations implements XenstoreOps {
  readonly #send: Send

  constructor(send: Send) {
    this.#send = send
  }

  async read(path: string): Promise<string> {
    return await this.#send(MESSAGE.READ, pathArgument(path), path)
  }

  async tryRead(path: string): Promise<string | undefined> {
    return await unlessMissing(this.read(path), undefined)
  }

  async list(path: string): Promise<string[]> {
    try {
      return splitStrings(await this.#send(MESSAGE.DIRECTORY, pathArgument(path), path))
    } catch (error) {
      if (!hasErrno(error, 'E2BIG')) throw error
      return await this.#listInParts(path)
    }
  }

  async tryList(path: string): Promise<string[]> {
    return await unlessMissing(this.list(path), [])
  }

  async write(path: string, value: string): Promise<void> {
    await this.#send(MESSAGE.WRITE, `${pathArgument(path)}${value}`, path)
  }

  async mkdir(path: string): Promise<void> {
    await this.#send(MESSAGE.MKDIR, pathArgument(path), path)
  }

  async remove(path: string): Promise<void> {
    // oxenstored would obey and wipe the store; the C daemon answers EINVAL.
    if (path === '/') throw badPath(path, 'the root cannot be removed')
    await unlessMissing(this.#send(MESSAGE.RM, pathArgument(path), path), undefined)
  }

  async getPermissions(path: string): Promise<Permission[]> {
    const answer = await this.#send(MESSAGE.GET_PERMS, pathArgument(path), path)
    return splitStrings(answer).map(parsePermission)
  }

  async setPermissions(path: string, permissions: readonly Permission[]): Promise<void> {
    if (permissions.length === 0) {
      throw new XenstoreError('EINVAL', `no permissions for ${path}`, { path })
    }
    const list = joinStrings(permissions.map(formatPermission))
    await this.#send(MESSAGE.SET_PERMS, `${pathArgument(path)}${list}`, path)
  }

  /** Each part tells the directory's generation: another one means that the parts do not fit together. */
  async #listInParts(path: string): Promise<string[]> {
    for (let attempt = 0; attempt < LIST_RESTARTS; attempt++) {
      const names = await this.#listGeneration(path)
      if (names !== undefined) return names
    }
    throw new XenstoreError('EAGAIN', `${path} changes faster than it can be listed`, { path })
  }

  async #listGeneration(path: string): Promise<string[] | undefined> {
    let generation: string | undefined
    let names = ''
    while (names.length <= LIST_MAX) {
      const part = await this.#send(
        MESSAGE.DIRECTORY_PART,
        `${pathArgument(path)}${names.length}\0`,
        path,
      )
      const end = part.indexOf('\0')
      if (end < 0) throw new XenstoreError('EIO', `malformed part of directory ${path}`, { path })
      generation ??= part.slice(0, end)
      if (part.slice(0, end) !== generation) return undefined
      const rest = part.slice(end + 1)
      // The last part ends in one NUL more than its names have; nothing at all would come back for ever.
      if (rest === '' || rest === '\0') return splitStrings(names)
      if (rest.endsWith('\0\0')) return splitStrings(names + rest.slice(0, -1))
      names += rest
    }
    throw new XenstoreError('E2BIG', `${path} has too many children to list`, { path })
  }
}

/** The path with its NUL, refused here when it would say something else on the wire than it says in memory. */
export function pathArgument(path: string): string {
  if (path === '') throw badPath(path, 'the path is empty')
  if (path.includes('\0')) throw badPath(path.replaceAll('\0', '?'), 'the path holds a NUL')
  const longest = path.startsWith('/') ? ABSOLUTE_PATH_MAX : PATH_MAX
  if (path.length > longest)
    throw badPath(`${path.slice(0, 64)}...`, `the path exceeds ${longest} bytes`)
  return `${path}\0`
}

function badPath(path: string, why: string): XenstoreError {
  return new XenstoreError('EINVAL', `bad xenstore path: ${why}`, { path })
}

/** Whether it is a XenstoreError with one of these errno names. */
export function hasErrno(error: unknown, ...errnos: string[]): error is XenstoreError {
  return error instanceof XenstoreError && errnos.includes(error.errno)
}

async function unlessMissing<T, U>(answer: Promise<T>, otherwise: U): Promise<T | U> {
  try {
    return await answer
  } catch (error) {
    if (hasErrno(error, 'ENOENT')) return otherwise
    throw error
  }
}
