/** Partition tables: those that sfdisk writes are read as sfdisk reads them, and damaged ones are refused. */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { concat, partition } from '../../../lib/disk/compose.js'
import { file, memory } from '../../../lib/disk/drivers.js'
import { throttle } from '../../../lib/disk/filters.js'
import {
  type PartitionExtent,
  type ReadableDisk,
  readPartitions,
  resolvePartitions,
} from '../../../lib/disk/partition_table.js'

const SIZE = 64 << 20
let folder = ''

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'vbdkit-table-'))
})
afterAll(() => rmSync(folder, { recursive: true }))

function sfdisk(script: string): Buffer {
  const path = join(folder, 'disk.img')
  writeFileSync(path, '')
  truncateSync(path, SIZE)
  execFileSync('sfdisk', ['--quiet', path], { input: script, stdio: ['pipe', 'ignore', 'pipe'] })
  return readFileSync(path)
}

/** As `sfdisk --json` understands the image. */
function wanted(image: Buffer): PartitionExtent[] {
  const path = join(folder, 'again.img')
  writeFileSync(path, image)
  const told = JSON.parse(execFileSync('sfdisk', ['--json', path], { encoding: 'utf8' }))
  const list = told.partitiontable.partitions as {
    node: string
    start: number
    size: number
    type: string
  }[]
  return list
    .filter(({ type }) => !['5', 'f', '85'].includes(type))
    .map(({ node, start, size }) => ({
      number: Number(/(\d+)$/.exec(node)![1]),
      offsetBytes: start * 512,
      lengthBytes: size * 512,
    }))
}

function disk(image: Buffer, sectorSize = 512): ReadableDisk {
  return {
    sizeBytes: image.length,
    sectorSize,
    read: async (at, bytes) => {
      expect(at % sectorSize).toBe(0)
      expect(bytes % sectorSize).toBe(0)
      return Buffer.from(image.subarray(at, at + bytes))
    },
  }
}

const GPT = 'label: gpt\nsize=8MiB\nsize=16MiB\nstart=40MiB,size=4MiB\n'
const MBR = 'label: dos\nsize=8MiB\nsize=40MiB,type=5\nsize=4MiB\n'
const LOGICAL = `${MBR}start=10MiB,size=4MiB\nstart=16MiB,size=8MiB\nstart=30MiB,size=2MiB\n`

describe('a table that sfdisk wrote', () => {
  it.each([
    ['GPT', GPT],
    ['MBR', 'label: dos\nsize=8MiB\nsize=4MiB,bootable\n'],
    ['MBR with logical partitions', LOGICAL],
  ])('%s', async (_name, script) => {
    const image = sfdisk(script)
    const found = await readPartitions(disk(image))
    expect(found.length).toBeGreaterThan(1)
    expect(found.filter(({ number }) => number !== 2 || script !== LOGICAL)).toEqual(wanted(image))
  })

  it('a GPT whose first copy is damaged', async () => {
    const image = sfdisk(GPT)
    const found = await readPartitions(disk(image))
    image.fill(0, 512, 1024)
    expect(await readPartitions(disk(image))).toEqual(found)
  })
})

describe('what cannot be trusted', () => {
  const damaged = (script: string, change: (image: Buffer) => void) => {
    const image = sfdisk(script)
    change(image)
    return readPartitions(disk(image))
  }

  it.each<[string, string, (image: Buffer) => void, string]>([
    ['no table', GPT, (image) => image.fill(0), 'no partition table'],
    ['the boot sector of a file system', MBR, (image) => image.fill(0xf6, 446, 510), 'no table'],
    [
      'both copies of a GPT damaged',
      GPT,
      (image) => {
        image[600]! ^= 1
        image[image.length - 512 + 30]! ^= 1
      },
      'checksum',
    ],
    [
      'entries of a GPT damaged',
      GPT,
      (image) => {
        image[1024 + 40]! ^= 1
        image[image.length - 33 * 512 + 40]! ^= 1
      },
      'checksum of the entries',
    ],
    [
      'a partition beyond the end',
      'label: dos\nsize=8MiB\n',
      (image) => image.writeUInt32LE(0xffff, 446 + 11),
      'not inside the disk',
    ],
    [
      'a chain that runs in a circle',
      LOGICAL,
      (image) => image.writeUInt32LE(0, 9 * (1 << 20) + 446 + 16 + 8),
      'chain',
    ],
  ])('%s', async (_name, script, change, words) => {
    await expect(damaged(script, change)).rejects.toMatchObject({
      code: 'ERR_VBD_BACKING',
      message: expect.stringContaining(words),
    })
  })

  it('any damaged byte is refused or harmless, never an accident', async () => {
    const image = sfdisk(LOGICAL)
    for (let at = 440; at < 512; at++) {
      const copy = Buffer.from(image)
      copy[at]! ^= 0xff
      const found = await readPartitions(disk(copy)).catch((error) => {
        expect(error.code).toBe('ERR_VBD_BACKING')
        return []
      })
      for (const { offsetBytes, lengthBytes } of found) {
        expect(offsetBytes + lengthBytes).toBeLessThanOrEqual(SIZE)
      }
    }
  })
})

describe('partition(n)', () => {
  it('becomes the slice that the table says', async () => {
    const image = sfdisk(GPT)
    const opened: unknown[] = []
    const spec = partition(file('/a.img'), 2).with(throttle({ iops: 1 })).spec
    const found = await resolvePartitions(spec, (below, use) => {
      opened.push(below)
      return use(disk(image))
    })
    expect(opened).toMatchObject([{ driver: 'file' }])
    const [, second] = wanted(image)
    const { offsetBytes, lengthBytes } = second!
    expect(found).toMatchObject({
      driver: 'throttle',
      base: { driver: 'slice', offsetBytes, lengthBytes, base: { driver: 'file' } },
    })
  })

  it('says which there are, and which file it is about', async () => {
    const image = sfdisk(GPT)
    const resolve = (number: number) =>
      resolvePartitions(partition(file('/a.img'), number).spec, (_, use) => use(disk(image)))
    await expect(resolve(9)).rejects.toMatchObject({
      code: 'ERR_VBD_NOT_FOUND',
      path: '/a.img',
      message: '/a.img: there is no partition 9',
      remedy: 'its table has: 1, 2, 3',
    })
  })

  it('leaves disks without partitions alone', async () => {
    const { spec } = concat(memory('1MiB'), memory('1MiB'))
    expect(await resolvePartitions(spec, () => Promise.reject(new Error('opened')))).toEqual(spec)
  })
})
