/**
 * A disk that is a file on a web server: what the guest reads is fetched with range requests, a block at a time, and
 * kept in a local file. Read-only. Overlays run in C++ and so not above a script: for a guest that writes, serve an
 * overlay of the local file, once all of it has been read.
 *
 *     vbdkit serve 1:xvda examples/http.ts url=https://example.org/debian.raw cache=/var/cache/debian.raw
 */
import { type FileHandle, open, readFile, rename, writeFile } from 'node:fs/promises'
import { DiskError, defineDisk } from 'vbdkit'

interface Options {
  readonly url: string
  /** The local file; beside it `.blocks` says which blocks it holds, and of what. */
  readonly cache?: string
}

/** Fetched at a time. */
const BLOCK_BYTES = 1 << 20
/** Milliseconds after which a server is given up; the guest gets an error, and may ask again. */
const TIMEOUT_MS = 20_000

interface State {
  readonly file: FileHandle
  readonly sizeBytes: number
  /** The server's name for these very bytes. */
  readonly version: string
  /** What the cache holds. */
  readonly have: Set<number>
  /** Blocks on their way, so that none is fetched twice at once. */
  readonly fetching: Map<number, Promise<void>>
}

export default function http({ url, cache = 'http-cache.raw' }: Options) {
  if (url === undefined) throw new Error('say which file: url=https://...')

  async function openCache(): Promise<State> {
    const head = await fetch(url, { method: 'HEAD', signal: AbortSignal.timeout(TIMEOUT_MS) })
    const sizeBytes = Number(head.headers.get('content-length'))
    if (!head.ok || !(sizeBytes > 0)) throw new Error(`${url}: ${head.status}, or no length`)
    if (head.headers.get('accept-ranges') !== 'bytes') throw new Error(`${url}: no range requests`)
    const version = head.headers.get('etag') ?? head.headers.get('last-modified') ?? ''
    const index = await readFile(`${cache}.blocks`, 'utf8').catch(() => '{}')
    const { of, have = [] } = JSON.parse(index) as { of?: string; have?: number[] }
    // Another file than last time: what was kept of it is worth nothing.
    const known = version !== '' && of === `${url} ${version}`
    const file = await open(cache, known ? 'r+' : 'w+')
    await file.truncate(sizeBytes)
    return { file, sizeBytes, version, have: new Set(known ? have : []), fetching: new Map() }
  }

  async function fetchBlock(state: State, block: number): Promise<void> {
    const from = block * BLOCK_BYTES
    const to = Math.min(from + BLOCK_BYTES, state.sizeBytes) - 1
    const answer = await fetch(url, {
      headers: {
        range: `bytes=${from}-${to}`,
        ...(state.version.startsWith('"') && { 'if-range': state.version }),
      },
      signal: AbortSignal.timeout(TIMEOUT_MS),
    }).catch(() => undefined)
    const body = answer?.status === 206 ? Buffer.from(await answer.arrayBuffer()) : undefined
    // 200 would be the whole of another file: it has changed under us.
    if (body?.length !== to - from + 1) throw new DiskError('EIO')
    await state.file.write(body, 0, body.length, from)
    state.have.add(block)
  }

  async function need(state: State, block: number): Promise<void> {
    if (state.have.has(block)) return
    let fetching = state.fetching.get(block)
    if (fetching === undefined) {
      fetching = fetchBlock(state, block).finally(() => state.fetching.delete(block))
      state.fetching.set(block, fetching)
    }
    await fetching
  }

  return defineDisk<State>({
    name: 'http',
    open: openCache,
    // Whole sectors: the last bytes of a file that has not are left out.
    size: ({ sizeBytes }) => sizeBytes - (sizeBytes % 512),
    async read(buf, offset, { state }) {
      const last = Math.floor((offset + buf.length - 1) / BLOCK_BYTES)
      const blocks: Promise<void>[] = []
      for (let block = Math.floor(offset / BLOCK_BYTES); block <= last; block++) {
        blocks.push(need(state, block))
      }
      await Promise.all(blocks)
      await state.file.read(buf, 0, buf.length, offset)
    },
    async close({ file, version, have }) {
      // The data first: an index must never promise more than there is.
      await file.datasync()
      const index = JSON.stringify({ of: `${url} ${version}`, have: [...have] })
      await writeFile(`${cache}.blocks.new`, index, { flush: true })
      await rename(`${cache}.blocks.new`, `${cache}.blocks`)
      await file.close()
    },
  })
}
