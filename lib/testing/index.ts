/**
 * vbdkit/testing: the guest's side, for tests, benchmarks and demonstrations of any blkif backend on the mock Xen.
 *
 *     await using guest = await MockGuest.join({ dir, domid: 1 })
 *     const disk = await guest.disk('xvda', { queues: 4, ringOrder: 2 })
 *     await disk.write(0, data)
 *     await disk.flush()
 */
export type {
  CarriedData,
  DiscardOptions,
  Feature,
  OperationOptions,
  WriteOptions,
} from './disk_io.js'
export type { DiskProperties } from './front_keys.js'
export type { LentRing } from './front_queue.js'
export { FrontRing, passesEvent, type RingIndices } from './front_ring.js'
export { Frontend, type FrontendState } from './frontend.js'
export type { ConnectionSummary, FrontendEvents, Violation } from './frontend_events.js'
export type { FrontendOptions } from './frontend_options.js'
export { MockGuest, type MockGuestEvents, type MockGuestOptions } from './guest.js'
export type { GuestMemoryUse } from './guest_memory.js'
export { HostileGuest, JUNK_VALUES } from './hostile.js'
export type { RawRequest, RawResponse } from './in_flight.js'
export {
  LoadDisk,
  type LoadDiskOptions,
  type LoadSummary,
  mergeHistograms,
  runLoads,
  type Workload,
} from './load.js'
export { MANNERS, type Manners, type MannersName } from './manners.js'
export type { NbdDisk } from './nbd/disk.js'
export { type NbdAddress, NbdServer, type NbdServerOptions } from './nbd/server.js'
export { nbdDiskOf } from './nbd_disk.js'
export {
  type ReplayedLatencies,
  type ReplayedOperation,
  type ReplayOptions,
  type ReplayResult,
  type ReplayTarget,
  replay,
} from './replay.js'
export { type GuestEvent, type RunGuestOptions, type RunningGuest, runGuest } from './run_guest.js'
export {
  LAYOUTS,
  type RequestId,
  type Segment,
  type WireRequest,
  type WireResponse,
} from './wire.js'
