/**
 * The only module that loads the addon; the mock and the host take its raw exports from here. It knows whether the
 * addon is loaded, so it is also where a process ends whose threads may hang in it.
 */
import { existsSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { VbdError } from '../errors.js'
import type { Addon } from './addon.js'

let loaded: Addon | undefined

/**
 * The addon, loaded once: from `build/Release` of a checkout, else from the package's prebuilt binaries.
 *
 * @throws ERR_VBD_UNSUPPORTED when there is none for this machine
 */
export function loadAddon(): Addon {
  if (loaded !== undefined) return loaded
  const root = packageRoot()
  const require = createRequire(import.meta.url)
  try {
    const nodeGypBuild = require('node-gyp-build') as (directory: string) => unknown
    loaded = nodeGypBuild(root) as Addon
  } catch (cause) {
    throw new VbdError('ERR_VBD_UNSUPPORTED', 'the native addon cannot be loaded', {
      path: root,
      remedy: 'build it with `npm run build`, or install the package on linux x64 or arm64',
      cause,
    })
  }
  return loaded
}

/** Ends the process with this code, whatever its threads wait for in the kernel: `process.exit` would join them. */
export function exitAtOnce(code: number): never {
  if (loaded !== undefined) {
    process.emit('exit', code)
    loaded.exitAtOnce(code)
  }
  process.exit(code)
}

/** The nearest folder upwards with our package.json: this file runs from lib/ and from dist/lib/. */
function packageRoot(): string {
  const start = dirname(fileURLToPath(import.meta.url))
  for (let directory = start; ; directory = dirname(directory)) {
    const manifest = join(directory, 'package.json')
    if (existsSync(manifest)) {
      const { name } = JSON.parse(readFileSync(manifest, 'utf8')) as { name?: unknown }
      if (name === 'vbdkit') return directory
    }
    if (directory === dirname(directory)) {
      throw new VbdError('ERR_VBD_INTERNAL', 'the package.json of vbdkit is missing', {
        path: start,
      })
    }
  }
}
