/**
 * Engines: which engine the tests of this process run on. VBDKIT_TEST_ENGINE names it, the native one by default; the
 * same files are run once for each.
 */
import { describe } from 'vitest'
import type { EngineChoice } from '../../lib/platform.js'

/** The engine under test. */
export const ENGINE: EngineChoice = engineFrom(process.env.VBDKIT_TEST_ENGINE)

/** Whether its rings have journals: then a guest whose backend was killed notices nothing, else it connects anew. */
export const JOURNALED = ENGINE === 'native'

function engineFrom(name = 'native'): EngineChoice {
  if (name === 'native' || name === 'js') return name
  throw new Error(`VBDKIT_TEST_ENGINE is ${name}: native or js`)
}

/** `describe` for what only the native engine has; `why` says what that is. */
export function describeNative(why: string): typeof describe | typeof describe.skip {
  if (why === '') throw new Error('say what is native about it')
  return ENGINE === 'native' ? describe : describe.skip
}
