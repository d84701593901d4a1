/**
 * Loads: guests that keep the native load generator running on their disks, for benchmarks.
 *
 * LoadDisk does the handshake as a Frontend, then lends the rings and pages that stay granted to the addon, which
 * drives them on a thread of its own. Owns its frontend and the data pages until close().
 */
import type { LoadOptions, LoadQueue, LoadResult } from '../engine/addon.js'
import type { HistogramCounters } from '../engine/engine.js'
import { translate } from '../engine/native_errors.js'
import { VbdError } from '../errors.js'
import type { OperationOptions } from './disk_io.js'
import type { Frontend } from './frontend.js'
import type { FrontendOptions } from './frontend_options.js'
import type { MockGuest } from './guest.js'
import { MAX_DIRECT_SEGMENTS, PAGE_BYTES, SEGMENTS_PER_INDIRECT_PAGE } from './wire.js'

export interface LoadDiskOptions extends OperationOptions {
  readonly protocol?: 'x86_64-abi' | 'x86_32-abi'
  /** Rings, 1..64. 1 by default. */
  readonly queues?: number
  /** Pages of a ring as a power of two, 0..4. 0 by default. */
  readonly ringOrder?: number
  /** Requests in flight per ring, 1..32·2^ringOrder. All that fit by default. */
  readonly depth?: number
  /** Segments of 4 KiB per request: 1..11, with `indirect` up to 4096. 1 by default. */
  readonly segments?: number
  readonly indirect?: boolean
  /** Offer persistent grants. True by default. */
  readonly persistent?: boolean
}

/** What a load does, apart from the shape of the disk. */
export type Workload = Pick<LoadOptions, 'operation' | 'pattern' | 'durationMs'> &
  Partial<Pick<LoadOptions, 'depth' | 'poll' | 'seed' | 'cpu'>>

/** Pages granted for one ring. */
interface Grants {
  /** In the order of their references. */
  readonly pages: readonly number[]
  /** The lowest. */
  readonly firstPage: number
  readonly firstRef: number
}

/** A disk under load. */
export class LoadDisk implements AsyncDisposable {
  readonly frontend: Frontend
  readonly depth: number
  readonly segments: number
  readonly #guest: MockGuest
  readonly #indirect: boolean
  readonly #protocol: LoadOptions['protocol']
  readonly #grants: Grants[] = []
  readonly #queues: LoadQueue[] = []
  #leaked = 0

  /**
   * Connects a disk and prepares its pages.
   *
   * @throws ERR_VBD_ARGUMENT when more is in flight than a ring holds, ERR_VBD_UNSUPPORTED when the backend does not
   * offer
   *   what the load needs, ERR_VBD_STATE when the guest's memory or grant table is too small, and as Frontend.connect
   */
  static async open(
    guest: MockGuest,
    vdev: string | number,
    options: LoadDiskOptions = {},
  ): Promise<LoadDisk> {
    const { segments = 1, indirect = false } = options
    const wishes: FrontendOptions & OperationOptions = {
      protocol: options.protocol,
      queues: options.queues,
      ringOrder: options.ringOrder,
      persistent: options.persistent,
      // A frontend has no use for indirect requests as small as direct ones; a load may.
      indirectSegments: indirect ? Math.max(segments, MAX_DIRECT_SEGMENTS + 1) : 0,
      // The frontend itself moves next to nothing: the pages are for the load.
      memoryBytes: PAGE_BYTES,
      signal: options.signal,
    }
    const frontend = await guest.disk(vdev, wishes)
    try {
      return new LoadDisk(guest, frontend, options)
    } catch (error) {
      await frontend.close()
      throw error
    }
  }

  private constructor(guest: MockGuest, frontend: Frontend, options: LoadDiskOptions) {
    const { segments = 1, indirect = false, queues = 1 } = options
    const entries = frontend.queues[0]!.ring.entries
    this.#guest = guest
    this.frontend = frontend
    this.segments = segments
    this.depth = options.depth ?? entries
    this.#indirect = indirect
    this.#protocol = options.protocol ?? 'x86_64-abi'
    if (this.depth > entries) {
      throw new VbdError(
        'ERR_VBD_ARGUMENT',
        `a ring holds ${entries}, not ${this.depth} requests`,
        {
          vbd: frontend.vbd,
          remedy: 'ask for less depth, or for more ring pages from frontend and backend',
        },
      )
    }
    if (frontend.queues.length < queues) throw this.#notOffered(`${queues} queues`)
    if (indirect && !this.#takesIndirect()) throw this.#notOffered(`${segments} indirect segments`)
    try {
      for (const ring of frontend.lend()) this.#queues.push(this.#prepare(ring))
    } catch (error) {
      this.#release()
      throw error
    }
  }

  #takesIndirect(): boolean {
    const { indirectSegments } = this.frontend.properties
    return indirectSegments >= this.segments
  }

  #notOffered(what: string): VbdError {
    return new VbdError('ERR_VBD_UNSUPPORTED', `the backend does not offer ${what}`, {
      vbd: this.frontend.vbd,
    })
  }

  #prepare(ring: { ringOffset: number; ringPages: number; port: number }): LoadQueue {
    const data = this.#grantPages(this.depth * this.segments, true)
    const queue = { ...ring, firstRef: data.firstRef, firstPage: data.firstPage }
    if (!this.#indirect) return queue
    const tables = Math.ceil(this.segments / SEGMENTS_PER_INDIRECT_PAGE)
    const { firstRef, firstPage } = this.#grantPages(this.depth * tables, false)
    return { ...queue, firstIndirectRef: firstRef, firstIndirectPage: firstPage }
  }

  /** `scattered`: pages with adjacent references are never adjacent, as those of a guest's page cache are not. */
  #grantPages(count: number, scattered: boolean): Grants {
    const { memory } = this.#guest
    const firstPage = memory.takePages(count)
    const half = Math.ceil(count / 2)
    const spread = (i: number) => (i < half ? 2 * i : 2 * (i - half) + 1)
    const pages = Array.from({ length: count }, (_, i) => firstPage + (scattered ? spread(i) : i))
    let firstRef: number | undefined
    try {
      firstRef = memory.grantRun(pages, this.frontend.backendId, false)
    } finally {
      if (firstRef === undefined) memory.releasePages(firstPage, count)
    }
    const grants = { pages, firstPage, firstRef }
    this.#grants.push(grants)
    return grants
  }

  /**
   * Runs a load for `durationMs`. One at a time.
   * @throws ERR_VBD_PROTOCOL when the backend breaks the protocol or leaves requests unanswered; the disk is of no
   * use then
   */
  run(workload: Workload): Promise<LoadResult> {
    return LoadDisk.runTogether([this], workload)
  }

  /**
   * Drives several disks of the same shape, of any guests of this process, from one thread, which keeps them all busy
   * without being what limits them. More than one guest needs `poll`.
   * @throws as `run`
   */
  static async runTogether(disks: readonly LoadDisk[], workload: Workload): Promise<LoadResult> {
    const [first] = disks
    if (first === undefined) throw new VbdError('ERR_VBD_ARGUMENT', 'a load needs a disk')
    const queues = disks.flatMap((disk) => {
      const { native } = disk.#guest
      return native === first.#guest.native
        ? disk.#queues
        : disk.#queues.map((queue) => ({ ...queue, guest: native }))
    })
    try {
      return await first.#guest.native.runLoad({
        queues,
        protocol: first.#protocol,
        depth: first.depth,
        segments: first.segments,
        indirect: first.#indirect,
        diskSectors: Math.min(...disks.map((disk) => disk.frontend.properties.sectors)),
        poll: false,
        seed: 1,
        cpu: -1,
        ...workload,
      })
    } catch (thrown) {
      throw translate(thrown, { vbd: first.frontend.vbd })
    }
  }

  /** Pages that the backend still mapped when the disk was closed. */
  get leaked(): number {
    return this.#leaked
  }

  /** Closes the disk and gives its pages back. Idempotent, never rejects. */
  async close(): Promise<void> {
    await this.frontend.close({ drain: false })
    this.#release()
  }

  #release(): void {
    for (const { pages, firstRef } of this.#grants.splice(0)) {
      for (const [i, page] of pages.entries()) {
        if (!this.#guest.memory.retire(page, firstRef + i)) this.#leaked++
      }
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

/** Several loads that ran at the same time, as one. */
export interface LoadSummary extends LoadResult {
  /** Per disk, in the order given. */
  readonly disks: readonly LoadResult[]
  /** Requests answered per second, all disks together. */
  readonly iops: number
  readonly bytesPerSecond: number
}

/** Runs the same load on all of these disks at once. Each gets its own seed, counted up from the workload's. */
export async function runLoads(
  disks: readonly LoadDisk[],
  workload: Workload,
): Promise<LoadSummary> {
  const seed = workload.seed ?? 1
  const runs = disks.map((disk, i) => disk.run({ ...workload, seed: seed + i }))
  // All of them end before any failure is told: nobody drives a ring behind the caller's back.
  await Promise.allSettled(runs)
  const results = await Promise.all(runs)
  const sum = (key: 'requests' | 'errors' | 'cpuNs' | 'notifications') =>
    results.reduce((total, result) => total + result[key], 0)
  const bytes = results.reduce((total, { requests }, i) => {
    return total + requests * disks[i]!.segments * PAGE_BYTES
  }, 0)
  const elapsedNs = Math.max(0, ...results.map((result) => result.elapsedNs))
  const perSecond = (count: number) => (elapsedNs === 0 ? 0 : (count * 1e9) / elapsedNs)
  return {
    disks: results,
    requests: sum('requests'),
    errors: sum('errors'),
    cpuNs: sum('cpuNs'),
    notifications: sum('notifications'),
    elapsedNs,
    queueRequests: results.flatMap((result) => result.queueRequests),
    latencyNs: mergeHistograms(results.map((result) => result.latencyNs)),
    iops: perSecond(sum('requests')),
    bytesPerSecond: perSecond(bytes),
  }
}

/** One histogram of all. The buckets are the same in all of them. */
export function mergeHistograms(parts: readonly HistogramCounters[]): HistogramCounters {
  const filled = parts.filter((part) => part.count > 0)
  const buckets: number[] = []
  for (const part of filled) {
    part.buckets.forEach((count, i) => {
      buckets[i] = (buckets[i] ?? 0) + count
    })
  }
  return {
    count: filled.reduce((sum, part) => sum + part.count, 0),
    sum: filled.reduce((sum, part) => sum + part.sum, 0),
    min: filled.length === 0 ? 0 : Math.min(...filled.map((part) => part.min)),
    max: filled.length === 0 ? 0 : Math.max(...filled.map((part) => part.max)),
    buckets,
  }
}
