/**
 * The seat of a guest: one process at a time may be the driver of a mock domain, because two would hand out the same
 * pages.
 *
 * Held as an abstract unix socket, which the kernel frees with its process, whatever ends that. Seats of one
 * directory are seen from one network namespace only.
 */
import { createHash } from 'node:crypto'
import { createServer, type Server } from 'node:net'
import { VbdError } from '../errors.js'

/** @throws ERR_VBD_BUSY when another process, or another MockGuest of this one, drives the domain */
export async function takeSeat(dir: string, domid: number): Promise<Server> {
  const digest = createHash('sha256').update(dir).digest('hex').slice(0, 32)
  const server = createServer((socket) => socket.destroy())
  server.unref()
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => reject(refusal(domid, cause)))
    server.listen(`\0vbdkit-guest-${digest}-${domid}`, resolve)
  })
  return server
}

function refusal(domid: number, cause: NodeJS.ErrnoException): VbdError {
  if (cause.code !== 'EADDRINUSE') {
    const message = `guest ${domid} cannot take its seat: ${cause.message}`
    return new VbdError('ERR_VBD_INTERNAL', message, { cause })
  }
  return new VbdError('ERR_VBD_BUSY', `another process is guest ${domid} already`, {
    remedy: 'stop it, or use another domain number',
  })
}
