/** VbdInfo: what a vbd tells of itself. Pure types. */
import type { DiskInfo, Tunables } from '../engine/engine.js'
import type { XenbusStateName } from '../xenbus/state.js'
import type { ConnectionInfo } from './reporter.js'

/** Everything about a vbd at one moment, plain data. */
export interface VbdInfo {
  /** `1:xvda` */
  readonly vbd: string
  readonly domid: number
  readonly devid: number
  readonly vdev: string
  readonly state: XenbusStateName | 'none'
  readonly frontendState: XenbusStateName | 'none'
  readonly engine: string
  readonly disk: DiskInfo
  /** While both sides are Connected. */
  readonly connection?: ConnectionInfo
  /** Of the backend in xenstore, while there is one. */
  readonly path?: string
  readonly tunables: Tunables
}
