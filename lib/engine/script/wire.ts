/**
 * What the threads of a script disk say to each other: the one that serves it (host.ts), and the one that runs its
 * module (worker.ts). Requests and data do not come this way; they are on the channel.
 */
import type { DiskShape } from '../../disk/open_definition.js'
import type { VbdError } from '../../errors.js'

export interface WorkerData {
  /** file: URL */
  readonly module: string
  readonly options: unknown
  readonly name: string
}

export type ToWorker =
  | { readonly id: number; readonly type: 'attach'; readonly channel: number }
  | { readonly id: number; readonly type: 'resize'; readonly sizeBytes: number }
  | { readonly id: number; readonly type: 'close' }

export interface WireError {
  readonly code: string
  readonly message: string
  readonly vbd: string | undefined
  readonly remedy: string | undefined
}

export type FromWorker =
  | { readonly type: 'opened'; readonly shape: DiskShape }
  | { readonly type: 'failed'; readonly error: WireError }
  | { readonly type: 'error'; readonly error: WireError; readonly vbd: string }
  | { readonly type: 'done'; readonly id: number; readonly error?: WireError }

/** An error as it travels; what caused it stays where it is. */
export function toWire({ code, message, vbd, remedy }: VbdError): WireError {
  return { code, message, vbd, remedy }
}
