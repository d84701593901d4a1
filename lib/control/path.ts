/**
 * Where control sockets are. Each `serve` has one of its own, named after its disk, and the daemon has one for all
 * of its disks, in a folder that belongs to the mock Xen or to the user; so a command that is told only the disk finds
 * the process that serves it.
 */
import { lstatSync, readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { VbdError } from '../errors.js'

/**
 * The folder of control sockets: the mock's directory for `mock:DIR`, else $XDG_RUNTIME_DIR/vbdkit, /run/vbdkit
 * for root, or a folder of the user's own under the temporary directory.
 */
export function controlFolder(mockDir: string | undefined): string {
  if (mockDir !== undefined) return mockDir
  const runtime = process.env.XDG_RUNTIME_DIR
  if (runtime) return join(runtime, 'vbdkit')
  const uid = process.getuid?.() ?? 0
  if (uid === 0) return '/run/vbdkit'
  const folder = join(tmpdir(), `vbdkit-${uid}`)
  const there = lstatSync(folder, { throwIfNoEntry: false })
  // Anyone may make a folder of that name first: trust only our own.
  if (
    there !== undefined &&
    (!there.isDirectory() || there.uid !== uid || (there.mode & 0o077) !== 0)
  ) {
    throw new VbdError('ERR_VBD_ARGUMENT', `${folder} is not a private folder of this user`, {
      path: folder,
      remedy: 'set XDG_RUNTIME_DIR, or name the socket with --control SOCKET',
    })
  }
  return folder
}

const DAEMON = 'daemon.sock'
const NAME = /^control-(\d+)-(\d+)\.sock$/

/** `1:51712` for the control socket of that disk; undefined for other paths. */
export function vbdOfSocket(path: string): string | undefined {
  const match = NAME.exec(basename(path))
  return match ? `${match[1]}:${match[2]}` : undefined
}

/** The control socket of one disk. */
export function controlSocket(mockDir: string | undefined, domid: number, devid: number): string {
  return join(controlFolder(mockDir), `control-${domid}-${devid}.sock`)
}

/** The control socket of the daemon, which serves many disks. */
export function daemonSocket(mockDir: string | undefined): string {
  return join(controlFolder(mockDir), DAEMON)
}

/** Every control socket in the folder, whether somebody answers or not; [] when there is no folder. */
export function controlSockets(mockDir: string | undefined): string[] {
  const folder = controlFolder(mockDir)
  try {
    return readdirSync(folder, { withFileTypes: true })
      .filter((entry) => entry.isSocket() && (entry.name === DAEMON || NAME.test(entry.name)))
      .map((entry) => join(folder, entry.name))
      .sort()
  } catch {
    return []
  }
}
