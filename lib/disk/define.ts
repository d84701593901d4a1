/**
 * defineDisk: disks in TypeScript, as descriptions like every other disk.
 *
 *     const clock = defineDisk({
 *       name: 'clock',
 *       size: '1MiB',
 *       read(buf) {
 *         buf.write(new Date().toISOString())
 *       },
 *     })
 *     await backend.serve('1:xvdb', clock)
 */
import { basename } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { VbdError } from '../errors.js'
import { formatSize, parseSize } from '../units.js'
import { DescribedDisk, type Disk, type DiskFilter, type DiskUse, StagedDisk } from './disk.js'
import { checkDefinition, checkName } from './open_definition.js'
import type { DiskDefinition, DiskModule, MakeFilter } from './script.js'
import type { ScriptSpec } from './spec.js'

/**
 * A disk made of functions. They run in this thread, between the other things that it does; for a thread of its own
 * give `{ module }`.
 *
 * @throws ERR_VBD_ARGUMENT for a property that is missing or out of range
 */
export function defineDisk<State = undefined>(definition: DiskDefinition<State>): Disk
export function defineDisk(module: DiskModule): Disk
export function defineDisk<State>(given: DiskDefinition<State> | DiskModule): Disk {
  if ('module' in given) return moduleDisk(given)
  const definition = given as unknown as DiskDefinition<unknown>
  checkDefinition(definition)
  const { name, size } = definition
  const readOnly = definition.readOnly === true || definition.write === undefined
  const sizeText = typeof size === 'function' ? '' : `, ${formatSize(parseSize(size))}`
  return new ScriptDisk(
    { driver: 'script', name, source: { definition }, readOnly },
    `script(${name}${sizeText})`,
  )
}

function moduleDisk({ module, options, name }: DiskModule): Disk {
  const url = urlOf(module)
  const called = name ?? basename(fileURLToPath(url))
  return new ScriptDisk(
    { driver: 'script', name: called, source: { module: url, options }, readOnly: false },
    `script(${called}, own thread)`,
  )
}

/** @throws ERR_VBD_ARGUMENT for what is no file */
function urlOf(module: URL | string): string {
  try {
    const url = module instanceof URL || module.startsWith('file:') ? new URL(module) : undefined
    if (url !== undefined && url.protocol !== 'file:') throw new TypeError('no file: URL')
    return (url ?? pathToFileURL(String(module))).href
  } catch (cause) {
    throw new VbdError('ERR_VBD_ARGUMENT', `'${module}' is no module that can be loaded`, {
      remedy: "give module: new URL('./disk.js', import.meta.url)",
      cause,
    })
  }
}

/**
 * A filter made of functions, for `disk.with(...)`: what it gives is the disk from then on, and what it does not change
 * is that of the disk below.
 *
 *     const upper = defineFilter('upper', (next) => ({
 *       ...next,
 *       async read(buf, offset, io) {
 *         await next.read(buf, offset, io)
 *         for (const [i, byte] of buf.entries()) if (byte > 96 && byte < 123) buf[i] = byte - 32
 *       },
 *     }))
 *     file('text.img').with(upper)
 *
 * @param name for people
 * @param make called when the disk is opened, with the open disk below
 * @throws ERR_VBD_ARGUMENT for a name that is none
 */
export function defineFilter<State = undefined>(name: string, make: MakeFilter<State>): DiskFilter {
  checkName(name)
  const filter = make as unknown as MakeFilter<unknown>
  return (base) =>
    new StagedDisk([base], {
      label: name,
      spec: ([below]) => ({ driver: 'script-filter', name, base: below!, make: filter }),
    })
}

/** The definition of a disk that runs in this thread; undefined for every other. */
export function definitionOf(disk: unknown): DiskDefinition<unknown> | undefined {
  const source = disk instanceof ScriptDisk ? disk.spec.source : undefined
  return source !== undefined && 'definition' in source ? source.definition : undefined
}

class ScriptDisk extends DescribedDisk {
  /** As memory: several guests may have it, and it answers for what becomes of that. */
  readonly shared = true
  readonly spec: ScriptSpec
  readonly description: string

  constructor(spec: ScriptSpec, description: string) {
    super()
    this.spec = Object.freeze(spec)
    this.description = description
  }

  get params(): string {
    return `script:${this.spec.name}`
  }

  /** Its definition was checked when it was made; a module is looked at when it is opened. */
  validate(): void {}

  /** Each description is a disk of its own, opened once. */
  identity(): undefined {
    return undefined
  }

  uses(): readonly DiskUse[] {
    return []
  }

  asReadOnly(): Disk {
    if (this.spec.readOnly) return this
    return new ScriptDisk({ ...this.spec, readOnly: true }, this.description)
  }
}
