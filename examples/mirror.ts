/**
 * Two images that hold the same: every write goes to both, and what one cannot read the other gives back and repairs.
 *
 *     vbdkit serve 1:xvda examples/mirror.ts a=/disk1/vm.raw b=/disk2/vm.raw
 *
 * Beside each image `.mirror` says how far it is: a counter that grows each time the disk is opened and each
 * time it lost the other image, and whether it was closed in order. An image that is behind is copied from the other
 * before the guest sees the disk. An image that cannot be written is left out; the other serves on alone.
 */
import { type FileHandle, open, readFile, rename, writeFile } from 'node:fs/promises'
import { DiskError, defineDisk } from 'vbdkit'

interface Options {
  readonly a: string
  readonly b: string
}

interface Label {
  readonly generation: number
  readonly clean: boolean
}

interface Side {
  readonly path: string
  readonly file: FileHandle
  label: Label
  /** False: it failed, and is behind from then on. */
  alive: boolean
}

interface Mirror {
  readonly sides: readonly [Side, Side]
  readonly sizeBytes: number
  /** Writes under way; a repair has the images for itself. */
  readonly writes: Set<Promise<unknown>>
  repair: Promise<unknown> | undefined
}

const COPY_BYTES = 1 << 20

export default function mirror({ a, b }: Options) {
  if (a === undefined || b === undefined) throw new Error('name two images: a=PATH b=PATH')

  return defineDisk<Mirror>({
    name: 'mirror',
    async open() {
      const sides: [Side, Side] = [await openSide(a), await openSide(b)]
      const sizes = await Promise.all(sides.map(async ({ file }) => (await file.stat()).size))
      const sizeBytes = Math.min(...sizes)
      await resync(sides, sizeBytes)
      return { sides, sizeBytes, writes: new Set(), repair: undefined }
    },
    size: ({ sizeBytes }) => sizeBytes - (sizeBytes % 512),
    async read(buf, offset, { state }) {
      const [first, other] = alive(state)
      if (await readSide(first, buf, offset)) return
      if (first === undefined || !(await readSide(other, buf, offset))) throw new DiskError('EIO')
      await repair(state, first, other!, offset, buf.length)
    },
    async write(buf, offset, { state }) {
      while (state.repair !== undefined) await state.repair
      const writing = onAll(state, (side) => side.file.write(buf, 0, buf.length, offset))
      state.writes.add(writing)
      await writing.finally(() => state.writes.delete(writing))
    },
    flush: ({ state }) => onAll(state, (side) => side.file.datasync()),
    async close(state) {
      await onAll(state, (side) => side.file.datasync())
      for (const side of alive(state)) await label(side, { ...side.label, clean: true })
      for (const side of state.sides) await side.file.close()
    },
  })
}

async function openSide(path: string): Promise<Side> {
  const text = await readFile(`${path}.mirror`, 'utf8').catch(() => undefined)
  const known = text === undefined ? { generation: 0, clean: false } : (JSON.parse(text) as Label)
  return { path, file: await open(path, 'r+'), label: known, alive: true }
}

/** Copies from the side that is ahead. Neither is, and they were not closed in order: one's last writes become both's. */
async function resync([a, b]: readonly [Side, Side], sizeBytes: number): Promise<void> {
  const same = a.label.generation === b.label.generation
  if (!same || !a.label.clean || !b.label.clean) {
    const [from, to] = b.label.generation > a.label.generation ? [b, a] : [a, b]
    const buffer = Buffer.alloc(COPY_BYTES)
    for (let at = 0; at < sizeBytes; at += COPY_BYTES) {
      const { bytesRead } = await from.file.read(buffer, 0, COPY_BYTES, at)
      await to.file.write(buffer, 0, bytesRead, at)
    }
    await to.file.datasync()
  }
  const generation = Math.max(a.label.generation, b.label.generation) + 1
  for (const side of [a, b]) await label(side, { generation, clean: false })
}

async function label(side: Side, to: Label): Promise<void> {
  side.label = to
  await writeFile(`${side.path}.mirror.new`, JSON.stringify(to), { flush: true })
  await rename(`${side.path}.mirror.new`, `${side.path}.mirror`)
}

function alive({ sides }: Mirror): Side[] {
  return sides.filter((side) => side.alive)
}

/** Does it to every side; those that fail are left behind, and the others say so before the guest is answered. */
async function onAll(mirror: Mirror, act: (side: Side) => Promise<unknown>): Promise<void> {
  const sides = alive(mirror)
  const done = await Promise.allSettled(sides.map(act))
  const failed = sides.filter((_, i) => done[i]!.status === 'rejected')
  if (failed.length === sides.length) throw new DiskError('EIO')
  for (const side of failed) side.alive = false
  if (failed.length === 0) return
  for (const side of alive(mirror)) {
    await label(side, { generation: side.label.generation + 1, clean: false })
  }
}

async function readSide(side: Side | undefined, buf: Buffer, offset: number): Promise<boolean> {
  try {
    const read = await side?.file.read(buf, 0, buf.length, offset)
    return read?.bytesRead === buf.length
  } catch {
    return false
  }
}

/** A sector that cannot be read mostly can be written: with what the other side holds, once no write is under way. */
async function repair(
  mirror: Mirror,
  bad: Side,
  good: Side,
  offset: number,
  length: number,
): Promise<void> {
  while (mirror.repair !== undefined) await mirror.repair
  const repairing = (async () => {
    await Promise.allSettled(mirror.writes)
    const buf = Buffer.alloc(length)
    if (await readSide(good, buf, offset))
      await bad.file.write(buf, 0, length, offset).catch(() => {})
  })()
  mirror.repair = repairing
  await repairing
  mirror.repair = undefined
}
