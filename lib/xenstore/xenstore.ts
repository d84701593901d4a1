/**
 * Xenstore: what the rest of vbdkit sees of the store. client.ts implements it on the wire protocol.
 *
 * Paths are absolute. Values are byte strings carried as latin1 (`charCode` 0..255): xenstore is not UTF-8 (XSA-474).
 * Failures are VbdErrors ERR_VBD_XENSTORE whose `errno` property holds the wire's name (`ENOENT`, `EACCES`, ...).
 */
import { VbdError, type VbdErrorOptions } from '../errors.js'

/** A xenstore operation that the daemon refused, or that never reached it. */
export class XenstoreError extends VbdError {
  /** `ENOENT`, `EACCES`, `EAGAIN`, `EQUOTA`, ...; `ECONNRESET` when the connection was lost. */
  readonly errno: string

  constructor(errno: string, message: string, options: VbdErrorOptions = {}) {
    super('ERR_VBD_XENSTORE', message, options)
    this.errno = errno
  }
}

/** `n0`, `r7`, ...: the first entry names the owner and everyone else's default. */
export interface Permission {
  readonly access: 'n' | 'r' | 'w' | 'b'
  readonly domid: number
}

/** The operations that work inside and outside a transaction. */
export interface XenstoreOps {
  read(path: string): Promise<string>
  /** undefined when the node does not exist; other failures reject. */
  tryRead(path: string): Promise<string | undefined>
  /** Names of the children, in the daemon's order; works beyond 4096 bytes of names. */
  list(path: string): Promise<string[]>
  /** [] when the node does not exist. */
  tryList(path: string): Promise<string[]>
  /** Creates parents. At most 4096 bytes with the path. */
  write(path: string, value: string): Promise<void>
  mkdir(path: string): Promise<void>
  /** Recursive; a node that does not exist is no error. */
  remove(path: string): Promise<void>
  getPermissions(path: string): Promise<Permission[]>
  setPermissions(path: string, permissions: readonly Permission[]): Promise<void>
}

/** A registered watch. Events are hints: something at or under the path changed (or the watch was just registered). */
export interface Watch {
  readonly path: string
  close(): Promise<void>
}

export interface Xenstore extends XenstoreOps {
  /**
   * Runs `body` in a transaction, again on EAGAIN (at most 16 times, with back-off). `body` may therefore run more than
   * once. A throw from `body` aborts the transaction and rejects.
   */
  transaction<T>(body: (tx: XenstoreOps) => Promise<T>): Promise<T>
  /**
   * `onEvent` fires once after registering and again for every change; also after a reconnect. At most
   * one call is pending.
   */
  watch(path: string, onEvent: (path: string) => void): Promise<Watch>
  isDomainIntroduced(domid: number): Promise<boolean>
  /** `/local/domain/N` */
  domainPath(domid: number): Promise<string>
  /** Told of every loss and return of the connection. Returns its unsubscription. */
  onConnection(listener: (state: 'connected' | 'lost') => void): () => void
  close(): Promise<void>
}
