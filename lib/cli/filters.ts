/** --filter NAME[:WHAT]: filters as the command line writes them. */
import { Option } from 'commander'
import { cache, readAhead } from '../disk/caching.js'
import { partitioned, sliced } from '../disk/compose.js'
import type { DiskFilter } from '../disk/disk.js'
import { encrypt } from '../disk/encrypt.js'
import { delay, type FaultOperation, fault, log, throttle, verify } from '../disk/filters.js'
import { overlaid } from '../disk/overlay.js'
import { toVbdError, VbdError } from '../errors.js'

/** For the help and for complaints: name and form of every filter. */
export const FILTERS = {
  throttle: 'throttle:iops=500,bps=10MiB,burst=1s,group=NAME',
  delay: 'delay:5ms or delay:read=1ms,write=5ms,flush=1ms,discard=1ms',
  fault: 'fault:op=read+write,code=EIO,probability=0.01,seed=1,offset=0,length=1MiB,skip=0,count=1',
  log: 'log:FILE or log:path=FILE,records=16384',
  verify: 'verify or verify:block=4KiB,mismatch=report',
  encrypt: 'encrypt:KEYFILE or encrypt:keyfile=FILE,sector=4096,ivoffset=0,discard',
  overlay: 'overlay:FILE or overlay:scratch=FILE,granularity=64KiB',
  cache: 'cache or cache:64MiB or cache:memory=64MiB,writeback=5s',
  readAhead: 'readAhead or readAhead:1MiB or readAhead:window=1MiB,memory=8MiB',
  slice: 'slice:offset=1MiB,length=1GiB',
  partition: 'partition:1',
} as const

type Name = keyof typeof FILTERS

/** The words behind the name: `key=value`, and one without a key. */
class Words {
  readonly #name: Name
  readonly #values = new Map<string, string>()

  /** @param main the key that a first word without one stands for */
  constructor(name: Name, text: string, main: string | undefined, keys: readonly string[]) {
    this.#name = name
    const words = text === '' ? [] : text.split(',')
    for (const [i, word] of words.entries()) {
      const at = word.indexOf('=')
      const bare = at < 0 && !keys.includes(word)
      if (bare && (i > 0 || main === undefined)) throw this.#unknown(word)
      const key = bare ? main! : at < 0 ? word : word.slice(0, at)
      if (!keys.includes(key)) throw this.#unknown(key)
      if (this.#values.has(key)) throw refusal(`${name}: '${key}' is given twice`, name)
      this.#values.set(key, bare ? word : at < 0 ? '' : word.slice(at + 1))
    }
  }

  /** `{ [property]: value }` where the key was given, else nothing. */
  pick<P extends string, T>(key: string, property: P, parse: (text: string) => T) {
    const value = this.#values.get(key)
    return (value === undefined ? {} : { [property]: parse(value) }) as { [K in P]?: T }
  }

  number(key: string): number {
    const text = this.#values.get(key) ?? ''
    if (/^\d{1,15}(\.\d{1,9})?$/.test(text)) return Number(text)
    throw refusal(`${this.#name}: ${key}: '${text}' is not a number`, this.#name)
  }

  #unknown(word: string): VbdError {
    return refusal(`${this.#name} has no '${word}'`, this.#name)
  }
}

const same = (text: string) => text

const PARSERS: Readonly<Record<Name, (text: string) => DiskFilter>> = {
  throttle(text) {
    const words = new Words('throttle', text, undefined, ['iops', 'bps', 'burst', 'group'])
    return throttle({
      ...words.pick('iops', 'iops', () => words.number('iops')),
      ...words.pick('bps', 'bps', same),
      ...words.pick('burst', 'burst', same),
      ...words.pick('group', 'group', same),
    })
  },
  delay(text) {
    const keys = ['read', 'write', 'flush', 'discard'] as const
    const words = new Words('delay', text, 'all', ['all', ...keys])
    const { all } = words.pick('all', 'all', same)
    if (all !== undefined) return delay(all)
    return delay(Object.assign({}, ...keys.map((key) => words.pick(key, key, same))))
  },
  fault(text) {
    const when = ['offset', 'length', 'skip', 'count']
    const keys = ['op', 'code', 'probability', 'seed', ...when]
    const words = new Words('fault', text, 'code', keys)
    const number = (key: 'probability' | 'seed' | 'skip' | 'count') =>
      words.pick(key, key, () => words.number(key))
    return fault({
      ...words.pick('op', 'op', (ops) => ops.split('+') as FaultOperation[]),
      ...words.pick('code', 'code', same),
      ...number('probability'),
      ...number('seed'),
      when: {
        ...words.pick('offset', 'offset', same),
        ...words.pick('length', 'length', same),
        ...number('skip'),
        ...number('count'),
      },
    })
  },
  log(text) {
    const words = new Words('log', text, 'path', ['path', 'records'])
    const { path = '' } = words.pick('path', 'path', same)
    return log({ path, ...words.pick('records', 'records', () => words.number('records')) })
  },
  verify(text) {
    const words = new Words('verify', text, undefined, ['block', 'mismatch'])
    return verify({
      ...words.pick('block', 'blockSize', same),
      ...words.pick('mismatch', 'onMismatch', (what) => {
        if (what === 'error' || what === 'report') return what
        throw refusal(`verify: mismatch: '${what}' is neither error nor report`, 'verify')
      }),
    })
  },
  encrypt(text) {
    const keys = ['keyfile', 'sector', 'ivoffset', 'discard']
    const words = new Words('encrypt', text, 'keyfile', keys)
    return encrypt({
      ...words.pick('keyfile', 'keyFile', same),
      ...words.pick('sector', 'sectorSize', () => words.number('sector') as 512 | 4096),
      ...words.pick('ivoffset', 'ivOffset', () => words.number('ivoffset')),
      ...words.pick('discard', 'discard', () => true),
    })
  },
  overlay(text) {
    const words = new Words('overlay', text, 'scratch', ['scratch', 'granularity'])
    return overlaid({
      ...words.pick('scratch', 'scratch', same),
      ...words.pick('granularity', 'granularity', same),
    })
  },
  cache(text) {
    const words = new Words('cache', text, 'memory', ['memory', 'writeback'])
    return cache({
      ...words.pick('memory', 'memory', same),
      ...words.pick('writeback', 'writeBackAfter', same),
    })
  },
  readAhead(text) {
    const words = new Words('readAhead', text, 'window', ['window', 'memory'])
    return readAhead({
      ...words.pick('window', 'window', same),
      ...words.pick('memory', 'memory', same),
    })
  },
  slice(text) {
    const words = new Words('slice', text, undefined, ['offset', 'length'])
    return sliced({
      ...words.pick('offset', 'offset', same),
      ...words.pick('length', 'length', same),
    })
  },
  partition(text) {
    return partitioned(new Words('partition', text, 'number', ['number']).number('number'))
  },
}

/**
 * One filter: `throttle:iops=500,bps=10MiB`.
 *
 * @throws ERR_VBD_ARGUMENT in one line, with the form that was expected
 */
export function parseFilter(text: string): DiskFilter {
  const at = text.indexOf(':')
  const name = at < 0 ? text : text.slice(0, at)
  if (!Object.hasOwn(FILTERS, name)) {
    throw new VbdError('ERR_VBD_ARGUMENT', `there is no filter '${name}'`, {
      remedy: `use one of: ${Object.keys(FILTERS).join(', ')}`,
    })
  }
  try {
    return PARSERS[name as Name](at < 0 ? '' : text.slice(at + 1))
  } catch (thrown) {
    const { code, message, remedy } = toVbdError(thrown)
    const named = message.startsWith(name) ? message : `${name}: ${message}`
    throw new VbdError(code, named, { remedy: remedy ?? `write: ${FILTERS[name as Name]}` })
  }
}

/** --filter, as often as wanted; the first is nearest to the disk. */
export function filterOption(): Option {
  const names = Object.keys(FILTERS).join(', ')
  return new Option(
    '--filter <name[:what]>',
    `between disk and guest, the first nearest to the disk (${names})`,
  ).argParser((text: string, before: DiskFilter[] | undefined) => [
    ...(before ?? []),
    parseFilter(text),
  ])
}

function refusal(message: string, name: Name): VbdError {
  return new VbdError('ERR_VBD_ARGUMENT', message, { remedy: `write: ${FILTERS[name]}` })
}
