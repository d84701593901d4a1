/** An NBD export as a file, for tools that know only files: through nbdfuse, where this process may mount. */
import { spawn } from 'node:child_process'
import { accessSync, constants, mkdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { expect, vi } from 'vitest'
import { missingTools, tool } from './product_tools.js'

/** Whether `asFile` can be used here. */
export const canMount =
  process.getuid?.() === 0 && canUse('/dev/fuse') && missingTools('nbdfuse', 'umount') === undefined

function canUse(path: string): boolean {
  try {
    accessSync(path, constants.R_OK | constants.W_OK)
    return true
  } catch {
    return false
  }
}

/** The disk as a file below `folder`, while `use` runs: what is done to the file is done through the guest. */
export async function asFile(
  folder: string,
  uri: string,
  use: (path: string) => Promise<void>,
): Promise<void> {
  const mount = join(folder, 'mount')
  mkdirSync(mount, { recursive: true })
  const child = spawn('nbdfuse', [join(mount, 'disk'), uri], { stdio: 'ignore' })
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()))
  try {
    await vi.waitFor(() => expect(statSync(join(mount, 'disk')).size).toBeGreaterThan(0), {
      timeout: 20_000,
      interval: 20,
    })
    await use(join(mount, 'disk'))
  } finally {
    await tool('umount', [mount], { codes: [0, 1, 32] })
    await ended
  }
}
