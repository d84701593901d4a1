/**
 * DiskIo: what the user of a disk calls: byte ranges and promises on top of the RequestScheduler. The half of a
 * Frontend that knows nothing of xenstore.
 *
 * It checks ranges and features before anything is sent, so that only raw requests can break the rules.
 */
import { EventEmitter } from 'node:events'
import { VbdError } from '../errors.js'
import type { DiskProperties } from './front_keys.js'
import type { FrontendEvents } from './frontend_events.js'
import type { OperationKind, OperationRequest } from './operation.js'
import type { RequestScheduler } from './request_scheduler.js'
import { PAGE_BYTES, SECTOR_BYTES, SECTORS_PER_PAGE } from './wire.js'

export type Feature = FrontendEvents['feature-lost'][0]

export interface OperationOptions {
  /** Gives the operation up: it rejects at once, although requests of it may still be carried out. */
  readonly signal?: AbortSignal | undefined
}

export interface WriteOptions extends OperationOptions {
  /** Resolve only when the data is on stable storage. */
  readonly fua?: boolean | undefined
}

export interface DiscardOptions extends OperationOptions {
  /** Have the data erased, not only forgotten. */
  readonly secure?: boolean | undefined
}

/** Data that a flush or a barrier carries in the same request. */
export interface CarriedData extends OperationOptions {
  readonly offset?: number | undefined
  readonly data?: Uint8Array | undefined
}

/** Reads, writes, flushes, barriers and discards of one disk. */
export abstract class DiskIo extends EventEmitter<FrontendEvents> {
  /** `domid:devid` */
  abstract readonly vbd: string
  protected abstract readonly scheduler: RequestScheduler
  /** Segments of one request that is not indirect. */
  protected abstract readonly maxSegments: number

  /** The disk, or why it cannot be used now. */
  protected abstract usable(): DiskProperties | VbdError

  /** Whether the backend answered EOPNOTSUPP to this. */
  protected abstract isLost(feature: Feature): boolean

  /**
   * Reads `length` bytes, or as many as the buffer has, from byte `offset`; both multiples of the sector size.
   * Resolves with the buffer, which must not be used before that. While the backend is away it waits.
   *
   * @throws ERR_VBD_ARGUMENT beyond the disk's end or unaligned, ERR_VBD_IO when the backend answers ERROR,
   *   ERR_VBD_BUSY with too many operations waiting, ERR_VBD_STATE when the disk is closed, ERR_VBD_ABORTED
   */
  read(offset: number, length: number, options?: OperationOptions): Promise<Buffer>
  read<T extends Uint8Array>(offset: number, into: T, options?: OperationOptions): Promise<T>
  async read(
    offset: number,
    into: number | Uint8Array,
    options: OperationOptions = {},
  ): Promise<Uint8Array> {
    const length = typeof into === 'number' ? into : into.length
    const request = this.#range('read', offset, length)
    const data = typeof into === 'number' ? Buffer.alloc(into) : into
    if (length > 0) await this.scheduler.submit({ ...request, data }, options.signal)
    return data
  }

  /**
   * Writes `data` at byte `offset`. The data must not change before it resolves.
   * With `fua` it is on stable storage then: as a barrier where it fits one and the backend has them, else by a
   * flush.
   *
   * @throws as read(), and ERR_VBD_UNSUPPORTED on a read-only disk
   */
  async write(offset: number, data: Uint8Array, options: WriteOptions = {}): Promise<void> {
    const request = this.#range('write', offset, data.length)
    if (data.length === 0) return
    const fua = options.fua === true
    const kind = fua && this.has('barrier') && this.#fitsOne(request) ? 'barrier' : 'write'
    await this.scheduler.submit({ ...request, kind, data }, options.signal)
    if (fua && kind === 'write') await this.flush({ signal: options.signal })
  }

  /**
   * Makes every write that resolved before durable. A backend that offers neither flush nor barrier has no volatile
   * cache, and there is nothing to do. With `data`, a flush and then that write, as one request.
   *
   * @throws as read(). With Linux's manners a flush without data that is answered ERROR resolves all the same, as it
   *   does there, and `feature-lost` is told.
   */
  async flush(options: CarriedData = {}): Promise<void> {
    if (this.has('flush')) await this.#single('flush', options)
    else if (this.has('barrier')) await this.#single('barrier', options)
    else if (options.data !== undefined)
      await this.write(options.offset ?? 0, options.data, options)
  }

  /**
   * A WRITE_BARRIER, with or without data: everything before it is done and durable before it is answered.
   * @throws ERR_VBD_UNSUPPORTED when the backend offers none, and as write()
   */
  async barrier(options: CarriedData = {}): Promise<void> {
    if (!this.has('barrier')) throw this.#unsupported('barriers')
    await this.#single('barrier', options)
  }

  /**
   * Tells the backend that `length` bytes from `offset` are not needed any more.
   * @throws ERR_VBD_UNSUPPORTED when the backend does not offer that, and as write()
   */
  async discard(offset: number, length: number, options: DiscardOptions = {}): Promise<void> {
    const secure = options.secure === true
    const feature = secure ? 'secure-discard' : 'discard'
    if (!this.has(feature)) throw this.#unsupported(secure ? 'secure discards' : 'discards')
    const request = this.#range('discard', offset, length)
    if (length > 0) await this.scheduler.submit({ ...request, secure }, options.signal)
  }

  /**
   * Whether the backend takes this now: it advertised it, and did not answer EOPNOTSUPP to it.
   * @throws ERR_VBD_STATE when the disk cannot be used
   */
  has(feature: Feature): boolean {
    const { flush, barrier, discard, secureDiscard } = this.#disk()
    const offered = { flush, barrier, discard, 'secure-discard': secureDiscard }
    return offered[feature] && !this.isLost(feature)
  }

  async #single(kind: 'flush' | 'barrier', options: CarriedData): Promise<void> {
    const { data, signal } = options
    if (data === undefined || data.length === 0) {
      return await this.scheduler.submit({ kind, sector: 0, sectors: 0 }, signal)
    }
    const request = this.#range(kind, options.offset ?? 0, data.length)
    if (!this.#fitsOne(request)) {
      throw this.#argument(`a ${kind} of ${data.length} bytes does not fit one request`)
    }
    await this.scheduler.submit({ ...request, data }, signal)
  }

  #disk(): DiskProperties {
    const disk = this.usable()
    if (disk instanceof VbdError) throw disk
    return disk
  }

  #range(kind: OperationKind, offset: number, length: number): OperationRequest {
    const { sectorSize, sizeBytes, readOnly } = this.#disk()
    if (readOnly && kind !== 'read') throw this.#unsupported(`a ${kind}: the disk is read-only`)
    if (!isMultiple(offset, sectorSize) || !isMultiple(length, sectorSize)) {
      throw this.#argument(`${length} bytes at ${offset} are not whole sectors of ${sectorSize}`)
    }
    if (offset > sizeBytes || length > sizeBytes - offset) {
      throw this.#argument(`${length} bytes at ${offset} go beyond the disk's ${sizeBytes} bytes`)
    }
    return { kind, sector: offset / SECTOR_BYTES, sectors: length / SECTOR_BYTES }
  }

  #fitsOne({ sector, sectors }: { sector: number; sectors: number }): boolean {
    const pages = ((sector % SECTORS_PER_PAGE) + sectors) / (PAGE_BYTES / SECTOR_BYTES)
    return pages <= this.maxSegments
  }

  #unsupported(what: string): VbdError {
    const message = `the backend does not take ${what}`
    return new VbdError('ERR_VBD_UNSUPPORTED', message, { vbd: this.vbd })
  }

  #argument(message: string): VbdError {
    return new VbdError('ERR_VBD_ARGUMENT', message, { vbd: this.vbd })
  }
}

function isMultiple(value: number, of: number): boolean {
  return Number.isSafeInteger(value) && value >= 0 && value % of === 0
}
