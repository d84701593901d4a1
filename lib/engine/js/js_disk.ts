/**
 * JsDisk: an open disk of the JavaScript engine, whatever stands behind it. Rings get at it through the queues that it
 * opens; vbds may share it.
 */
import { VbdError } from '../../errors.js'
import type { DiskInfo, EngineDisk, StageState } from '../engine.js'
import type { ErrorListener } from '../script/host.js'
import type { DiskQueue } from './disk_queue.js'

export abstract class JsDisk implements EngineDisk {
  /** Reads write every byte of their memory; else pool pages are zeroed first. */
  readonly fillsReads: boolean = true
  #info: DiskInfo
  readonly #onClose: (disk: JsDisk) => void
  #open = true

  constructor(info: DiskInfo, onClose: (disk: JsDisk) => void) {
    this.#info = info
    this.#onClose = onClose
  }

  get info(): DiskInfo {
    return this.#info
  }

  /**
   * @param vbd whose requests will come, `1:xvda`
   * @param onComplete as DiskQueue has it
   */
  abstract openQueue(vbd: string, onComplete: () => void): DiskQueue

  /** Disks that have functions tell of what fails in them. */
  onError(_listener: ErrorListener): void {}

  /** A driver alone has no settings. */
  stages(): readonly StageState[] {
    return [{ kind: 'disk', values: {} }]
  }

  tuneStage(_stage: number, setting: string, _value: number): void {
    throw new VbdError('ERR_VBD_UNSUPPORTED', `this disk has no setting '${setting}'`)
  }

  async resize(sizeBytes: number): Promise<DiskInfo> {
    this.#info = await this.resized(sizeBytes)
    return this.#info
  }

  async close(): Promise<void> {
    if (!this.#open) return
    this.#open = false
    this.#onClose(this)
    await this.shut()
  }

  /** Makes the disk so long; how it is then. */
  protected abstract resized(sizeBytes: number): DiskInfo | Promise<DiskInfo>

  /** Lets go of what is behind it. Called once; no queue is open. */
  protected abstract shut(): void | Promise<void>
}

/**
 * A disk has whole sectors of 512 or 4096 bytes, at least one.
 *
 * @throws ERR_VBD_ARGUMENT
 */
export function checkDiskSize(sizeBytes: number, sectorSize: number): void {
  if (sectorSize !== 512 && sectorSize !== 4096) {
    throw new VbdError('ERR_VBD_ARGUMENT', 'a sector has 512 or 4096 bytes')
  }
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes <= 0 || sizeBytes % sectorSize !== 0) {
    throw new VbdError(
      'ERR_VBD_ARGUMENT',
      `a disk's size is a positive multiple of its sector size, ${sectorSize} bytes`,
    )
  }
}
