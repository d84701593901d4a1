/**
 * vbdkit: virtual disks for Xen guests, from userspace. The public interface; guests for tests are in `vbdkit/testing`.
 */
export { Backend, type BackendOptions, type ServeOptions } from './backend.js'
export {
  type CacheOptions,
  cache,
  type ReadAheadOptions,
  readAhead,
} from './disk/caching.js'
export {
  concat,
  partition,
  partitioned,
  type SliceOptions,
  slice,
  sliced,
} from './disk/compose.js'
export { defineDisk, defineFilter } from './disk/define.js'
export type { Disk, DiskFilter, DiskUse } from './disk/disk.js'
export {
  type FileOptions,
  file,
  memory,
  type NullOptions,
  nullDisk,
  type PatternOptions,
  pattern,
  type SizedOptions,
  zero,
} from './disk/drivers.js'
export { type EncryptOptions, encrypt } from './disk/encrypt.js'
export {
  type DelayOptions,
  delay,
  type FaultOperation,
  type FaultOptions,
  fault,
  type LogOptions,
  log,
  type ThrottleOptions,
  throttle,
  type VerifyOptions,
  verify,
} from './disk/filters.js'
export { type OverlayDisk, type OverlayOptions, overlaid, overlay } from './disk/overlay.js'
export {
  type DiskDefinition,
  DiskError,
  type DiskErrorCode,
  type DiskModule,
  type Duration,
  type Extent,
  type ForwardedIo,
  type MakeFilter,
  type OpenContext,
  type OpenDisk,
  type RequestIo,
  type Size,
} from './disk/script.js'
export type { DiskSpec } from './disk/spec.js'
export {
  type Connection,
  DEFAULT_TUNABLES,
  type DiskInfo,
  type Heartbeat,
  type HistogramCounters,
  type OperationCounters,
  type Placement,
  type Protocol,
  type Transfer,
  type TransferChoice,
  type Tunables,
  type VbdCounters,
  type VbdFeatures,
} from './engine/engine.js'
export type { TracedBatch, TracedRequest } from './engine/traced.js'
export { ERROR_CODES, VbdError, type VbdErrorCode } from './errors.js'
export { type DomainEvent, MockHost, type MockHostOptions, mockPaths } from './mock/mock_host.js'
export type { EngineChoice, Platform, SlowGuestListener } from './platform.js'
export type { XenChoice } from './store.js'
export {
  formatNanoseconds,
  formatSize,
  formatVbdId,
  formatVdev,
  parseDuration,
  parseSize,
  parseVbdId,
  parseVdev,
  type VbdId,
} from './units.js'
export type { CloseOptions, ToolstackChoice } from './vbd/attachment.js'
export type { BackendEvents } from './vbd/events.js'
export { type ExplainedStage, Explanation } from './vbd/explain.js'
export type { VbdInfo } from './vbd/info.js'
export type { AcceptOptions, DeviceOffer } from './vbd/offer.js'
export type { VbdOptions } from './vbd/options.js'
export type { ConnectionInfo } from './vbd/reporter.js'
export type { ResizeOptions } from './vbd/resize.js'
export {
  type Latency,
  type OperationStats,
  percentile,
  type StatsStreamOptions,
  type VbdStats,
} from './vbd/stats.js'
export type { SwapOptions } from './vbd/swap.js'
export type { TraceOptions } from './vbd/trace.js'
export {
  readTrace,
  type TraceHeader,
  type TraceReader,
  type TraceSummary,
} from './vbd/trace_file.js'
export type { Vbd, VbdEvents, VbdTunables } from './vbd/vbd.js'
export type { XenbusStateName } from './xenbus/state.js'
