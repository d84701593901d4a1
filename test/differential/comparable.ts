/**
 * comparable: the part of an engine's statistics that does not depend on time. Left out: latencies but for their
 * number, wake-ups, events and notifications, the page pool, which is shared. Where a disk answers when it likes,
 * also what depends on how many answers come at once; with a small cache of grants, also what the purge decides by the clock.
 */
import type { OperationCounters, VbdCounters } from '../../lib/engine/engine.js'
import type { Setting } from './stream.js'

export function comparable(counters: VbdCounters, setting: Setting): unknown {
  const { read, write, flush, discard, rejected, grantErrors, diskErrors } = counters
  const { inFlight, persistentGrantsCap, segmentsPerRequest, ringUtilisation } = counters
  const inOrder = setting.disk === 'memory' || setting.disk === 'null'
  const stable = setting.maxPersistentGrants >= 1056
  return {
    operations: [read, write, flush, discard].map(operation),
    rejected,
    grantErrors,
    diskErrors,
    inFlight,
    persistentGrantsCap,
    segmentsPerRequest,
    requestsFound: ringUtilisation.sum,
    ...(inOrder ? { ringUtilisation, outOfRequests: counters.outOfRequests } : {}),
    ...(stable ? grants(counters) : {}),
    ...(stable && inOrder ? { grantCalls: counters.grantCalls } : {}),
  }
}

function operation({ requests, sectors, bytes, errors, latencyNs }: OperationCounters): object {
  return { requests, sectors, bytes, errors, measured: latencyNs.count }
}

function grants(counters: VbdCounters): object {
  const { persistentGrants, persistentGrantsOverflow, persistentGrantsPurged } = counters
  const { grantMaps, grantUnmaps, grantCopies } = counters
  return {
    persistentGrants,
    persistentGrantsOverflow,
    persistentGrantsPurged,
    grantMaps,
    grantUnmaps,
    grantCopies,
  }
}
