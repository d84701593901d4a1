/**
 * QueueCounters: everything that one ring counts. Made once per ring of a vbd and kept over its connections, so that
 * a reader never holds figures of a ring that is gone. summary() adds up a vbd's rings.
 */
import type { OperationCounters, VbdCounters } from '../engine.js'
import { Histogram } from './histogram.js'
import type { InFlight } from './in_flight.js'
import { REJECT_NAMES } from './request.js'
import { OPERATION, SECTOR_BYTES, STATUS } from './wire.js'

class OperationTally {
  /** Answered OK. */
  requests = 0
  /** Of those. */
  sectors = 0
  /** Accepted, then answered otherwise. */
  errors = 0
  readonly latencyNs = new Histogram()
}

export class QueueCounters {
  readonly read = new OperationTally()
  /** Barriers too. */
  readonly write = new OperationTally()
  readonly flush = new OperationTally()
  readonly discard = new OperationTally()
  /** By REJECT. */
  readonly rejected = new Float64Array(REJECT_NAMES.length)
  grantErrors = 0
  diskErrors = 0
  outOfRequests = 0
  inFlight = 0
  persistentGrants = 0
  persistentGrantsOverflow = 0
  persistentGrantsPurged = 0
  grantMaps = 0
  grantUnmaps = 0
  grantCopies = 0
  grantCalls = 0
  notificationsSent = 0
  notificationsSaved = 0
  eventsReceived = 0
  spuriousEvents = 0
  wakeups = 0
  /** Requests found per pass that found any. */
  readonly ringUtilisation = new Histogram()
  /** Of reads and writes. */
  readonly segmentsPerRequest = new Histogram()

  /** A request was answered after it had been accepted. */
  answered(item: InFlight, status: number, nowNs: number): void {
    const { operation, sectors, segmentCount } = item.request
    let tally = this.write
    if (operation === OPERATION.read) tally = this.read
    else if (operation === OPERATION.flush) tally = this.flush
    else if (operation === OPERATION.discard) tally = this.discard
    if (status !== STATUS.okay) {
      tally.errors++
      return
    }
    tally.requests++
    tally.sectors += sectors
    tally.latencyNs.record(nowNs - item.startedNs)
    if (segmentCount > 0) this.segmentsPerRequest.record(segmentCount)
  }
}

/** The fields that are plain sums, by the names that VbdCounters has for them. */
const SUMS = [
  'grantErrors',
  'diskErrors',
  'outOfRequests',
  'inFlight',
  'persistentGrants',
  'persistentGrantsOverflow',
  'persistentGrantsPurged',
  'grantMaps',
  'grantUnmaps',
  'grantCopies',
  'grantCalls',
  'notificationsSent',
  'notificationsSaved',
  'eventsReceived',
  'spuriousEvents',
  'wakeups',
] as const

/** What is not counted by rings. */
export interface SharedFigures {
  readonly maxPersistentGrants: number
  readonly poolPagesInUse: number
  readonly poolPagesFree: number
}

/** The counters of a vbd: those of its rings together. */
export function summary(rings: readonly QueueCounters[], shared: SharedFigures): VbdCounters {
  const sums = Object.fromEntries(
    SUMS.map((name) => [name, rings.reduce((total, ring) => total + ring[name], 0)]),
  ) as Record<(typeof SUMS)[number], number>
  const operation = (name: 'read' | 'write' | 'flush' | 'discard') =>
    operationSummary(rings.map((ring) => ring[name]))
  const merged = (name: 'ringUtilisation' | 'segmentsPerRequest') =>
    mergedHistogram(rings.map((ring) => ring[name])).counters()
  return {
    read: operation('read'),
    write: operation('write'),
    flush: operation('flush'),
    discard: operation('discard'),
    rejected: rejections(rings),
    ...sums,
    persistentGrantsCap: shared.maxPersistentGrants * Math.max(1, rings.length),
    poolPagesInUse: shared.poolPagesInUse,
    poolPagesFree: shared.poolPagesFree,
    ringUtilisation: merged('ringUtilisation'),
    segmentsPerRequest: merged('segmentsPerRequest'),
  }
}

function operationSummary(tallies: readonly OperationTally[]): OperationCounters {
  const sum = (name: 'requests' | 'sectors' | 'errors') =>
    tallies.reduce((total, tally) => total + tally[name], 0)
  const sectors = sum('sectors')
  return {
    requests: sum('requests'),
    sectors,
    bytes: sectors * SECTOR_BYTES,
    errors: sum('errors'),
    latencyNs: mergedHistogram(tallies.map((tally) => tally.latencyNs)).counters(),
  }
}

function mergedHistogram(parts: readonly Histogram[]): Histogram {
  const all = new Histogram()
  for (const part of parts) all.merge(part)
  return all
}

function rejections(rings: readonly QueueCounters[]): Record<string, number> {
  const counts = REJECT_NAMES.map((name, reject) => {
    return [name, rings.reduce((total, ring) => total + ring.rejected[reject]!, 0)] as const
  })
  return Object.fromEntries(counts.slice(1))
}
