/**
 * ScriptEngineDisk: an open script disk, for the engine's contract: its host, and the native device that hands it the
 * guests' requests. Owns both.
 */

import type { DiskShape } from '../../disk/open_definition.js'
import { describePlan, planOf } from '../../disk/plan.js'
import type { DiskSpec, ScriptSpec } from '../../disk/spec.js'
import { VbdError } from '../../errors.js'
import { formatNanoseconds } from '../../units.js'
import type { Addon, NativeDisk, NativeEngine, OverdueRequest, ScriptGeometry } from '../addon.js'
import type { DiskInfo, EngineDisk, StageState } from '../engine.js'
import { guard, guardAsync } from '../native_errors.js'
import { type ChainWorld, openScriptStage } from './chain.js'
import { type ErrorListener, hostHere, hostOnThread, type ScriptHost } from './host.js'

/** A script disk that is open on the native engine. */
export class ScriptEngineDisk implements EngineDisk {
  readonly native: NativeDisk
  readonly #host: ScriptHost
  readonly #listeners: Set<ErrorListener>
  #info: DiskInfo
  #closed: Promise<void> | undefined

  /**
   * Opens a disk whose outermost stage is a script.
   *
   * @throws as opening the stages does, ERR_VBD_BACKING for a module that cannot be loaded
   */
  static async open(
    spec: DiskSpec,
    addon: Addon,
    world: Omit<ChainWorld, 'onError'>,
  ): Promise<ScriptEngineDisk> {
    const listeners = new Set<ErrorListener>()
    const onError: ErrorListener = (error, vbd) => {
      for (const listener of listeners) listener(error, vbd)
    }
    const module = spec.driver === 'script' && 'module' in spec.source ? spec.source : undefined
    const host =
      module === undefined
        ? hostHere(await openScriptStage(spec, { ...world, onError }), addon, onError)
        : await hostOnThread({ ...module, name: (spec as ScriptSpec).name }, onError)
    const { shape } = host
    let native: ReturnType<NativeEngine['openScript']> | undefined
    try {
      native = world.engine.openScript(geometryOf(shape, spec), (request) =>
        onError(overdue(shape, request), request.vbd),
      )
      await host.attach(native.channel)
    } catch (thrown) {
      await native?.close()
      await host.close().catch(() => {})
      throw thrown
    }
    return new ScriptEngineDisk(native, host, listeners)
  }

  private constructor(native: NativeDisk, host: ScriptHost, listeners: Set<ErrorListener>) {
    this.native = native
    this.#host = host
    this.#listeners = listeners
    this.#info = native.info()
  }

  get info(): DiskInfo {
    return this.#info
  }

  onError(listener: ErrorListener): void {
    this.#listeners.add(listener)
  }

  stages(): readonly StageState[] {
    return this.native.stages()
  }

  tuneStage(stage: number, setting: string, value: number): void {
    guard({}, () => this.native.tuneStage(stage, setting, value))
  }

  flush(): Promise<void> {
    return guardAsync({}, () => this.native.flush())
  }

  async resize(sizeBytes: number): Promise<DiskInfo> {
    await this.#host.resize(sizeBytes)
    this.#info = await guardAsync({}, () => this.native.resize(sizeBytes))
    return this.#info
  }

  close(): Promise<void> {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #close(): Promise<void> {
    await this.native.close()
    await this.#host.close()
  }
}

/** What the engine is told of a script disk. */
export function geometryOf(shape: DiskShape, spec: DiskSpec): ScriptGeometry {
  const script = spec.driver === 'script' ? spec : undefined
  const readOnly = shape.readOnly || script?.readOnly === true
  const thread = script !== undefined && 'module' in script.source ? ', own thread' : ''
  return {
    ...shape,
    readOnly,
    canFlush: shape.canFlush && !readOnly,
    canDiscard: shape.canDiscard && !readOnly,
    description:
      script === undefined ? describePlan(planOf(spec)) : `script(${shape.name}${thread})`,
  }
}

/** The error for a request that was not answered in time. */
export function overdue({ name, deadlineMs }: DiskShape, request: OverdueRequest): VbdError {
  const { operation, offset, length, vbd } = request
  const range = operation === 'flush' ? '' : ` of ${length} bytes at ${offset}`
  const limit = formatNanoseconds(deadlineMs * 1e6)
  const message = `the disk ${name} did not answer a ${operation}${range} within ${limit}`
  return new VbdError('ERR_VBD_TIMEOUT', message, {
    ...(vbd === '' ? {} : { vbd }),
    remedy: 'look for what keeps it, or give the disk a longer deadline',
  })
}
