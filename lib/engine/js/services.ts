/** Services: what an engine lends to its rings. One set for the engine, used on the JavaScript thread alone. */
import type { NativePrimitives } from '../primitives.js'
import type { Tags } from './in_flight.js'
import type { IoBatch } from './io_batch.js'
import type { PagePool } from './page_pool.js'

export interface Services {
  readonly primitives: NativePrimitives
  readonly pool: PagePool
  readonly tags: Tags
  readonly io: IoBatch
  /** Something was completed from outside a turn: rings have to be looked at. */
  wakeUp(): void
}
