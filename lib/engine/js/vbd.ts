/**
 * JsVbd: one virtual disk's connections. Opens its rings all or none, hands them to the loop, and takes them back.
 * Connecting and disconnecting happen one after the other, whoever asked.
 */
import { VbdError } from '../../errors.js'
import type {
  Connection,
  EngineDisk,
  EngineVbd,
  TraceBatch,
  Transfer,
  Tunables,
  VbdCounters,
  VbdFeatures,
} from '../engine.js'
import { translate } from '../native_errors.js'
import { summary } from './counters.js'
import type { JsDisk } from './js_disk.js'
import type { Loop } from './loop.js'
import { Queue } from './queue.js'
import type { Services } from './services.js'
import { takeTraces } from './trace_ring.js'
import type { VbdShared } from './vbd_shared.js'
import { layoutOf } from './wire.js'

/** What a vbd asks of its engine. */
export interface VbdOwner {
  /** What a vbd's tunables say about what vbds share. */
  tune(tunables: Partial<Tunables>): void
  /** @throws ERR_VBD_INTERNAL for another engine's disk */
  ours(disk: EngineDisk, vbd: string): JsDisk
  forget(vbd: JsVbd): void
}

export class JsVbd implements EngineVbd {
  readonly #shared: VbdShared
  readonly #services: Services
  readonly #loop: Loop
  readonly #engine: VbdOwner
  #turn: Promise<unknown> = Promise.resolve()
  #closed: Promise<void> | undefined
  #last: VbdCounters | undefined

  constructor(shared: VbdShared, services: Services, loop: Loop, engine: VbdOwner) {
    this.#shared = shared
    this.#services = services
    this.#loop = loop
    this.#engine = engine
  }

  connect(connection: Connection): Promise<{ transfer: Transfer }> {
    return this.#inTurn(() => this.#connect(connection))
  }

  disconnect(): Promise<boolean> {
    return this.#inTurn(() => this.#disconnect())
  }

  tune(tunables: Partial<Tunables>): void {
    Object.assign(this.#shared.tunables, tunables)
    this.#engine.tune(tunables)
  }

  /** After close: the last ones, because readers of statistics outlive the vbd. */
  counters(): VbdCounters {
    return this.#last ?? this.#summary()
  }

  useDisk(disk: EngineDisk): void {
    if (this.#shared.queues.length > 0) {
      const { name } = this.#shared
      const message = `${name} is connected: its disk cannot be changed`
      throw new VbdError('ERR_VBD_ARGUMENT', message, { vbd: name })
    }
    this.#shared.disk = this.#engine.ours(disk, this.#shared.name)
    this.#shared.flushFailed = false // of the one before
  }

  trace(on: boolean): void {
    if (this.#last === undefined) this.#shared.trace(on)
  }

  takeTrace(): TraceBatch {
    return takeTraces(this.#last === undefined ? this.#shared.traces : [])
  }

  close(): Promise<void> {
    this.#closed ??= this.#inTurn(async () => {
      this.#engine.forget(this)
      await this.#disconnect()
      this.#last = this.#summary()
    })
    return this.#closed
  }

  #inTurn<T>(act: () => Promise<T>): Promise<T> {
    const done = this.#turn.then(act)
    this.#turn = done.catch(() => {})
    return done
  }

  async #connect(connection: Connection): Promise<{ transfer: Transfer }> {
    const { name, queues, features } = this.#shared
    const { domid, protocol, rings, persistent, takeOver } = connection
    if (queues.length > 0 || rings.length === 0 || this.#closed !== undefined) {
      const message = `${name} is connected already, closed, or has no rings`
      throw new VbdError('ERR_VBD_ARGUMENT', message, { vbd: name })
    }
    const strategy = strategyFor(features, persistent)
    const layout = layoutOf(protocol)
    const opened: Queue[] = []
    try {
      for (const [index, ring] of rings.entries()) {
        const options = { index, domid, layout, ring, strategy, takeOver }
        opened.push(new Queue(options, this.#shared, this.#services))
      }
    } catch (thrown) {
      for (const queue of opened) queue.close()
      throw translate(thrown, { vbd: name })
    }
    this.#shared.unanswered = 0
    this.#shared.connected(opened)
    for (const queue of opened) this.#loop.adopt(queue)
    return { transfer: strategy }
  }

  async #disconnect(): Promise<boolean> {
    const { queues } = this.#shared
    await Promise.all(queues.map((queue) => this.#loop.close(queue)))
    this.#shared.connected([])
    return this.#shared.unanswered === 0
  }

  #summary(): VbdCounters {
    const { counters, tunables } = this.#shared
    const { pool } = this.#services
    return summary(counters, {
      maxPersistentGrants: tunables.maxPersistentGrants,
      poolPagesInUse: pool.inUse,
      poolPagesFree: pool.warm,
    })
  }
}

/** A frontend that does not keep its grants cannot be made to: copying is then the right thing. */
function strategyFor(features: VbdFeatures, persistent: boolean): Transfer {
  if (features.transfer === 'map' || features.transfer === 'copy') return features.transfer
  return persistent ? 'persistent' : 'copy'
}
