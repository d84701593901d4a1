/**
 * Explanation: how a vbd is served, told to people and programs alike: the stages of its disk and where each of them
 * runs, and what was agreed on with its guest. Pure.
 */
import { inspect } from 'node:util'
import { type PlannedStage, planOf } from '../disk/plan.js'
import type { DiskSpec } from '../disk/spec.js'
import type { DiskInfo } from '../engine/engine.js'
import { formatSize } from '../units.js'
import type { ConnectionInfo } from './reporter.js'

/** One stage of a disk. */
export interface ExplainedStage {
  /** `file`, `throttle`; a script's own name. */
  readonly name: string
  /** As in a plan; `engine`: in the JavaScript engine, which has a few drivers of its own. */
  readonly runsIn: PlannedStage['runsIn'] | 'engine'
  /** Places in the list of the stages directly below it. */
  readonly below: readonly number[]
}

export interface ExplanationParts {
  /** `1:xvda` */
  readonly vbd: string
  /** `native` or `js` */
  readonly engine: string
  /** The backend's in xenstore. */
  readonly state: string
  readonly disk: DiskInfo
  readonly spec: DiskSpec
  readonly connection: ConnectionInfo | undefined
}

/** How a vbd is served; as text with `toString`, as data by its properties. */
export class Explanation {
  readonly vbd: string
  readonly engine: string
  readonly state: string
  readonly disk: DiskInfo
  /** From the storage towards the guest: each stage after those below it. */
  readonly stages: readonly ExplainedStage[]
  readonly connection: ConnectionInfo | undefined

  constructor({ spec, ...parts }: ExplanationParts) {
    this.vbd = parts.vbd
    this.engine = parts.engine
    this.state = parts.state
    this.disk = parts.disk
    this.stages = flatten(planOf(spec), parts.engine)
    this.connection = parts.connection
  }

  toString(): string {
    const { disk, connection } = this
    const can = [
      disk.readOnly ? 'read-only' : 'writable',
      ...(disk.canFlush ? ['flush'] : []),
      ...(disk.canDiscard ? ['discard'] : []),
      `sectors of ${disk.sectorSize}`,
    ]
    const width = Math.max(...this.stages.map(({ name }) => name.length))
    const rows: [string, string][] = [
      ['engine', this.engine],
      ['state', this.state],
      ['disk', `${disk.description}, ${formatSize(disk.sizeBytes)}, ${can.join(', ')}`],
      ...this.stages.map(({ name, runsIn }, i): [string, string] => [
        i === 0 ? 'stages' : '',
        `${name.padEnd(width)}  ${PLACES[runsIn]}`,
      ]),
      ['guest', connection === undefined ? 'not connected' : describeConnection(connection)],
    ]
    return [this.vbd, ...rows.map(([title, text]) => `  ${title.padEnd(8)}${text}`)].join('\n')
  }

  [inspect.custom](): string {
    return this.toString()
  }
}

const PLACES: Readonly<Record<ExplainedStage['runsIn'], string>> = {
  native: 'native, off the JavaScript thread',
  script: 'script, in the main thread',
  thread: 'script, on a thread of its own',
  engine: 'the JavaScript engine',
}

/** Disks that the JavaScript engine reads and writes itself, when there is no stage over them. */
const JS_DRIVERS = ['file', 'memory', 'null']

function flatten(root: PlannedStage, engine: string): ExplainedStage[] {
  const stages: ExplainedStage[] = []
  const isOwn = engine === 'js' && root.below.length === 0 && JS_DRIVERS.includes(root.name)
  const add = ({ name, runsIn, below }: PlannedStage): number => {
    const places = below.map(add)
    const where = isOwn && runsIn === 'native' ? 'engine' : runsIn
    return stages.push({ name, runsIn: where, below: places }) - 1
  }
  add(root)
  return stages
}

/** What both sides agreed on, in a line. */
export function describeConnection(connection: ConnectionInfo): string {
  const { protocol, transfer, queues, ringPages, features } = connection
  const pages = ringPages === 1 ? '1 page' : `${ringPages} pages`
  const offered = [
    features.maxIndirectSegments > 0 &&
      `indirect requests of up to ${features.maxIndirectSegments} segments`,
    features.flush && 'flush',
    features.barrier && 'barrier',
    features.discard && 'discard',
  ].filter((word) => word !== false)
  const rings = queues === 1 ? `1 queue of ${pages}` : `${queues} queues of ${pages}`
  return [protocol, rings, `${transfer} transfer`, ...offered].join(', ')
}
