/**
 * The hotplug script that xl runs for our disks: share/block-vbdkit of the package, and its copy where xl looks.
 */
import { chmodSync, existsSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { toVbdError, VbdError } from '../errors.js'
import { SCRIPT_NAME } from './claims.js'

/** Where xl looks for a script that a disk line names without a path. */
export const SCRIPT_FOLDER = '/etc/xen/scripts'

/** The line by which a script is known for ours, whatever its version. */
const MARK = /^# block-vbdkit: /m

export interface Installed {
  readonly path: string
  readonly done: 'written' | 'unchanged' | 'removed' | 'absent'
}

/** The script's text. */
export function hotplugScript(): string {
  const manifest = createRequire(import.meta.url).resolve('vbdkit/package.json')
  return readFileSync(join(dirname(manifest), 'share', SCRIPT_NAME), 'utf8')
}

/**
 * Puts the script into a folder, in place of an older one of ours.
 *
 * @throws ERR_VBD_BACKING where the folder is not there or cannot be written, ERR_VBD_BUSY for a script of that name
 *   that is not ours
 */
export function installScript(folder: string): Installed {
  const path = join(folder, SCRIPT_NAME)
  if (!existsSync(folder)) {
    throw new VbdError('ERR_VBD_BACKING', `there is no folder ${folder}`, {
      path: folder,
      remedy: "install Xen's tools first, or name another folder with --dir",
    })
  }
  const text = hotplugScript()
  if (present(path) === text) return { path, done: 'unchanged' }
  // Never half a script, and never one that cannot be run.
  const fresh = `${path}.new`
  attempt(path, () => {
    writeFileSync(fresh, text)
    chmodSync(fresh, 0o755)
    renameSync(fresh, path)
  })
  return { path, done: 'written' }
}

/**
 * Takes the script away.
 *
 * @throws ERR_VBD_BACKING where it cannot be, ERR_VBD_BUSY when it is not ours
 */
export function uninstallScript(folder: string): Installed {
  const path = join(folder, SCRIPT_NAME)
  if (present(path) === undefined) return { path, done: 'absent' }
  attempt(path, () => rmSync(path))
  return { path, done: 'removed' }
}

/** What is there of ours. */
function present(path: string): string | undefined {
  if (!existsSync(path)) return undefined
  const text = attempt(path, () => readFileSync(path, 'utf8'))
  if (MARK.test(text)) return text
  throw new VbdError('ERR_VBD_BUSY', `${path} is there and is not ours`, {
    path,
    remedy: 'move it away first',
  })
}

function attempt<T>(path: string, act: () => T): T {
  try {
    return act()
  } catch (cause) {
    throw new VbdError('ERR_VBD_BACKING', toVbdError(cause).message, {
      path,
      cause,
      remedy: 'run it as root, or name another folder with --dir',
    })
  }
}
