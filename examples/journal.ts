/**
 * A disk in memory that keeps a journal: each write, flush and discard is a line of JSON.
 *
 *     vbdkit serve 1:xvdb examples/journal.ts size=64MiB journal=writes.jsonl
 *     tail -f writes.jsonl | jq .
 *
 * A flush is answered when the journal, too, is on stable storage.
 */
import { createHash } from 'node:crypto'
import { open } from 'node:fs/promises'
import { defineDisk, parseSize } from 'vbdkit'

interface Options {
  /** Of the disk. */
  readonly size?: string
  /** The file to append to. */
  readonly journal?: string
}

export default function journal({ size = '64MiB', journal = 'journal.jsonl' }: Options) {
  const disk = Buffer.alloc(parseSize(size))
  return defineDisk({
    name: 'journal',
    size: disk.length,
    // A line is whole before the next begins.
    concurrency: 1,
    open: () => open(journal, 'a'),
    read(buf, offset) {
      disk.copy(buf, 0, offset, offset + buf.length)
    },
    async write(buf, offset, { vbd, state: file }) {
      buf.copy(disk, offset)
      const sha256 = createHash('sha256').update(buf).digest('hex')
      await file.write(line({ op: 'write', vbd, offset, length: buf.length, sha256 }))
    },
    async discard(offset, length, { vbd, state: file }) {
      disk.fill(0, offset, offset + length)
      await file.write(line({ op: 'discard', vbd, offset, length }))
    },
    async flush({ vbd, state: file }) {
      await file.write(line({ op: 'flush', vbd }))
      await file.datasync()
    },
    close: (file) => file.close(),
  })
}

function line(entry: object): string {
  return `${JSON.stringify({ time: new Date().toISOString(), ...entry })}\n`
}
