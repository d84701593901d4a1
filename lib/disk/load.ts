/**
 * Disks in files: a module whose default export is a disk, or gives one. For the command line, and for the thread of a
 * disk that has one.
 */
import { basename } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { VbdError } from '../errors.js'
import { defineDisk } from './define.js'
import type { Disk } from './disk.js'
import type { DiskDefinition } from './script.js'
import { enableTypeScript } from './typescript.js'

/** Whether this is the path of a module, and not the name of a driver. */
export function isDiskFile(word: string): boolean {
  return /\.[mc]?[jt]s$/.test(word)
}

/**
 * The default export of a module, called with `options` where it is a function.
 *
 * @param module a path, or a file: URL
 * @throws ERR_VBD_BACKING for a module that cannot be loaded, or has no default export
 */
export async function loadExport(module: string, options: unknown): Promise<unknown> {
  const url = module.startsWith('file:') ? module : pathToFileURL(module).href
  const path = fileURLToPath(url)
  enableTypeScript()
  try {
    const { default: exported } = (await import(url)) as { default?: unknown }
    if (exported === undefined) throw nothing(path)
    return typeof exported === 'function' ? await exported(options) : exported
  } catch (thrown) {
    if (thrown instanceof VbdError) throw thrown
    throw new VbdError('ERR_VBD_BACKING', `${basename(path)} cannot be loaded: ${text(thrown)}`, {
      path,
      cause: thrown,
    })
  }
}

/**
 * The disk that a module exports: one that `defineDisk` or a driver made, or what `defineDisk` takes.
 *
 * @throws ERR_VBD_BACKING for a module that cannot be loaded or exports no disk
 */
export async function loadDisk(
  path: string,
  options: Readonly<Record<string, string>>,
): Promise<Disk> {
  const exported = await loadExport(path, options)
  if (typeof exported !== 'object' || exported === null) throw nothing(path)
  if ('spec' in exported && 'validate' in exported) return exported as Disk
  if ('read' in exported) return defineDisk(exported as DiskDefinition)
  throw nothing(path)
}

/** The complaint about a module without a disk. */
export function nothing(path: string): VbdError {
  return new VbdError('ERR_VBD_BACKING', `${basename(path)} exports no disk`, {
    path,
    remedy: 'have it `export default defineDisk({ name, size, read })`',
  })
}

function text(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message.split('\n')[0]! : String(thrown)
}
