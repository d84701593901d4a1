/** The demo's workload finds a disk that lies, and only that. */
import { type FileHandle, mkdtemp, open, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { Random } from '../../../lib/cli/demo/random.js'
import { type GuestDisk, Workload } from '../../../lib/cli/demo/workload.js'

const IMAGE = 1024 * 1024
const SCRATCH = 512 * 1024

/** A disk in memory that answers after a turn of the event loop, out of order. */
class FakeDisk implements GuestDisk {
  content: Buffer
  lie: ((kind: string, offset: number, length: number) => boolean) | undefined
  operations: string[] = []
  properties: GuestDisk['properties']
  constructor(image: Buffer) {
    this.content = Buffer.concat([image, Buffer.alloc(SCRATCH)])
    this.properties = { sizeBytes: this.content.length, sectorSize: 512, discard: true }
  }
  grow(bytes: number) {
    this.content = Buffer.concat([this.content, Buffer.alloc(bytes)])
    this.properties = { ...this.properties, sizeBytes: this.content.length }
  }
  async #turn(kind: string, offset: number, length: number): Promise<boolean> {
    this.operations.push(kind)
    await new Promise((resolve) =>
      this.operations.length % 3 === 0 ? setTimeout(resolve, 1) : setImmediate(resolve),
    )
    return this.lie?.(kind, offset, length) === true
  }
  async read(offset: number, length: number) {
    const lies = await this.#turn('read', offset, length)
    const data = Buffer.from(this.content.subarray(offset, offset + length))
    if (lies) data[length - 1] = data[length - 1]! ^ 1
    return data
  }
  async write(offset: number, data: Uint8Array) {
    if (!(await this.#turn('write', offset, data.length))) this.content.set(data, offset)
  }
  async flush() {
    await this.#turn('flush', 0, 0)
  }
  async discard(offset: number, length: number) {
    if (!(await this.#turn('discard', offset, length)))
      this.content.fill(0, offset, offset + length)
  }
}

let folder: string
let reference: FileHandle
let disk: FakeDisk

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'vbdkit-workload-'))
  const image = new Random(7).bytes(IMAGE)
  await writeFile(join(folder, 'image'), image)
  reference = await open(join(folder, 'image'))
  disk = new FakeDisk(image)
})

afterEach(async () => {
  await reference.close()
  await rm(folder, { recursive: true })
})

function workload(seconds: number, onProgress: () => void = () => {}, untilBytes = 0): Workload {
  const signal = new AbortController().signal
  return new Workload(disk, {
    reference,
    scratchFrom: IMAGE,
    seconds,
    untilBytes,
    seed: 1,
    depth: 16,
    signal,
    onProgress,
  })
}

it('is content with a disk that keeps its word, and leaves the image as it was', async () => {
  const before = Buffer.from(disk.content.subarray(0, IMAGE))
  let told = 0
  const run = workload(0.4, () => told++)
  const tally = await run.run()
  expect(await run.verify(10, 0)).toBe(IMAGE + SCRATCH)
  expect(disk.content.subarray(0, IMAGE).equals(before)).toBe(true)
  expect(told).toBeGreaterThan(0)
  for (const count of [tally.reads, tally.writes, tally.flushes, tally.discards])
    expect(count).toBeGreaterThan(0)
})

it('uses what a resize adds', async () => {
  const run = workload(0.4)
  const running = run.run()
  disk.grow(SCRATCH)
  await running
  expect(await run.verify(10, 0)).toBe(IMAGE + 2 * SCRATCH)
  expect(disk.content.subarray(IMAGE + SCRATCH).some((byte) => byte !== 0)).toBe(true)
})

it('reads back what a resize adds after the last of its operations', async () => {
  const run = workload(0.2)
  await run.run()
  disk.grow(SCRATCH)
  expect(await run.verify(10, 0)).toBe(IMAGE + 2 * SCRATCH)
})

it('goes on until a resize that is late', async () => {
  let operations = 0
  disk.lie = () => {
    if (++operations === 500) disk.grow(SCRATCH)
    return false
  }
  await workload(0, () => {}, IMAGE + 2 * SCRATCH).run()
  expect(operations).toBeGreaterThanOrEqual(500)
  expect(operations).toBeLessThan(600)
})

it('reads back so much whatever time it takes, and no more when the time is over', async () => {
  expect(await workload(0).verify(0, IMAGE + SCRATCH)).toBe(IMAGE + SCRATCH)
  expect(await workload(0).verify(0, IMAGE)).toBe(IMAGE)
})

it('finds one flipped bit', async () => {
  let reads = 0
  disk.lie = (kind) => kind === 'read' && ++reads === 50
  await expect(workload(30).run()).rejects.toMatchObject({
    code: 'ERR_VBD_IO',
    message: expect.stringContaining('wrong byte'),
  })
})

it('finds a lost write', async () => {
  let writes = 0
  disk.lie = (kind, offset) => kind === 'write' && offset >= IMAGE && ++writes % 20 === 0
  const run = workload(5)
  await expect(run.run().then(() => run.verify(10, 0))).rejects.toMatchObject({
    code: 'ERR_VBD_IO',
  })
})

it('finds a discard that was not carried out', async () => {
  disk.lie = (kind) => kind === 'discard'
  await expect(workload(30).run()).rejects.toMatchObject({ code: 'ERR_VBD_IO' })
})

it('writes over the image, with what it holds', async () => {
  let rewrites = 0
  disk.lie = (kind, offset) => {
    if (kind === 'write' && offset < IMAGE) rewrites++
    return false
  }
  await workload(0.4).run()
  expect(rewrites).toBeGreaterThan(0)
})
