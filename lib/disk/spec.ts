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

/** Every disk that an engine may be asked to open. */
export type DiskSpec = FileSpec | SizedSpec | SliceSpec | ScriptSpec | ScriptFilterSpec

/** The disks directly below, from none (a driver) to several (a concatenation). */
export function partsOf(spec: DiskSpec): readonly DiskSpec[] {
  if ('parts' in spec) return spec.parts as readonly DiskSpec[]
  return 'base' in spec ? [spec.base] : []
}

/** The spec itself and all below it, outermost first. */
export function* stagesOf(spec: DiskSpec): Generator<DiskSpec> {
  yield spec
  for (const part of partsOf(spec)) yield* stagesOf(part)
}

/** The path of the first file in it, for messages. */
export function pathOf(spec: DiskSpec): string | undefined {
  for (const stage of stagesOf(spec)) if (stage.driver === 'file') return stage.path
  return undefined
}
