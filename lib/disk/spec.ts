/**
 * DiskSpec: what an engine opens, as plain data that travels to C++ and over a socket. A tree told apart by `driver`:
 * a driver is a leaf, a filter has the disk below it as `base`, a concatenation has `parts`. No secrets in it.
 */
import type { DiskDefinition, MakeFilter } from './script.js'

/** A raw image file or a block device. */
export interface FileSpec {
  readonly driver: 'file'
  readonly path: string
  readonly readOnly?: boolean
  /** O_DIRECT: `auto` uses it where the file's alignment allows 512-byte sectors. */
  readonly direct?: boolean | 'auto'
  readonly io?: 'auto' | 'uring' | 'sync'
  /** 512 (default) or 4096. */
  readonly sectorSize?: number
  /** Answer each write only when it is on stable storage. */
  readonly writeThrough?: boolean
}

/** Disks that are nothing but a size. */
export interface SizedSpec {
  readonly driver: 'memory' | 'null' | 'zero'
  readonly sizeBytes: number
  readonly sectorSize?: number
  /** `null`: reads leave the guest's pages as they are, so that nothing but the ring is measured. */
  readonly noFill?: boolean
}

/** `lengthBytes` of the base from `offsetBytes` on; absent: to its end. */
export interface SliceSpec {
  readonly driver: 'slice'
  readonly base: DiskSpec
  readonly offsetBytes: number
  readonly lengthBytes?: number
}

/** Where a script disk's functions are. */
export type ScriptSource =
  /** In this thread. */
  | { readonly definition: DiskDefinition<unknown> }
  /** In a module, a file: URL, to be loaded by a thread of its own. */
  | { readonly module: string; readonly options: unknown }

/** A disk that a script serves: this and the next are more than data. */
export interface ScriptSpec {
  readonly driver: 'script'
  readonly name: string
  readonly source: ScriptSource
  /** Open without the right to write. */
  readonly readOnly: boolean
}

/** A filter that a script is. */
export interface ScriptFilterSpec {
  readonly driver: 'script-filter'
  readonly name: string
  readonly base: DiskSpec
  readonly make: MakeFilter<unknown>
}

/** Deterministic content out of a seed; a write of anything else is an error. */
export interface PatternSpec {
  readonly driver: 'pattern'
  readonly sizeBytes: number
  readonly sectorSize?: number
  readonly seed: number
}

/** Partition `number` of the disk below, from 1, by its table. */
export interface PartitionSpec {
  readonly driver: 'partition'
  readonly base: DiskSpec
  readonly number: number
}

/** Several disks in a row. */
export interface ConcatSpec {
  readonly driver: 'concat'
  readonly parts: readonly DiskSpec[]
}

/** 0: no limit. */
export interface ThrottleSpec {
  readonly driver: 'throttle'
  readonly base: DiskSpec
  readonly iops: number
  readonly bps: number
  readonly burstSeconds: number
  readonly group?: string
}

export interface DelaySpec {
  readonly driver: 'delay'
  readonly base: DiskSpec
  readonly readMs: number
  readonly writeMs: number
  readonly flushMs: number
  readonly discardMs: number
}

export interface FaultSpec {
  readonly driver: 'fault'
  readonly base: DiskSpec
  readonly ops: readonly string[]
  /** A positive errno. */
  readonly errno: number
  readonly probability: number
  readonly seed: number
  readonly offsetBytes: number
  readonly lengthBytes?: number
  readonly skip: number
  readonly count?: number
}

/** Appends to `path`; `records` are kept until then. */
export interface LogSpec {
  readonly driver: 'log'
  readonly base: DiskSpec
  readonly path: string
  readonly records: number
}

export interface VerifySpec {
  readonly driver: 'verify'
  readonly base: DiskSpec
  readonly blockBytes: number
  readonly reportOnly: boolean
}

/** Where a key is: in a file, or in this process under a name. Never the key. */
export type KeySource =
  | { readonly keyFile: string; readonly keyId?: undefined }
  | { readonly keyId: string; readonly keyFile?: undefined }

export interface EncryptSpec {
  readonly driver: 'encrypt'
  readonly base: DiskSpec
  readonly key: KeySource
  readonly unitBytes: number
  readonly ivOffsetSectors: number
  readonly discard: boolean
}

/** Copy on write into the container at `scratch`; none: in memory. */
export interface OverlaySpec {
  readonly driver: 'overlay'
  /** Open without the right to write. */
  readonly base: DiskSpec
  readonly scratch?: string
  readonly granuleBytes: number
  readonly readOnly: boolean
}

/** Write-back; dirty for `writeBackMs` at most. */
export interface CacheSpec {
  readonly driver: 'cache'
  readonly base: DiskSpec
  readonly memoryBytes: number
  readonly writeBackMs: number
}

/** Ahead of readers by `windowBytes` at most. */
export interface ReadAheadSpec {
  readonly driver: 'readAhead'
  readonly base: DiskSpec
  readonly memoryBytes: number
  readonly windowBytes: number
}

/** A disk without disks below it. */
export type LeafSpec = FileSpec | SizedSpec | PatternSpec | ScriptSpec

/** A disk over one other. */
export type FilterSpec =
  | SliceSpec
  | PartitionSpec
  | ThrottleSpec
  | DelaySpec
  | FaultSpec
  | LogSpec
  | VerifySpec
  | EncryptSpec
  | OverlaySpec
  | CacheSpec
  | ReadAheadSpec

/** A filter's own part, without the disk below it. */
export type StageSpec = FilterSpec extends infer S
  ? S extends FilterSpec
    ? Omit<S, 'base'>
    : never
  : never

/** Every disk that an engine may be asked to open. */
export type DiskSpec = LeafSpec | FilterSpec | ScriptFilterSpec | ConcatSpec

/** The disks directly below, from none (a driver) to several (a concatenation). */
export function partsOf(spec: DiskSpec): readonly DiskSpec[] {
  if ('parts' in spec) return spec.parts
  return 'base' in spec ? [spec.base] : []
}

/** The spec itself and all below it, outermost first. */
export function* stagesOf(spec: DiskSpec): Generator<DiskSpec> {
  yield spec
  for (const part of partsOf(spec)) yield* stagesOf(part)
}

/** The same tree with every stage, below first, replaced by what `change` makes of it. */
export function mapStages(spec: DiskSpec, change: (spec: DiskSpec) => DiskSpec): DiskSpec {
  if ('parts' in spec) {
    return change({ ...spec, parts: spec.parts.map((part) => mapStages(part, change)) })
  }
  return change('base' in spec ? { ...spec, base: mapStages(spec.base, change) } : spec)
}

/** Whether a stage may have answered writes that the storage does not have, beyond what every disk does. */
export function holdsBack(spec: DiskSpec): boolean {
  for (const { driver } of stagesOf(spec)) if (driver === 'cache') return true
  return false
}

/** The paths of all files that it names. */
export function pathsOf(spec: DiskSpec): string[] {
  const paths: (string | undefined)[] = []
  for (const stage of stagesOf(spec)) {
    if ('path' in stage) paths.push(stage.path)
    if (stage.driver === 'overlay') paths.push(stage.scratch)
    if (stage.driver === 'encrypt') paths.push(stage.key.keyFile)
  }
  return paths.filter((path) => path !== undefined)
}

/** The path of the first file in it, for messages. */
export function pathOf(spec: DiskSpec): string | undefined {
  for (const stage of stagesOf(spec)) if (stage.driver === 'file') return stage.path
  return undefined
}
