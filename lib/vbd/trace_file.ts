/**
 * Trace files: JSON lines, for people, jq and `vbdkit replay` alike. The first line says what was traced, each line
 * after it is a TracedRequest, or `{"dropped":n}` where n requests are missing.
 */
import { once } from 'node:events'
import { createReadStream, createWriteStream, statSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { finished } from 'node:stream/promises'
import { z } from 'zod'
import type { TracedBatch, TracedRequest } from '../engine/traced.js'
import { VbdError } from '../errors.js'

const whole = z.int().min(0)
const headerSchema = z.looseObject({
  vbdkitTrace: z.literal(1),
  vbd: z.string(),
  sizeBytes: whole,
  sectorSize: z.union([z.literal(512), z.literal(4096)]),
})
const requestSchema = z.object({
  timeMs: z.number(),
  queue: whole,
  operation: z.enum(['read', 'write', 'barrier', 'flush', 'discard', 'other']),
  // Of a refused request any 64-bit number.
  offset: z.number().min(0),
  length: z.number().min(0),
  segments: whole,
  status: z.enum(['ok', 'error', 'unsupported']),
  latencyUs: z.number().min(0),
})
const lineSchema = z.union([requestSchema, z.object({ dropped: whole })])

/** What a trace is of. */
export interface TraceHeader {
  /** `1:xvda` */
  readonly vbd: string
  readonly sizeBytes: number
  readonly sectorSize: 512 | 4096
}

/** What was written. */
export interface TraceSummary {
  readonly requests: number
  readonly dropped: number
}

/**
 * Writes a trace as it happens, until it ends.
 *
 * @throws ERR_VBD_BACKING when the file cannot be made or written
 */
export async function writeTrace(
  path: string,
  header: TraceHeader,
  batches: AsyncIterable<TracedBatch>,
): Promise<TraceSummary> {
  const out = createWriteStream(path)
  const failed = finished(out).catch((cause: Error) => {
    throw new VbdError('ERR_VBD_BACKING', `the trace cannot be written: ${cause.message}`, {
      path,
      cause,
      remedy: 'name a file that can be written, on a disk with room',
    })
  })
  // It is looked at where we wait for it, and at the end.
  failed.catch(() => {})
  let requests = 0
  let dropped = 0
  const write = async (lines: readonly unknown[]) => {
    const text = lines.map((line) => `${JSON.stringify(line)}\n`).join('')
    if (!out.write(text)) await Promise.race([once(out, 'drain'), failed])
  }
  try {
    await write([{ vbdkitTrace: 1, ...header }])
    for await (const batch of batches) {
      if (out.errored) break
      requests += batch.requests.length
      dropped += batch.dropped
      const missing = batch.dropped > 0 ? [{ dropped: batch.dropped }] : []
      await write([...missing, ...batch.requests])
    }
  } finally {
    out.end()
  }
  await failed
  return { requests, dropped }
}

/** A trace that is being read. */
export interface TraceReader {
  readonly header: TraceHeader
  /** Of the file. */
  readonly sizeBytes: number
  /** Of these, so many have been read. */
  bytesRead(): number
  /** In the file's order, that of their answers. */
  readonly requests: AsyncGenerator<TracedRequest, void, undefined>
}

/**
 * Opens a trace file.
 *
 * @throws ERR_VBD_BACKING when it cannot be read, ERR_VBD_ARGUMENT naming the first line that is no trace
 */
export async function readTrace(path: string): Promise<TraceReader> {
  const input = createReadStream(path)
  await once(input, 'open').catch((cause: Error) => {
    throw new VbdError('ERR_VBD_BACKING', `the trace cannot be read: ${cause.message}`, { path })
  })
  const lines = createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY })[
    Symbol.asyncIterator
  ]()
  const first = await lines.next()
  const header = parse(path, 1, headerSchema, first.done ? '' : first.value)
  return {
    header,
    sizeBytes: statSync(path).size,
    bytesRead: () => input.bytesRead,
    requests: requestsOf(path, lines),
  }
}

async function* requestsOf(
  path: string,
  lines: AsyncIterator<string>,
): AsyncGenerator<TracedRequest, void, undefined> {
  for (let number = 2; ; number++) {
    const next = await lines.next()
    if (next.done) return
    if (next.value === '') continue
    const line = parse(path, number, lineSchema, next.value)
    if (!('dropped' in line)) yield line
  }
}

function parse<T>(path: string, number: number, schema: z.ZodType<T>, line: string): T {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch {
    value = undefined
  }
  const parsed = schema.safeParse(value)
  if (parsed.success) return parsed.data
  throw new VbdError('ERR_VBD_ARGUMENT', `line ${number} of ${path} is no line of a trace`, {
    path,
    remedy: 'give a file that `vbdkit trace` or `vbd.traceTo` has written',
  })
}
