/**
 * Running a transaction: start, body, end, and all of it again when another client was in the way.
 *
 * Its number means something on one connection only, so its operations go there or nowhere. The daemons differ: C
 * xenstored refuses (EAGAIN) when anything read or written has changed meanwhile, even a sibling; oxenstored merges
 * what it can. A number that the daemon does not know is ENOENT on the one and EIO on the other.
 */
import { VbdError } from '../errors.js'
import { backoffMs, pause } from './backoff.js'
import type { Link } from './link.js'
import { hasErrno, Operations } from './operations.js'
import { MESSAGE, untilNul } from './wire.js'
import { XenstoreError, type XenstoreOps } from './xenstore.js'

/** A guest may write what a transaction reads without end (XSA-206): so often it is tried. */
export const TRANSACTION_TRIES = 16
const RETRY_FIRST_MS = 1
const RETRY_MOST_MS = 200

type Outcome<T> = { done: true; value: T } | { done: false; cause: XenstoreError }

/**
 * @throws XenstoreError EAGAIN after 16 conflicts, ECONNRESET when the connection went during the commit; what the
 * body throws
 */
export async function runTransaction<T>(
  connection: () => Promise<Link>,
  body: (tx: XenstoreOps) => Promise<T>,
  signal: AbortSignal,
): Promise<T> {
  let cause: XenstoreError | undefined
  for (let attempt = 0; attempt < TRANSACTION_TRIES; attempt++) {
    if (attempt > 0) await pause(backoffMs(attempt - 1, RETRY_FIRST_MS, RETRY_MOST_MS), signal)
    const outcome = await tryOnce(await connection(), body)
    if (outcome.done) return outcome.value
    cause = outcome.cause
  }
  throw new XenstoreError(
    'EAGAIN',
    `a xenstore transaction met a conflict ${TRANSACTION_TRIES} times`,
    {
      cause,
      remedy: 'something rewrites the same nodes all the time: find out what',
    },
  )
}

async function tryOnce<T>(link: Link, body: (tx: XenstoreOps) => Promise<T>): Promise<Outcome<T>> {
  let txId: number
  try {
    // One NUL: oxenstored leaves a message without payload lying until the next one.
    txId = transactionId(await link.request(MESSAGE.TRANSACTION_START, '\0', 'transaction'))
  } catch (error) {
    if (isConflict(error, link)) return { done: false, cause: error }
    throw error
  }
  let ended = false
  const tx = new Operations((type, payload, path) => {
    if (!ended) return link.request(type, payload, path, txId)
    return Promise.reject(
      new VbdError('ERR_VBD_STATE', `the transaction ended before ${path} was asked for`, { path }),
    )
  })
  const end = (how: 'T' | 'F') => {
    ended = true
    return link.request(MESSAGE.TRANSACTION_END, `${how}\0`, 'transaction', txId)
  }
  let value: T
  try {
    value = await body(tx)
  } catch (error) {
    // The daemon may have forgotten it already; there is nothing else to undo.
    await end('F').catch(() => {})
    if (isConflict(error, link)) return { done: false, cause: error }
    throw error
  }
  return await commit(link, () => end('T'), value)
}

async function commit<T>(link: Link, end: () => Promise<string>, value: T): Promise<Outcome<T>> {
  // Gone before the commit was sent: nothing has happened.
  if (link.failure !== undefined) return { done: false, cause: link.failure }
  try {
    await end()
    return { done: true, value }
  } catch (error) {
    if (hasErrno(error, 'EAGAIN', 'ENOENT', 'EIO')) return { done: false, cause: error }
    if (!hasErrno(error, 'ECONNRESET')) throw error
    const message =
      'the xenstore connection was lost during a commit: it may have taken effect or not'
    throw new XenstoreError('ECONNRESET', message, { cause: error })
  }
}

/** Whether the same again may succeed: a conflict met early, or the transaction went down with its connection. */
function isConflict(error: unknown, link: Link): error is XenstoreError {
  return hasErrno(error, 'EAGAIN') || (link.failure !== undefined && hasErrno(error, 'ECONNRESET'))
}

function transactionId(payload: string): number {
  const text = untilNul(payload)
  const id = Number(text)
  if (/^[1-9][0-9]{0,9}$/.test(text) && id <= 0xffff_ffff) return id
  throw new XenstoreError('EIO', 'xenstore gave no transaction number')
}
