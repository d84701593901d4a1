/**
 * Errors of operators and scripts: one class with a stable code, the vbd or path concerned, the cause, and what to do.
 * Guest mistakes are never errors: they are answered on the ring and counted.
 */

/** Every code, with the exit code of the command line: 2 is the operator's mistake, 1 everything else. */
export const ERROR_CODES = {
  /** A bad option, argument or name. */
  ERR_VBD_ARGUMENT: 2,
  /** The image, device or directory cannot be used as asked. */
  ERR_VBD_BACKING: 2,
  /** No Xen here, or it cannot be reached. */
  ERR_VBD_NO_XEN: 2,
  /** Something is already in use: a vbd, a socket, an image. */
  ERR_VBD_BUSY: 2,
  /** No such vbd, guest or command. */
  ERR_VBD_NOT_FOUND: 2,
  /** This build, kernel or device cannot do it. */
  ERR_VBD_UNSUPPORTED: 2,
  /** The xenstore connection or an operation on it failed. */
  ERR_VBD_XENSTORE: 1,
  /** A grant or an event channel was refused. */
  ERR_VBD_GRANT: 1,
  /** The guest's ring or its xenstore keys break the protocol. */
  ERR_VBD_PROTOCOL: 1,
  /** The disk's file or device failed while in use. */
  ERR_VBD_IO: 1,
  /** The operation does not fit the present state. */
  ERR_VBD_STATE: 1,
  /** It took longer than it may. */
  ERR_VBD_TIMEOUT: 1,
  /** Stopped by an AbortSignal. */
  ERR_VBD_ABORTED: 1,
  /** A defect of vbdkit. */
  ERR_VBD_INTERNAL: 1,
} as const

export type VbdErrorCode = keyof typeof ERROR_CODES

export interface VbdErrorOptions {
  /** `domid:devid`, or `domid:name`, of the disk concerned. */
  vbd?: string
  /** The file, socket or xenstore path concerned. */
  path?: string
  /** What the operator can do, one sentence. */
  remedy?: string
  cause?: unknown
}

/** What went wrong for an operator or a script: a stable code, one line, and what to do about it. */
export class VbdError extends Error {
  override readonly name = 'VbdError'
  readonly code: VbdErrorCode
  readonly vbd: string | undefined
  readonly path: string | undefined
  readonly remedy: string | undefined

  /** @param message one line, without a full stop */
  constructor(code: VbdErrorCode, message: string, options: VbdErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.code = code
    this.vbd = options.vbd
    this.path = options.path
    this.remedy = options.remedy
  }

  /** 2 where the operator asked for something that cannot be, 1 otherwise. */
  get exitCode(): number {
    return ERROR_CODES[this.code]
  }

  toJSON(): Record<string, unknown> {
    const { code, message, vbd, path, remedy } = this
    return { error: { code, message, vbd, path, remedy } }
  }
}

/** Turns anything thrown into a VbdError, keeping one that already is. */
export function toVbdError(thrown: unknown, code: VbdErrorCode = 'ERR_VBD_INTERNAL'): VbdError {
  if (thrown instanceof VbdError) return thrown
  const message = thrown instanceof Error ? thrown.message : String(thrown)
  return new VbdError(code, message, { cause: thrown })
}

/** Throws ERR_VBD_ABORTED when the signal has fired. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new VbdError('ERR_VBD_ABORTED', 'aborted', { cause: signal.reason })
}
