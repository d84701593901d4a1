/**
 * NativeDiskAdapter: an open disk of the native engine behind the EngineDisk contract, with the logs that its stages
 * write. Owned by whoever opened it.
 */
import { keyOf } from '../disk/encrypt.js'
import { type DiskSpec, mapStages, stagesOf } from '../disk/spec.js'
import type { VbdErrorOptions } from '../errors.js'
import type { NativeDisk } from './addon.js'
import type { DiskInfo, EngineDisk, StageState } from './engine.js'
import { guard, guardAsync } from './native_errors.js'
import { StageLog } from './stage_log.js'

/** An open disk of the native engine. */
export class NativeDiskAdapter implements EngineDisk {
  readonly native: NativeDisk
  readonly #context: VbdErrorOptions
  readonly #logs: StageLog[] = []
  #info: DiskInfo
  /** Resizes, one after the other; closing comes after them. */
  #resized: Promise<unknown> = Promise.resolve()
  #closed: Promise<void> | undefined

  constructor(native: NativeDisk, spec: DiskSpec, context: VbdErrorOptions) {
    this.native = native
    this.#context = context
    this.#info = native.info()
    let stage = 0
    try {
      for (const each of stagesOf(spec)) {
        if (each.driver === 'log') this.#logs.push(new StageLog(native, stage, each.path))
        stage++
      }
    } catch (thrown) {
      void this.close()
      throw thrown
    }
  }

  get info(): DiskInfo {
    return this.#info
  }

  stages(): readonly StageState[] {
    return guard(this.#context, () => this.native.stages())
  }

  tuneStage(stage: number, setting: string, value: number): void {
    guard(this.#context, () => this.native.tuneStage(stage, setting, value))
  }

  read(offset: number, length: number): Promise<Buffer> {
    return guardAsync(this.#context, () => this.native.read(offset, length))
  }

  flush(): Promise<void> {
    return guardAsync(this.#context, () => this.native.flush())
  }

  resize(sizeBytes: number): Promise<DiskInfo> {
    const resized = this.#resized.then(async () => {
      this.#info = await guardAsync(this.#context, () => this.native.resize(sizeBytes))
      return this.#info
    })
    this.#resized = resized.catch(() => {})
    return resized
  }

  close(): Promise<void> {
    this.#closed ??= guardAsync(this.#context, async () => {
      await this.#resized
      for (const log of this.#logs) log.close()
      await this.native.close()
    })
    return this.#closed
  }
}

/** Calls `open` with a spec that holds the keys themselves, and wipes them when it returns: it has its own by then. */
export function withKeys<T>(spec: DiskSpec, open: (keyed: object) => T): T {
  const keys: Buffer[] = []
  const keyed = mapStages(spec, (stage) => {
    if (stage.driver !== 'encrypt') return stage
    const key = keyOf(stage.key)
    keys.push(key)
    return { ...stage, key } as unknown as DiskSpec
  })
  try {
    return open(keyed)
  } finally {
    for (const key of keys) key.fill(0)
  }
}
