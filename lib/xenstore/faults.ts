/** Rules by which the in-memory server fails requests on purpose, for tests. Pure but for its counts. */
import type { MessageName } from './wire.js'

export interface StoreFault {
  readonly operation: MessageName
  /** Only requests of this domain; any when absent. */
  readonly domid?: number
  /** Let this many matching requests pass first. 0 by default. */
  readonly skip?: number
  /** Then fail this many; for ever when absent. */
  readonly count?: number
  /** What the client is told. EIO by default. A failed TRANSACTION_END drops the transaction. */
  readonly errno?: string
  /** Instead of an answer, the connection is dropped, `before` or `after` the request took effect. */
  readonly drop?: 'before' | 'after'
}

export interface FaultVerdict {
  readonly errno: string
  readonly drop: 'before' | 'after' | undefined
}

/** The rules in force, with what each has counted so far. */
export class FaultPlan {
  readonly #rules: { fault: StoreFault; seen: number }[]

  constructor(faults: readonly StoreFault[] = []) {
    this.#rules = faults.map((fault) => ({ fault, seen: 0 }))
  }

  /** Counts the request; the first rule that hits decides. */
  judge(operation: string, domid: number): FaultVerdict | undefined {
    let verdict: FaultVerdict | undefined
    for (const rule of this.#rules) {
      const { fault } = rule
      if (fault.operation !== operation) continue
      if (fault.domid !== undefined && fault.domid !== domid) continue
      const index = rule.seen++ - (fault.skip ?? 0)
      if (index < 0 || index >= (fault.count ?? Number.POSITIVE_INFINITY)) continue
      verdict ??= { errno: fault.errno ?? 'EIO', drop: fault.drop }
    }
    return verdict
  }
}
