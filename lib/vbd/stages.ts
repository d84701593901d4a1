/**
 * Stages: the drivers and filters of a disk by name, as people and programs address them: `throttle`, or `throttle#2`
 * for the second of a kind, counted from the guest towards the disk.
 */
import type { EngineDisk, StageState } from '../engine/engine.js'
import { VbdError } from '../errors.js'

/** One stage with its name. */
export interface NamedStage extends StageState {
  readonly name: string
}

/** The stages of an open disk, outermost first, each with a name of its own. */
export function namedStages(disk: EngineDisk): NamedStage[] {
  const seen = new Map<string, number>()
  return disk.stages().map((stage) => {
    const count = (seen.get(stage.kind) ?? 0) + 1
    seen.set(stage.kind, count)
    return { ...stage, name: count === 1 ? stage.kind : `${stage.kind}#${count}` }
  })
}

/**
 * Changes settings of one stage at once; all of them, or those before the one that is refused.
 *
 * @throws ERR_VBD_NOT_FOUND for a stage that the disk does not have, ERR_VBD_UNSUPPORTED for a setting that it does not
 *   have, ERR_VBD_ARGUMENT for a value out of range
 */
export function tuneStage(
  disk: EngineDisk,
  vbd: string,
  name: string,
  settings: Readonly<Record<string, number>>,
): void {
  const stages = namedStages(disk)
  const index = stages.findIndex((stage) => stage.name === name)
  if (index < 0) {
    const names = stages.map((stage) => stage.name).join(', ')
    throw new VbdError('ERR_VBD_NOT_FOUND', `${vbd} has no stage '${name}'`, {
      vbd,
      remedy: `its stages are: ${names}`,
    })
  }
  for (const [setting, value] of Object.entries(settings)) disk.tuneStage(index, setting, value)
}
