/**
 * What a control socket does to a Backend: each verb of the protocol as calls of the library. No state of its own.
 */
import type { Backend } from '../backend.js'
import type { Disk } from '../disk/disk.js'
import type { Vbd, VbdTunables } from '../vbd/vbd.js'
import type { ControlTarget } from './server.js'

/** One line of `list`. */
export interface VbdSummary {
  /** `1:xvda` */
  readonly vbd: string
  readonly state: string
  readonly sizeBytes: number
  readonly readOnly: boolean
  readonly disk: string
  readonly engine: string
  /** While a guest is connected. */
  readonly transfer?: string
  /** Its guest's requests are held back. */
  readonly paused: boolean
}

/** What `resize` answers, in bytes. */
export interface Resized {
  readonly sizeBytes: number
  readonly previousBytes: number
}

/**
 * The target that controls every vbd of a backend.
 *
 * @param stop told when a client wants the end
 * @param diskOf the disk that `params` name
 */
export function backendTarget(
  backend: Backend,
  stop: () => void,
  diskOf: (params: string) => Promise<Disk>,
): ControlTarget {
  return {
    list: () => backend.vbds().map(summary),
    info: (vbd) => backend.vbd(vbd).info(),
    explain(vbd) {
      const explanation = backend.vbd(vbd).explain()
      return { ...explanation, text: explanation.toString() }
    },
    stats: (vbd) => backend.vbd(vbd).stats(),
    stream: (vbd, everyMs, signal) => backend.vbd(vbd).stats({ every: everyMs, signal }),
    async resize(id, sizeBytes, shrink): Promise<Resized> {
      const vbd = backend.vbd(id)
      const previousBytes = vbd.disk.sizeBytes
      const disk = await vbd.resize(sizeBytes, { shrink })
      return { sizeBytes: disk.sizeBytes, previousBytes }
    },
    async pause(vbd) {
      await backend.vbd(vbd).pause()
      return {}
    },
    async resume(vbd) {
      await backend.vbd(vbd).resume()
      return {}
    },
    async swap(vbd, params, shrink) {
      return backend.vbd(vbd).swap(await diskOf(params), { shrink })
    },
    async snapshot(vbd) {
      return { layer: await backend.vbd(vbd).snapshot() }
    },
    async commit(vbd) {
      await backend.vbd(vbd).commit()
      return {}
    },
    async reset(vbd, force) {
      await backend.vbd(vbd).reset({ force })
      return {}
    },
    async *trace(id, signal) {
      const vbd = backend.vbd(id)
      yield vbd.traceHeader()
      yield* vbd.traceBatches({ signal })
    },
    tune(id, tuning): Partial<VbdTunables> {
      if (id === undefined) {
        backend.tune(tuning)
        return tuning
      }
      const vbd = backend.vbd(id)
      vbd.tune(tuning)
      return { ...vbd.info().tunables }
    },
    stages(id, tune) {
      const vbd = backend.vbd(id)
      if (tune !== undefined) vbd.tuneStage(tune.stage, tune.settings)
      return { stages: vbd.stages() }
    },
    stop,
  }
}

function summary(vbd: Vbd): VbdSummary {
  const { engine, connection } = vbd.info()
  const { sizeBytes, readOnly, description } = vbd.disk
  return {
    vbd: vbd.id,
    state: vbd.state,
    sizeBytes,
    readOnly,
    disk: description,
    engine,
    paused: vbd.paused,
    ...(connection === undefined ? {} : { transfer: connection.transfer }),
  }
}
