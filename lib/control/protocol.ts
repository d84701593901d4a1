/**
 * The control protocol of a running `vbdkit serve`: JSON lines on a unix socket. Both ends validate what they read.
 *
 *   client → {"id":1,"verb":"stats","vbd":"1:xvda","everyMs":1000}
 *   server → {"id":1,"event":{...}}          once per interval, for as long as the client stays
 *   client → {"id":2,"verb":"resize","vbd":"1:xvda","sizeBytes":2147483648}
 *   server → {"id":2,"ok":true,"result":{...}}
 *   server → {"id":2,"ok":false,"error":{"code":"ERR_VBD_BACKING","message":"...","remedy":"..."}}
 *
 * A line that is no request is answered with id 0. The server belongs to the user that runs it: mode 0600.
 */
import { z } from 'zod'
import { ERROR_CODES, VbdError, type VbdErrorCode } from '../errors.js'
import { MAX_LOG_STATS_SECONDS, TUNABLE_RANGES } from '../vbd/tunables.js'

/** Longest line that a server accepts; requests are short. */
export const MAX_REQUEST_BYTES = 64 * 1024
/** Longest line that a client accepts; statistics hold histograms. */
export const MAX_RESPONSE_BYTES = 4 * 1024 * 1024
/** Clients that one server talks to at a time. */
export const MAX_CLIENTS = 32
/** Requests that one client may have unanswered. */
export const MAX_PENDING_PER_CLIENT = 64

const id = z.int().min(0)
const vbd = z.string().min(1).max(64)
const whole = (min: number, max: number) => z.int().min(min).max(max)

const tunable = (name: keyof typeof TUNABLE_RANGES) => {
  const { least, most } = TUNABLE_RANGES[name]
  return whole(least, most).exactOptional()
}

/** What may be tuned while guests are connected. */
export const tuningSchema = z.strictObject({
  maxPersistentGrants: tunable('maxPersistentGrants'),
  persistentGrantIdleSeconds: tunable('persistentGrantIdleSeconds'),
  maxBufferPages: tunable('maxBufferPages'),
  maxInFlightBytes: tunable('maxInFlightBytes'),
  pollUs: tunable('pollUs'),
  /** Seconds between lines of statistics in the log; 0 switches them off. */
  logStats: whole(0, MAX_LOG_STATS_SECONDS).exactOptional(),
})
export type Tuning = z.infer<typeof tuningSchema>

export const requestSchema = z.discriminatedUnion('verb', [
  z.strictObject({ id, verb: z.literal('list') }),
  z.strictObject({ id, verb: z.literal('info'), vbd }),
  z.strictObject({ id, verb: z.literal('explain'), vbd }),
  z.strictObject({
    id,
    verb: z.literal('stats'),
    vbd,
    /** Milliseconds between events; absent: one result. */
    everyMs: whole(50, 3_600_000).optional(),
  }),
  z.strictObject({
    id,
    verb: z.literal('resize'),
    vbd,
    sizeBytes: whole(1, Number.MAX_SAFE_INTEGER),
    /** Allow a smaller size: what lies beyond it is lost. */
    shrink: z.boolean().optional(),
  }),
  z.strictObject({ id, verb: z.literal('tune'), vbd: vbd.optional(), tuning: tuningSchema }),
  /** The drivers and filters of the disk, after settings of one of them were changed. */
  z.strictObject({
    id,
    verb: z.literal('stages'),
    vbd,
    tune: z
      .strictObject({
        stage: z.string().max(64),
        settings: z.record(z.string().max(64), z.number()),
      })
      .optional(),
  }),
  /** Hold the guest's requests back, until `resume`. */
  z.strictObject({ id, verb: z.literal('pause'), vbd }),
  z.strictObject({ id, verb: z.literal('resume'), vbd }),
  /** Another disk in place of this one, as `params` name it; `shrink` allows a smaller one. */
  z.strictObject({
    id,
    verb: z.literal('swap'),
    vbd,
    params: z.string().min(1).max(4096),
    shrink: z.boolean().optional(),
  }),
  /** What `vbd.snapshot()`, `commit()` and `reset()` do to an overlay; the first answers with {layer}. */
  z.strictObject({ id, verb: z.literal('snapshot'), vbd }),
  z.strictObject({ id, verb: z.literal('commit'), vbd }),
  z.strictObject({ id, verb: z.literal('reset'), vbd, force: z.boolean().optional() }),
  /** The guest's requests as they are answered, for as long as the client stays: events {requests, dropped}. */
  z.strictObject({ id, verb: z.literal('trace'), vbd }),
  z.strictObject({ id, verb: z.literal('stop') }),
])
export type ControlRequest = z.infer<typeof requestSchema>
export type ControlVerb = ControlRequest['verb']

/** A request without what the client adds itself. */
export type ControlCall = ControlRequest extends infer R
  ? R extends unknown
    ? Omit<R, 'id'>
    : never
  : never

const errorSchema = z.object({
  code: z.string(),
  message: z.string(),
  vbd: z.string().optional(),
  path: z.string().optional(),
  remedy: z.string().optional(),
})

export const responseSchema = z.union([
  z.object({ id, ok: z.literal(true), result: z.unknown() }),
  z.object({ id, ok: z.literal(false), error: errorSchema }),
  z.object({ id, event: z.looseObject({}) }),
])
export type ControlResponse = z.infer<typeof responseSchema>

/** The error as it travels. */
export function errorToWire(error: VbdError): z.infer<typeof errorSchema> {
  const { code, message, vbd: disk, path, remedy } = error
  return {
    code,
    message,
    ...(disk === undefined ? {} : { vbd: disk }),
    ...(path === undefined ? {} : { path }),
    ...(remedy === undefined ? {} : { remedy }),
  }
}

/** The error as it arrived; a code that this version does not know becomes ERR_VBD_INTERNAL. */
export function errorFromWire(wire: z.infer<typeof errorSchema>): VbdError {
  const code = wire.code in ERROR_CODES ? (wire.code as VbdErrorCode) : 'ERR_VBD_INTERNAL'
  const { vbd: disk, path, remedy } = wire
  return new VbdError(code, wire.message, {
    ...(disk === undefined ? {} : { vbd: disk }),
    ...(path === undefined ? {} : { path }),
    ...(remedy === undefined ? {} : { remedy }),
  })
}

/**
 * Parses one line with a schema. Rejects with ERR_VBD_ARGUMENT and the first thing that is wrong, in one line.
 */
export function parseLine<T>(schema: z.ZodType<T>, line: string): T {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch {
    throw new VbdError('ERR_VBD_ARGUMENT', 'not a line of JSON')
  }
  const parsed = schema.safeParse(value)
  if (!parsed.success) throw new VbdError('ERR_VBD_ARGUMENT', firstIssue(parsed.error))
  return parsed.data
}

/** The first complaint of zod as `everyMs: Too small: expected number to be >=50`. */
export function firstIssue(error: z.ZodError): string {
  const issue = error.issues[0]
  if (issue === undefined) return 'invalid'
  const where = issue.path.join('.')
  return where === '' ? issue.message : `${where}: ${issue.message}`
}

/** Cuts a byte stream into lines; at most `maxBytes` are kept. */
export class LineSplitter {
  #rest: Buffer[] = []
  #restBytes = 0
  readonly #maxBytes: number

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes
  }

  /** The lines that `chunk` completes. Throws ERR_VBD_ARGUMENT for a line longer than `maxBytes`. */
  push(chunk: Buffer): string[] {
    const lines: string[] = []
    let from = 0
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, from)) {
      this.#keep(chunk.subarray(from, end))
      lines.push(Buffer.concat(this.#rest).toString('utf8'))
      this.#rest = []
      this.#restBytes = 0
      from = end + 1
    }
    this.#keep(chunk.subarray(from))
    return lines
  }

  #keep(part: Buffer): void {
    this.#restBytes += part.length
    if (this.#restBytes > this.#maxBytes) {
      throw new VbdError('ERR_VBD_ARGUMENT', `a line is longer than ${this.#maxBytes} bytes`)
    }
    if (part.length > 0) this.#rest.push(part)
  }
}
