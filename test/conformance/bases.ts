/**
 * Bases: the disks that filters are put over, and that are subjects themselves. Each is made with given content, and
 * most can be looked at from outside afterwards.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import { defineDisk } from '../../lib/disk/define.js'
import type { Disk } from '../../lib/disk/disk.js'
import { type FileOptions, file, memory } from '../../lib/disk/drivers.js'
import type { DiskDefinition } from '../../lib/disk/script.js'
import { diskFolder, tmpfsFolder, type World } from '../support/product_world.js'

/** A base that is made. */
export interface MadeBase {
  readonly disk: Disk
  /** What it holds now; undefined where only its guest can see that. */
  readonly holds?: () => Buffer
  /** The same data again, after the disk was closed. */
  readonly again?: () => Disk
}

/** How a base is made. */
export interface Base {
  readonly name: string
  /** It begins as zeroes, whatever content is wanted. */
  readonly blank?: boolean
  make(world: World, content: Buffer): MadeBase
}

function fileBase(name: string, options: FileOptions, where: () => string): Base {
  return {
    name,
    make(world, content) {
      const path = join(world.folder(where()), 'disk.img')
      writeFileSync(path, content)
      const disk = file(path, options)
      return { disk, holds: () => readFileSync(path), again: () => file(path, options) }
    },
  }
}

/** The functions of a disk in a Buffer. */
function functionsOf(data: Buffer): DiskDefinition {
  return {
    name: 'ram',
    size: data.length,
    read: (buf, offset) => void data.copy(buf, 0, offset, offset + buf.length),
    write: (buf, offset) => void buf.copy(data, offset),
    flush() {},
    discard: (offset, length) => void data.fill(0, offset, offset + length),
  }
}

/** The same, each done in a later turn of the loop, and not in the order in which they came. */
function laterFunctionsOf(data: Buffer): DiskDefinition {
  const { read, write, discard, ...rest } = functionsOf(data)
  let calls = 0
  const later = async () => {
    for (let turns = 1 + ((calls++ * 5) % 8); turns > 0; turns--) await nextTurn()
  }
  return {
    ...rest,
    async read(buf, offset, io) {
      await later()
      await read(buf, offset, io)
    },
    async write(buf, offset, io) {
      await later()
      await write!(buf, offset, io)
    },
    async discard(offset, length, io) {
      await later()
      await discard!(offset, length, io)
    },
  }
}

function scriptBase(name: string, define: (data: Buffer) => DiskDefinition): Base {
  return {
    name,
    make(_world, content) {
      const data = Buffer.from(content)
      const make = () => defineDisk(define(data))
      return { disk: make(), holds: () => data, again: make }
    },
  }
}

/** Reads and writes a file, so that what it did can be looked at. */
const MODULE = `
import { closeSync, fstatSync, fsyncSync, openSync, readSync, writeSync } from 'node:fs'
export default ({ path }) => ({
  name: 'apart',
  open: () => openSync(path, 'r+'),
  size: (fd) => fstatSync(fd).size,
  read: (buf, offset, { state }) => void readSync(state, buf, 0, buf.length, offset),
  write: (buf, offset, { state }) => void writeSync(state, buf, 0, buf.length, offset),
  flush: ({ state }) => fsyncSync(state),
  discard: (offset, length, { state }) => void writeSync(state, Buffer.alloc(length), 0, length, offset),
  close: (fd) => closeSync(fd),
})`

const threadBase: Base = {
  name: 'a script on its own thread',
  make(world, content) {
    const folder = world.folder(tmpfsFolder())
    const [path, module] = [join(folder, 'disk.img'), join(folder, 'disk.mjs')]
    writeFileSync(path, content)
    writeFileSync(module, MODULE)
    const make = () => defineDisk({ module: pathToFileURL(module), options: { path } })
    return { disk: make(), holds: () => readFileSync(path), again: make }
  },
}

/** In C++, in memory. */
export const memoryBase: Base = {
  name: 'memory',
  blank: true,
  make: (_world, content) => ({ disk: memory(content.length) }),
}

/** In C++, a file through io_uring where there is one. */
export const imageBase: Base = fileBase('a file', {}, diskFolder)

/** A script in this thread whose functions are not answered at once. */
export const scriptedBase: Base = scriptBase('an async script', laterFunctionsOf)

/** All of them. */
export const BASES: readonly Base[] = [
  memoryBase,
  imageBase,
  fileBase('a file, threads, cached', { io: 'sync', direct: false }, diskFolder),
  fileBase('a file in memory, written through', { writeThrough: true }, tmpfsFolder),
  scriptBase('a script', functionsOf),
  scriptedBase,
  threadBase,
]

/** The bases that a filter is put over: in C++ on two of them, and as a script where it is one, too. */
export const FILTER_BASES: readonly Base[] = [memoryBase, imageBase, scriptedBase]
