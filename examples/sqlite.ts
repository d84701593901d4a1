/**
 * A disk in a SQLite database: a row for each block that was ever written, and nothing for the rest. Blocks that are
 * only zeroes take no row, so the database is as large as what the guest keeps.
 *
 *     npm install node-sqlite3-wasm
 *     vbdkit serve 1:xvdb examples/sqlite.ts database=disk.db size=1GiB
 *     sqlite3 disk.db 'SELECT count(*), sum(length(data)) FROM block'
 *
 * What a guest writes is in one transaction from flush to flush: after a crash the disk is as it was at a flush.
 */

import sqlite from 'node-sqlite3-wasm'
import { defineDisk, parseSize } from 'vbdkit'

interface Options {
  readonly database?: string
  /** Of a new disk; an old one keeps its own. */
  readonly size?: string
}

const BLOCK_BYTES = 4096
const ZEROES = Buffer.alloc(BLOCK_BYTES)

class BlockStore {
  readonly #db: InstanceType<typeof sqlite.Database>
  readonly sizeBytes: number

  constructor(path: string, sizeBytes: number) {
    this.#db = new sqlite.Database(path)
    this.#db.exec(`
      CREATE TABLE IF NOT EXISTS disk (size INTEGER NOT NULL);
      CREATE TABLE IF NOT EXISTS block (number INTEGER PRIMARY KEY, data BLOB NOT NULL);
    `)
    const known = this.#db.get('SELECT size FROM disk') as { size: number } | null
    if (known === null) this.#db.run('INSERT INTO disk VALUES (?)', [sizeBytes])
    this.sizeBytes = known?.size ?? sizeBytes
    this.#db.exec('BEGIN')
  }

  read(block: number): Uint8Array {
    const row = this.#db.get('SELECT data FROM block WHERE number = ?', [block])
    return (row as { data: Uint8Array } | null)?.data ?? ZEROES
  }

  write(block: number, data: Buffer): void {
    if (data.equals(ZEROES)) this.drop(block, block + 1)
    else this.#db.run('INSERT OR REPLACE INTO block VALUES (?, ?)', [block, data])
  }

  drop(from: number, to: number): void {
    this.#db.run('DELETE FROM block WHERE number >= ? AND number < ?', [from, to])
  }

  /** On stable storage when it returns. */
  commit(): void {
    this.#db.exec('COMMIT; BEGIN')
  }

  close(): void {
    this.#db.exec('COMMIT')
    this.#db.close()
  }
}

export default function sqliteDisk({ database = 'disk.db', size = '1GiB' }: Options) {
  return defineDisk<BlockStore>({
    name: 'sqlite',
    // Guests then write whole blocks.
    sectorSize: BLOCK_BYTES,
    discardGranularity: BLOCK_BYTES,
    open: () => new BlockStore(database, parseSize(size)),
    size: ({ sizeBytes }) => sizeBytes,
    read(buf, offset, { state }) {
      for (let at = 0; at < buf.length; at += BLOCK_BYTES) {
        buf.set(state.read((offset + at) / BLOCK_BYTES), at)
      }
    },
    write(buf, offset, { state }) {
      for (let at = 0; at < buf.length; at += BLOCK_BYTES) {
        state.write((offset + at) / BLOCK_BYTES, buf.subarray(at, at + BLOCK_BYTES))
      }
    },
    discard(offset, length, { state }) {
      state.drop(offset / BLOCK_BYTES, (offset + length) / BLOCK_BYTES)
    },
    flush: ({ state }) => state.commit(),
    close: (state) => state.close(),
  })
}
