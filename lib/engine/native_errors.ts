/**
 * What the addon throws, as VbdErrors: a code from the kind of error, and a remedy from its errno.
 */
import { getSystemErrorName } from 'node:util'
import { VbdError, type VbdErrorCode, type VbdErrorOptions } from '../errors.js'
import type { NativeError } from './addon.js'

const CODES: Readonly<Record<string, VbdErrorCode>> = {
  xen: 'ERR_VBD_GRANT',
  ring: 'ERR_VBD_PROTOCOL',
  backing: 'ERR_VBD_BACKING',
  'invalid-argument': 'ERR_VBD_ARGUMENT',
  unsupported: 'ERR_VBD_UNSUPPORTED',
  'no-memory': 'ERR_VBD_UNSUPPORTED',
}

const REMEDIES: Readonly<Record<string, string>> = {
  ENOENT: 'check the path',
  EACCES: 'run as a user who may open it, or serve it read-only',
  EPERM: 'run as a user who may open it, or serve it read-only',
  EROFS: 'serve it read-only',
  EISDIR: 'name an image file or a block device',
  EBUSY: 'stop what else is using it',
  ENOSPC: 'free space in the file system that holds it',
  ENOMEM: 'free memory, or raise the limit on locked memory (ulimit -l)',
}

/** Runs a call of the addon; what it throws leaves as a VbdError. */
export function guard<T>(context: VbdErrorOptions, call: () => T): T {
  try {
    return call()
  } catch (thrown) {
    throw translate(thrown, context)
  }
}

/** The same for a call that is a promise. */
export async function guardAsync<T>(context: VbdErrorOptions, call: () => Promise<T>): Promise<T> {
  try {
    return await call()
  } catch (thrown) {
    throw translate(thrown, context)
  }
}

/** The VbdError that an error of the addon stands for. */
export function translate(thrown: unknown, context: VbdErrorOptions): VbdError {
  if (thrown instanceof VbdError) return thrown
  const { kind, errno } = (thrown ?? {}) as Partial<NativeError>
  const code = CODES[String(kind)] ?? 'ERR_VBD_INTERNAL'
  const options: VbdErrorOptions = { ...context, cause: thrown }
  const remedy = errno ? REMEDIES[getSystemErrorName(-Math.abs(errno))] : undefined
  if (remedy !== undefined) options.remedy = remedy
  return new VbdError(code, text(thrown), options)
}

/** Of whatever was thrown. */
export function text(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown)
}
