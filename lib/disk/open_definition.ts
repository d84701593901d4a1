/**
 * Opening a disk that is written in TypeScript: its state is made, its size asked for, its options checked, and what it
 * can do becomes a DiskShape. Whoever opens it closes it. Used on the thread that the disk's functions run on, by the
 * script channel and by the JavaScript engine alike.
 */
import { toVbdError, VbdError } from '../errors.js'
import { parseDuration, parseSize } from '../units.js'
import type { DiskDefinition, RequestIo } from './script.js'

export const MAX_CONCURRENCY = 256
const DEFAULT_CONCURRENCY = 32
const DEFAULT_DEADLINE = '30s'
const MAX_DEADLINE_MS = 24 * 3_600_000

/** What a disk is, before and without any request. Plain data: it travels between threads. */
export interface DiskShape {
  readonly name: string
  readonly sizeBytes: number
  readonly sectorSize: 512 | 4096
  readonly physicalSectorSize: number
  readonly readOnly: boolean
  readonly canFlush: boolean
  readonly canDiscard: boolean
  readonly canResize: boolean
  readonly discardGranularity: number
  readonly concurrency: number
  readonly deadlineMs: number
}

type Io = RequestIo<unknown>

/** A disk's functions, ready to be called. What is undefined is never called. */
export interface DiskFunctions {
  read(buf: Buffer, offset: number, io: Io): void | Promise<void>
  /** Makes the write durable itself where `io.fua` asks for it. */
  write: ((buf: Buffer, offset: number, io: Io) => void | Promise<void>) | undefined
  flush: ((io: Io) => void | Promise<void>) | undefined
  discard: ((offset: number, length: number, io: Io) => void | Promise<void>) | undefined
}

/** A disk that is open. */
export interface OpenDefinition {
  readonly definition: DiskDefinition<unknown>
  readonly shape: DiskShape
  readonly functions: DiskFunctions
  readonly state: unknown
  /** @throws ERR_VBD_UNSUPPORTED where the disk cannot be resized, ERR_VBD_BACKING where that failed */
  resize(sizeBytes: number): Promise<void>
  /** Idempotent. Nothing is in flight. */
  close(): Promise<void>
}

/**
 * Opens a disk.
 *
 * @param name what people call it; the definition's own by default
 * @throws ERR_VBD_ARGUMENT for an option out of range, ERR_VBD_BACKING for whatever `open` or `size` throws
 */
export async function openDefinition(
  definition: DiskDefinition<unknown>,
  name: string = definition.name,
): Promise<OpenDefinition> {
  checkDefinition(definition)
  const life = new AbortController()
  let state: unknown
  try {
    state = await definition.open?.({ signal: life.signal })
  } catch (thrown) {
    throw failure(name, 'could not be opened', thrown)
  }
  let closed: Promise<void> | undefined
  const close = async () => {
    life.abort()
    try {
      await definition.close?.(state)
    } catch (thrown) {
      throw failure(name, 'could not be closed', thrown)
    }
  }
  try {
    return {
      definition,
      shape: { ...(await shapeOf(definition, state)), name },
      functions: functionsOf(definition),
      state,
      resize: (sizeBytes) => resize(definition, state, sizeBytes),
      close: () => (closed ??= close()),
    }
  } catch (thrown) {
    await close().catch(() => {})
    throw thrown
  }
}

/**
 * Checks all that can be checked of a disk before it is opened.
 *
 * @throws ERR_VBD_ARGUMENT naming the property
 */
export function checkDefinition(definition: DiskDefinition<unknown>): void {
  const { name, size, read, sectorSize = 512 } = definition
  checkName(name)
  if (typeof read !== 'function') throw bad(name, 'has no read', 'give it read(buf, offset, io)')
  for (const key of FUNCTIONS) {
    if (definition[key] !== undefined && typeof definition[key] !== 'function') {
      throw bad(name, `has a ${key} that is no function`, `give it a function, or no ${key}`)
    }
  }
  if (sectorSize !== 512 && sectorSize !== 4096) {
    throw bad(name, `cannot have sectorSize ${sectorSize}`, 'give sectorSize 512 or 4096')
  }
  if (size === undefined) throw bad(name, 'has no size', "give it a size: size: '1GiB'")
  if (typeof size !== 'function') checkSize(name, parseSize(size), sectorSize)
  concurrencyOf(definition)
  deadlineOf(definition)
}

/** @throws ERR_VBD_ARGUMENT unless people can read it */
export function checkName(name: string): void {
  if (typeof name === 'string' && /^[\x20-\x7e]{1,200}$/.test(name)) return
  throw bad('a disk', 'has no name', "give it a name of printable ASCII: name: 'clock'")
}

const FUNCTIONS = [
  'open',
  'write',
  'flush',
  'discard',
  'zero',
  'resize',
  'extents',
  'close',
] as const

async function shapeOf(definition: DiskDefinition<unknown>, state: unknown): Promise<DiskShape> {
  const { name, size, sectorSize = 512, discardGranularity = 0 } = definition
  const physicalSectorSize = definition.physicalSectorSize ?? sectorSize
  const readOnly = definition.readOnly === true || definition.write === undefined
  let sizeBytes: number
  try {
    sizeBytes = parseSize(typeof size === 'function' ? await size(state) : size)
  } catch (thrown) {
    throw failure(name, 'does not tell its size', thrown)
  }
  checkSize(name, sizeBytes, sectorSize)
  checkPower(name, 'physicalSectorSize', physicalSectorSize, sectorSize, 1 << 26)
  if (discardGranularity !== 0) {
    checkPower(name, 'discardGranularity', discardGranularity, sectorSize, 1 << 30)
  }
  return {
    name,
    sizeBytes,
    sectorSize,
    physicalSectorSize,
    readOnly,
    canFlush: definition.flush !== undefined && !readOnly,
    canDiscard: definition.discard !== undefined && !readOnly,
    canResize: definition.resize !== undefined,
    discardGranularity,
    concurrency: concurrencyOf(definition),
    deadlineMs: deadlineOf(definition),
  }
}

function functionsOf(definition: DiskDefinition<unknown>): DiskFunctions {
  const write = definition.write?.bind(definition)
  const flush = definition.flush?.bind(definition)
  return {
    read: definition.read.bind(definition),
    // Durable by the disk's own flush, whether or not the function minds `fua`.
    write:
      write !== undefined && flush !== undefined
        ? (buf, offset, io) =>
            io.fua ? writeThrough(write, flush, buf, offset, io) : write(buf, offset, io)
        : write,
    flush,
    discard: definition.discard?.bind(definition),
  }
}

async function writeThrough(
  write: NonNullable<DiskFunctions['write']>,
  flush: NonNullable<DiskFunctions['flush']>,
  buf: Buffer,
  offset: number,
  io: Io,
): Promise<void> {
  await write(buf, offset, io)
  await flush(io)
}

async function resize(
  definition: DiskDefinition<unknown>,
  state: unknown,
  sizeBytes: number,
): Promise<void> {
  const { name, sectorSize = 512 } = definition
  if (definition.resize === undefined) {
    throw new VbdError('ERR_VBD_UNSUPPORTED', `the disk ${name} cannot be resized`, {
      remedy: 'give it a resize(size) function',
    })
  }
  checkSize(name, sizeBytes, sectorSize)
  try {
    await definition.resize(sizeBytes, state)
  } catch (thrown) {
    throw failure(name, 'could not be resized', thrown)
  }
}

function concurrencyOf({
  name,
  concurrency = DEFAULT_CONCURRENCY,
}: DiskDefinition<unknown>): number {
  if (Number.isInteger(concurrency) && concurrency >= 1 && concurrency <= MAX_CONCURRENCY) {
    return concurrency
  }
  const remedy = `give concurrency a whole number from 1 to ${MAX_CONCURRENCY}`
  throw bad(name, `cannot have concurrency ${concurrency}`, remedy)
}

function deadlineOf({ name, deadline = DEFAULT_DEADLINE }: DiskDefinition<unknown>): number {
  const milliseconds = Math.round(parseDuration(deadline))
  if (milliseconds >= 1 && milliseconds <= MAX_DEADLINE_MS) return milliseconds
  throw bad(name, `cannot have deadline ${deadline}`, 'give deadline 1ms to 24h')
}

function checkSize(name: string, bytes: number, sectorSize: number): void {
  if (bytes > 0 && bytes % sectorSize === 0) return
  const remedy = `give a size above 0 that is a multiple of ${sectorSize} bytes`
  throw bad(name, `cannot have ${bytes} bytes`, remedy)
}

function checkPower(name: string, what: string, value: number, least: number, most: number): void {
  const power = Number.isInteger(value) && value > 0 && (value & (value - 1)) === 0
  if (power && value >= least && value <= most) return
  throw bad(
    name,
    `cannot have ${what} ${value}`,
    `give ${what} a power of 2, ${least} to ${most} bytes`,
  )
}

function bad(name: string, what: string, remedy: string): VbdError {
  return new VbdError(
    'ERR_VBD_ARGUMENT',
    `the disk ${name} ${what}`.replace('disk a disk', 'disk'),
    {
      remedy,
    },
  )
}

/** A VbdError of the disk's own making stays what it is. */
function failure(name: string, what: string, thrown: unknown): VbdError {
  if (thrown instanceof VbdError) return thrown
  const { message } = toVbdError(thrown)
  return new VbdError('ERR_VBD_BACKING', `the disk ${name} ${what}: ${message}`, { cause: thrown })
}
