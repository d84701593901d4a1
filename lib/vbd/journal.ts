/**
 * Journal: where the engine notes which requests of a connection it has taken and not answered, for a process that goes
 * on with its rings should this one be killed. A name and a place; the engine writes it (native/engine/journal.h).
 */
import { createHash } from 'node:crypto'
import { join } from 'node:path'
import type { Connection } from '../engine/engine.js'
import type { VbdId } from '../units.js'

/** Names the rings of a connection: what both sides agreed on and would agree on again. */
export function ringDigest({ protocol, persistent, rings }: Connection): string {
  const text = JSON.stringify([
    protocol,
    persistent,
    ...rings.map(({ eventChannel, ringRefs }) => [eventChannel, ...ringRefs]),
  ])
  return createHash('sha256').update(text).digest('hex').slice(0, 32)
}

/** Where the journals of one disk are, without the numbers of its rings. */
export function journalPath(folder: string, { domid, devid }: VbdId): string {
  return join(folder, `journal-${domid}-${devid}`)
}

/** The connection with its journal, where there is to be one. */
export function withJournal(connection: Connection, path: string | undefined): Connection {
  if (path === undefined) return connection
  return { ...connection, journal: { path, rings: ringDigest(connection) } }
}
