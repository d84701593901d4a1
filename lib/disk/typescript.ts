/**
 * TypeScript at run time, for disks that are given as files. Node.js 20 cannot run it, later versions cannot run all of
 * it; with the hooks of typescript_hooks.ts every version does.
 */
import * as nodeModule from 'node:module'
import * as hooks from './typescript_hooks.js'

/** Hooks that run in this thread; Node.js 22.15 and later. */
type RegisterHooks = (hooks: { resolve: unknown; load: unknown }) => void

let enabled = false

/** From now on this thread can import TypeScript. Idempotent. */
export function enableTypeScript(): void {
  if (enabled) return
  enabled = true
  const { registerHooks } = nodeModule as { registerHooks?: RegisterHooks }
  if (registerHooks !== undefined) {
    registerHooks({ resolve: hooks.resolve, load: hooks.load })
  } else {
    nodeModule.register('./typescript_hooks.js', import.meta.url)
  }
  // Stacks name the lines that people wrote.
  process.setSourceMapsEnabled(true)
}
