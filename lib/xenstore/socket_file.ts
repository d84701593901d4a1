/** Unix sockets as files: who owns a path, and what a dead process has left there. */
import { access, chmod, lstat, unlink } from 'node:fs/promises'
import { createConnection, createServer, type Server, type Socket } from 'node:net'
import { dirname, join } from 'node:path'
import { isMainThread } from 'node:worker_threads'
import { VbdError } from '../errors.js'

/** Longest path of a unix socket, in bytes (sun_path without its NUL). */
export const SOCKET_PATH_MAX = 107

/** Where a xenstore's socket of a domain is; of domain 0 without a number. */
export function storeSocketPath(dir: string, domid = 0): string {
  return join(dir, domid === 0 ? 'xenstored.sock' : `xenstored-${domid}.sock`)
}

/** @throws VbdError ERR_VBD_ARGUMENT when no unix socket can have this path */
export function checkSocketPath(path: string): void {
  const bytes = Buffer.byteLength(path)
  if (bytes <= SOCKET_PATH_MAX) return
  throw new VbdError(
    'ERR_VBD_ARGUMENT',
    `the socket path has ${bytes} bytes, the kernel takes ${SOCKET_PATH_MAX}`,
    {
      path,
      remedy: 'use a directory with a shorter path',
    },
  )
}

/**
 * Makes `path` free to be bound: removes the socket that a dead process has left.
 * @throws VbdError ERR_VBD_BUSY when somebody listens there, ERR_VBD_ARGUMENT when it is something else than a socket
 */
export async function claimSocketPath(path: string): Promise<void> {
  checkSocketPath(path)
  const stat = await lstat(path).catch(() => undefined)
  if (stat === undefined) return
  if (!stat.isSocket()) {
    throw new VbdError('ERR_VBD_ARGUMENT', `${path} is there and is no socket`, {
      path,
      remedy: 'remove it, or use another directory',
    })
  }
  if (await isListening(path)) throw inUse(path)
  await unlink(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error
  })
}

/** Only a refusal says that nobody is there: a full backlog or a socket of another type has an owner. */
function isListening(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = createConnection({ path })
    probe.once('connect', () => {
      probe.destroy()
      resolve(true)
    })
    probe.once('error', (error: NodeJS.ErrnoException) => {
      probe.destroy()
      resolve(error.code !== 'ECONNREFUSED' && error.code !== 'ENOENT')
    })
  })
}

/**
 * Listens on `path`, mode 0600, in place of what a dead process has left there. Node removes the file on close.
 * @throws VbdError as `claimSocketPath`, and ERR_VBD_ARGUMENT when the directory cannot be used
 */
export async function listenUnix(
  path: string,
  onSocket: (socket: Socket) => void,
): Promise<Server> {
  await claimSocketPath(path)
  const server = createServer(onSocket)
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      const listening = () => {
        server.off('error', reject)
        resolve()
      }
      privately(() => server.listen({ path }, listening))
    })
    // For a worker thread, which binds with the mask of the process.
    await chmod(path, 0o600)
  } catch (error) {
    server.close()
    throw await cannotListen(path, error as NodeJS.ErrnoException)
  }
  return server
}

/** What `bind` makes has mode 0600 from its first moment: a peer that connected before a chmod would stay. */
function privately(bind: () => void): void {
  // A worker thread may not change the mask.
  const before = isMainThread ? process.umask(0o177) : undefined
  try {
    // Node binds before it returns.
    bind()
  } finally {
    if (before !== undefined) process.umask(before)
  }
}

async function cannotListen(path: string, cause: NodeJS.ErrnoException): Promise<VbdError> {
  if (cause.code === 'EADDRINUSE') return inUse(path)
  // Node says EACCES for a directory that does not exist.
  const reason = await access(dirname(path)).then(
    () => cause.code ?? cause.message,
    (error: NodeJS.ErrnoException) => error.code,
  )
  return new VbdError('ERR_VBD_ARGUMENT', `cannot listen on ${path} (${reason})`, {
    path,
    cause,
    remedy: 'use a directory that exists and is writable',
  })
}

function inUse(path: string): VbdError {
  return new VbdError('ERR_VBD_BUSY', `${path} is in use by another process`, {
    path,
    remedy: 'stop that process, or use another directory',
  })
}
