/**
 * FileDisk: a raw image file or block device. The addon opens, locks and measures it, as it does for the native engine,
 * so that both agree on what a disk is; what is read and written goes through node:fs, or through io_uring by one
 * batched call a pass (`--js-io`).
 */

import type { FileSpec } from '../../disk/spec.js'
import type { VbdErrorOptions } from '../../errors.js'
import type { DiskInfo } from '../engine.js'
import { translate } from '../native_errors.js'
import type { NativeFile, NativePrimitives } from '../primitives.js'
import { DiskQueue } from './disk_queue.js'
import { FileSync } from './file_sync.js'
import { FsQueue } from './fs_queue.js'
import type { InFlight } from './in_flight.js'
import type { IoBatch } from './io_batch.js'
import { JsDisk } from './js_disk.js'

/** How files are read and written. */
export type JsIo = 'fs' | 'uring'

/** A file through the addon's batch alone. */
class BatchQueue extends DiskQueue {
  readonly #file: NativeFile
  readonly #batch: IoBatch

  constructor(file: NativeFile, batch: IoBatch, onComplete: () => void) {
    super(onComplete)
    this.#file = file
    this.#batch = batch
  }

  submit(batch: readonly InFlight[]): void {
    for (let i = 0; i < batch.length; i++) this.#batch.add(this, this.#file.file, batch[i]!)
  }

  close(): void {}
}

export interface FileDiskServices {
  readonly primitives: NativePrimitives
  readonly io: IoBatch
}

export class FileDisk extends JsDisk {
  readonly #file: NativeFile
  readonly #uring: boolean
  readonly #batch: IoBatch
  readonly #sync: FileSync
  readonly #context: VbdErrorOptions

  /**
   * Opens and locks it.
   *
   * @param io for a disk that does not say it
   * @throws ERR_VBD_BACKING, ERR_VBD_UNSUPPORTED, ERR_VBD_ARGUMENT, as the native engine does
   */
  static open(
    spec: FileSpec,
    io: JsIo,
    services: FileDiskServices,
    onClose: (disk: JsDisk) => void,
  ): FileDisk {
    // A pool of threads: that is what node:fs is.
    const way = spec.io === 'uring' ? 'uring' : spec.io === 'sync' ? 'fs' : io
    const context = { path: spec.path }
    const file = guard(context, () => services.primitives.openFile(spec, way === 'uring'))
    return new FileDisk(file, way, context, services.io, onClose)
  }

  private constructor(
    file: NativeFile,
    way: JsIo,
    context: VbdErrorOptions,
    batch: IoBatch,
    onClose: (disk: JsDisk) => void,
  ) {
    super(file.info(), onClose)
    this.#file = file
    this.#uring = way === 'uring'
    this.#context = context
    this.#batch = batch
    this.#sync = new FileSync(file.fd)
  }

  openQueue(_vbd: string, onComplete: () => void): DiskQueue {
    return this.#uring
      ? new BatchQueue(this.#file, this.#batch, onComplete)
      : new FsQueue(this.#file, this.#sync, this.#batch, onComplete)
  }

  protected resized(sizeBytes: number): DiskInfo {
    return guard(this.#context, () => this.#file.resize(sizeBytes))
  }

  protected shut(): void {
    this.#file.close()
  }
}

function guard<T>(context: VbdErrorOptions, call: () => T): T {
  try {
    return call()
  } catch (thrown) {
    throw translate(thrown, context)
  }
}
