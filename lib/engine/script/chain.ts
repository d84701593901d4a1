/**
 * Chains of script stages: opens the stages of a plan that run in this thread, each over the open disk below it; what
 * is native, or on a thread of its own, is opened by the engine and reached through a DiskClient.
 */

import { type OpenDefinition, openDefinition } from '../../disk/open_definition.js'
import { openDiskOver } from '../../disk/open_disk.js'
import { planOf } from '../../disk/plan.js'
import type { OpenDisk } from '../../disk/script.js'
import { type MakeStage, scriptStageOf } from '../../disk/script_stages.js'
import { settled } from '../../disk/settled.js'
import { type DiskSpec, partsOf } from '../../disk/spec.js'
import { VbdError } from '../../errors.js'
import type { NativeDisk, NativeEngine } from '../addon.js'
import type { EngineDisk } from '../engine.js'
import { DiskClient } from './client.js'
import type { ErrorListener } from './host.js'

/** What a chain needs of the engine. */
export interface ChainWorld {
  readonly engine: NativeEngine
  /** Opens what does not run in this thread. */
  open(spec: DiskSpec): Promise<EngineDisk & { readonly native: NativeDisk }>
  readonly onError: ErrorListener
}

interface Below {
  readonly disk: OpenDisk
  close(): Promise<void>
}

/**
 * Opens a disk whose outermost stage is a script in this thread.
 *
 * @throws what opening a stage throws; then those below are closed. ERR_VBD_UNSUPPORTED for a stage that only C++ has.
 */
export async function openScriptStage(spec: DiskSpec, world: ChainWorld): Promise<OpenDefinition> {
  if (spec.driver === 'script' && 'definition' in spec.source) {
    return openDefinition(spec.source.definition)
  }
  const make = scriptOf(spec)
  const below = await openAll(partsOf(spec), world)
  try {
    const opened = await openDefinition(make(below.disks), planOf(spec).name)
    let closed: Promise<void> | undefined
    const close = async () => {
      try {
        await opened.close()
      } finally {
        await below.close()
      }
    }
    return { ...opened, close: () => (closed ??= close()) }
  } catch (thrown) {
    await below.close().catch(() => {})
    throw thrown
  }
}

/** All of the disks directly below, or none of them. */
async function openAll(specs: readonly DiskSpec[], world: ChainWorld) {
  const opened: Below[] = []
  const close = () => settled(opened.map((below) => below.close()))
  try {
    for (const spec of specs) opened.push(await openBelow(spec, world))
  } catch (thrown) {
    await close().catch(() => {})
    throw thrown
  }
  return { disks: opened.map(({ disk }) => disk), close }
}

async function openBelow(spec: DiskSpec, world: ChainWorld): Promise<Below> {
  if (planOf(spec).runsIn === 'script') {
    const opened = await openScriptStage(spec, world)
    return { disk: openDiskOver(opened), close: opened.close }
  }
  const opened = await world.open(spec)
  opened.onError?.(world.onError)
  try {
    const client = new DiskClient(planOf(spec).name, opened, opened.native, world.engine)
    return {
      disk: client.disk,
      async close() {
        client.close()
        await opened.close()
      },
    }
  } catch (thrown) {
    await opened.close()
    throw thrown
  }
}

/** What a stage is as a script. */
function scriptOf(spec: DiskSpec): MakeStage {
  if (spec.driver === 'script-filter') return ([next]) => spec.make(next!)
  const made = scriptStageOf(spec)
  if (made !== undefined) return made
  throw new VbdError('ERR_VBD_UNSUPPORTED', `${spec.driver} cannot be above a script`, {
    remedy: `put ${spec.driver} below the first script of the disk`,
  })
}
