/**
 * ScriptDisk: a disk whose outermost stage is a script: its functions are called here, with no channel between them and
 * the rings. What lies below the script in C++ is reached as by every script (script/chain.ts).
 *
 * NativeStagesDisk: a chain that C++ has alone, and a script on a thread of its own: its functions are those of a
 * client of the native disk, so that rings and requests are the JavaScript engine's and the stages the native one's.
 */
import type { DiskFunctions, OpenDefinition } from '../../disk/open_definition.js'
import type { OpenDisk } from '../../disk/script.js'
import type { DiskSpec } from '../../disk/spec.js'
import type { DiskInfo, EngineDisk, StageState } from '../engine.js'
import { IO } from '../primitives.js'
import { ScriptCalls } from '../script/calls.js'
import type { ErrorListener } from '../script/host.js'
import { geometryOf, overdue } from '../script/script_disk.js'
import { DiskQueue, ERRNO } from './disk_queue.js'
import type { InFlight } from './in_flight.js'
import { JsDisk } from './js_disk.js'
import { type ScriptAsker, ScriptSlots } from './script_slots.js'

class ScriptQueue extends DiskQueue implements ScriptAsker {
  readonly vbd: string
  readonly #slots: ScriptSlots
  #submitting = false

  constructor(slots: ScriptSlots, vbd: string, onComplete: () => void) {
    super(onComplete)
    this.#slots = slots
    this.vbd = vbd
  }

  submit(batch: readonly InFlight[]): void {
    this.#submitting = true
    for (let i = 0; i < batch.length; i++) {
      const item = batch[i]!
      if (item.io === IO.secureDiscard) this.complete(item, ERRNO.opNotSupp)
      else this.#slots.ask(this, item)
    }
    this.#submitting = false
  }

  finished(item: InFlight, errno: number): void {
    if (this.#submitting) this.complete(item, errno)
    else this.completeLater(item, errno)
  }

  close(): void {}
}

export class ScriptDisk extends JsDisk {
  readonly #disk: OpenDefinition
  readonly #slots: ScriptSlots
  readonly #listeners: Set<ErrorListener>

  /**
   * @param disk open; closed with this one
   * @param listeners told of what its functions throw
   */
  constructor(
    spec: DiskSpec,
    disk: OpenDefinition,
    listeners: Set<ErrorListener>,
    onClose: (disk: JsDisk) => void,
  ) {
    const { shape, functions, state } = disk
    const { concurrency, deadlineMs, ...geometry } = geometryOf(shape, spec)
    super({ ...geometry, canSecureDiscard: false, discardAlignment: 0 }, onClose)
    this.#disk = disk
    this.#listeners = listeners
    const onError: ErrorListener = (error, vbd) => {
      for (const listener of listeners) listener(error, vbd)
    }
    this.#slots = new ScriptSlots({
      calls: new ScriptCalls({ name: shape.name, functions, state, onError }),
      concurrency,
      deadlineMs,
      onOverdue: (request) => onError(overdue(shape, request), request.vbd),
    })
  }

  openQueue(vbd: string, onComplete: () => void): DiskQueue {
    return new ScriptQueue(this.#slots, vbd, onComplete)
  }

  override onError(listener: ErrorListener): void {
    this.#listeners.add(listener)
  }

  override stages(): readonly StageState[] {
    return [{ kind: 'script', values: {} }]
  }

  protected async resized(sizeBytes: number): Promise<DiskInfo> {
    await this.#disk.resize(sizeBytes)
    return { ...this.info, sizeBytes }
  }

  protected shut(): Promise<void> {
    this.#slots.close()
    return this.#disk.close()
  }
}

/** Requests at a time at a native disk, whose client has 64 slots of its own. */
const NATIVE_REQUESTS = 64

export class NativeStagesDisk extends JsDisk {
  readonly #below: EngineDisk
  readonly #slots: ScriptSlots
  readonly #closeClient: () => void

  /** @param below open; closed with this one, after its client */
  constructor(
    below: EngineDisk,
    client: { readonly disk: OpenDisk; close(): void },
    onClose: (disk: JsDisk) => void,
  ) {
    super(below.info, onClose)
    this.#below = below
    this.#closeClient = () => client.close()
    const functions = functionsOf(client.disk)
    // What fails is told by the disk itself: a client's errors are answers.
    const onError = () => {}
    this.#slots = new ScriptSlots({
      calls: new ScriptCalls({ name: client.disk.name, functions, state: undefined, onError }),
      concurrency: NATIVE_REQUESTS,
      deadlineMs: Number.POSITIVE_INFINITY,
      onOverdue: () => {},
    })
  }

  openQueue(vbd: string, onComplete: () => void): DiskQueue {
    return new ScriptQueue(this.#slots, vbd, onComplete)
  }

  override onError(listener: ErrorListener): void {
    this.#below.onError?.(listener)
  }

  override stages(): readonly StageState[] {
    return this.#below.stages()
  }

  override tuneStage(stage: number, setting: string, value: number): void {
    this.#below.tuneStage(stage, setting, value)
  }

  /** Stages may hold something back: a cache does. */
  async flush(): Promise<void> {
    await this.#below.flush?.()
  }

  protected resized(sizeBytes: number): Promise<DiskInfo> {
    return this.#below.resize(sizeBytes)
  }

  protected async shut(): Promise<void> {
    this.#slots.close()
    this.#closeClient()
    await this.#below.close()
  }
}

function functionsOf({ read, write, flush, discard }: OpenDisk): DiskFunctions {
  return { read, write, flush, discard }
}
