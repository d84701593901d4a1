/**
 * What a toolstack's `params` say that a disk is. One strict syntax, in which a path stands as it is to its last byte:
 *
 *     /srv/vm3.raw                              a plain path: file
 *     file:/srv/vm3.raw                         DRIVER:ARGUMENT, as on the command line
 *     file,direct=on,write-through:/srv/a.raw   options before the colon, by their names on the command line
 *     memory:1GiB
 *     script:/srv/disks/clock.ts                a disk that is a program
 *     aio:...                                   what xl puts before a target with backendtype=tap
 *
 * Nothing is looked at but the text: an image is never probed for a format. Pure.
 */
import { VbdError } from '../errors.js'
import type { VbdOptions } from '../vbd/options.js'

/** What the command line's drivers take. */
export interface DriverWords {
  readonly readOnly?: true
  readonly direct?: 'auto' | 'on' | 'off'
  readonly io?: 'auto' | 'uring' | 'sync'
  readonly sectorSize?: string
  readonly writeThrough?: true
  readonly shared?: true
}

/** A disk as `params` name it. */
export interface DiskParams {
  readonly driver: string
  readonly argument: string
  /** For the driver. */
  readonly words: DriverWords
  /** For the vbd; ranges are checked when it is served. */
  readonly vbd: VbdOptions
}

/** Longest `params`: a xenstore value has at most 4096 bytes. */
const MAX_LENGTH = 4096

const REMEDY =
  'write target=/path/of/image, or target=DRIVER[,OPTION[=VALUE]...]:ARGUMENT as in file,direct=on:/srv/a.raw'

/** What an option takes: one of these words, a number, or nothing; and the value that it stands for then. */
interface OptionRule {
  readonly part: 'words' | 'vbd'
  readonly key: keyof DriverWords | keyof VbdOptions
  readonly takes: readonly string[] | 'number' | 'nothing'
  /** What it stands for when it takes nothing. */
  readonly means?: boolean
}

/** Drivers whose argument is a path: absolute, because nobody knows where a daemon is. */
const PATH_DRIVERS: readonly string[] = ['file', 'script']

const AUTO_ON_OFF = ['auto', 'on', 'off']
const IO = ['auto', 'uring', 'sync']
const TRANSFERS = ['auto', 'persistent', 'copy', 'map']

const OPTIONS: ReadonlyMap<string, OptionRule> = new Map<string, OptionRule>([
  ['direct', { part: 'words', key: 'direct', takes: AUTO_ON_OFF }],
  ['io', { part: 'words', key: 'io', takes: IO }],
  ['sector-size', { part: 'words', key: 'sectorSize', takes: ['512', '4096'] }],
  ['write-through', { part: 'words', key: 'writeThrough', takes: 'nothing', means: true }],
  ['shared', { part: 'words', key: 'shared', takes: 'nothing', means: true }],
  ['read-only', { part: 'words', key: 'readOnly', takes: 'nothing', means: true }],
  ['transfer', { part: 'vbd', key: 'transfer', takes: TRANSFERS }],
  ['queues', { part: 'vbd', key: 'queues', takes: 'number' }],
  ['ring-order', { part: 'vbd', key: 'ringOrder', takes: 'number' }],
  ['indirect', { part: 'vbd', key: 'indirectSegments', takes: 'number' }],
  ['no-flush', { part: 'vbd', key: 'flush', takes: 'nothing', means: false }],
  ['no-discard', { part: 'vbd', key: 'discard', takes: 'nothing', means: false }],
  ['on-flush-failure', { part: 'vbd', key: 'onFlushFailure', takes: ['hold', 'close'] }],
])

/** While it is read. */
interface Parts {
  readonly words: Record<string, unknown>
  readonly vbd: Record<string, unknown>
}

/**
 * Reads `params`.
 *
 * @throws ERR_VBD_ARGUMENT saying what is wrong
 */
export function parseParams(text: string | undefined): DiskParams {
  const bare = (text ?? '').replace(/^aio:/, '')
  if (bare === '') throw wrong('there is no disk: the target is empty')
  if (bare.length > MAX_LENGTH || /[\0-\x1f\x7f]/.test(bare)) {
    throw wrong('the target is too long, or holds control characters')
  }
  if (bare.startsWith('/')) return { driver: 'file', argument: bare, words: {}, vbd: {} }
  const match = /^([a-z][a-z0-9-]*)((?:,[^,:]*)*):(.*)$/s.exec(bare)
  if (match === null) {
    throw wrong(`the target '${bare}' is neither an absolute path nor DRIVER:ARGUMENT`)
  }
  const [, driver = '', options = '', argument = ''] = match
  const parts: Parts = { words: {}, vbd: {} }
  for (const option of options.split(',').slice(1)) setOption(parts, option)
  if (PATH_DRIVERS.includes(driver) && !argument.startsWith('/')) {
    throw wrong(`the path '${argument}' is not absolute`)
  }
  return { driver, argument, ...parts }
}

/** `params` that say the same; for a toolstack of our own. */
export function formatParams(driver: string, argument: string, words: DriverWords): string {
  const options = Object.entries(words)
    .filter(([, value]) => value !== undefined)
    .map(([key, value]) => {
      const name = key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
      return value === true ? `,${name}` : `,${name}=${value}`
    })
  return `${driver}${options.join('')}:${argument}`
}

function setOption(parts: Parts, option: string): void {
  const [name, value] = splitOnce(option)
  const rule = OPTIONS.get(name)
  if (rule === undefined) {
    throw wrong(`there is no option '${name}'`, `options are: ${[...OPTIONS.keys()].join(', ')}`)
  }
  const { key, takes } = rule
  const part = parts[rule.part]
  if (key in part) throw wrong(`the option ${name} is given twice`)
  if (takes === 'nothing' && value === undefined) part[key] = rule.means
  else if (takes === 'number' && /^\d{1,9}$/.test(value ?? '')) part[key] = Number(value)
  else if (typeof takes !== 'string' && value !== undefined && takes.includes(value)) {
    part[key] = value
  } else {
    const fitting = typeof takes === 'string' ? takes : `one of ${takes.join(', ')}`
    throw wrong(`the option ${name} cannot be '${value ?? ''}'`, `${name} takes ${fitting}`)
  }
}

function splitOnce(option: string): [string, string | undefined] {
  const at = option.indexOf('=')
  return at < 0 ? [option, undefined] : [option.slice(0, at), option.slice(at + 1)]
}

function wrong(message: string, remedy = REMEDY): VbdError {
  return new VbdError('ERR_VBD_ARGUMENT', message, { remedy })
}
