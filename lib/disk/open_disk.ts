/**
 * OpenDisk: a disk that is open, for the filter above it. Checks what the filter asks for, so that nothing below has
 * to; gives it the functions that every disk has, whatever the disk below can do.
 */
import type { OpenDefinition } from './open_definition.js'
import type { Extent, ForwardedIo, OpenDisk, RequestIo } from './script.js'

/** Bytes of zeroes that are written at a time. */
const ZEROES_BYTES = 1 << 20

/** What a disk can do, unchecked. */
export interface RawDisk {
  readonly name: string
  size(): number
  readonly sectorSize: 512 | 4096
  readonly physicalSectorSize: number
  readonly discardGranularity: number
  read(buf: Uint8Array, offset: number, io: ForwardedIo): Promise<void>
  readonly write: ((buf: Uint8Array, offset: number, io: ForwardedIo) => Promise<void>) | undefined
  readonly flush: ((io: ForwardedIo) => Promise<void>) | undefined
  readonly discard: ((offset: number, length: number, io: ForwardedIo) => Promise<void>) | undefined
  readonly zero: ((offset: number, length: number, io: ForwardedIo) => Promise<void>) | undefined
  readonly extents:
    | ((offset: number, length: number, io: ForwardedIo) => Promise<Iterable<Extent>>)
    | undefined
  readonly resize: ((size: number) => Promise<void>) | undefined
}

/** The same, as filters get it. */
export function openDisk(raw: RawDisk): OpenDisk {
  const { name, sectorSize, physicalSectorSize, discardGranularity } = raw
  const { write, flush, discard, resize } = raw
  const check = (offset: number, length: number): void => {
    const whole = Number.isSafeInteger(offset) && Number.isSafeInteger(length)
    const inside = whole && offset >= 0 && length >= 0 && offset + length <= raw.size()
    if (inside && offset % sectorSize === 0 && length % sectorSize === 0) return
    throw new RangeError(
      `${length} bytes at ${offset} are not whole sectors of ${sectorSize} bytes on the disk ${name}`,
    )
  }
  const zero = async (offset: number, length: number, io: ForwardedIo): Promise<void> => {
    if (raw.zero !== undefined) return raw.zero(offset, length, io)
    const zeroes = Buffer.alloc(Math.min(length, ZEROES_BYTES))
    for (let done = 0; done < length; done += zeroes.length) {
      await write!(zeroes.subarray(0, length - done), offset + done, io)
    }
  }
  return {
    name,
    get size() {
      return raw.size()
    },
    sectorSize,
    physicalSectorSize,
    discardGranularity,
    readOnly: write === undefined,
    async read(buf, offset, io = {}) {
      check(offset, buf.length)
      await raw.read(buf, offset, io)
    },
    async extents(offset, length, io = {}) {
      check(offset, length)
      if (raw.extents !== undefined) return raw.extents(offset, length, io)
      return [{ offset, length, type: 'data' as const }]
    },
    ...(write === undefined
      ? {}
      : {
          async write(buf, offset, io = {}) {
            check(offset, buf.length)
            await write(buf, offset, io)
          },
          async zero(offset, length, io = {}) {
            check(offset, length)
            await zero(offset, length, io)
          },
        }),
    ...(flush === undefined ? {} : { flush: async (io = {}) => flush(io) }),
    ...(discard === undefined
      ? {}
      : {
          async discard(offset, length, io = {}) {
            check(offset, length)
            await discard(offset, length, io)
          },
        }),
    ...(resize === undefined ? {} : { resize }),
  }
}

/** A script disk for the filter above it, on the same thread: its functions are called as they are. */
export function openDiskOver(disk: OpenDefinition): OpenDisk {
  const { definition, shape, functions, state } = disk
  const { write, flush, discard } = functions
  let sizeBytes = shape.sizeBytes
  const own = (io: ForwardedIo) => ({ ...UNASKED, ...io, state }) as RequestIo<unknown>
  const buffer = (buf: Uint8Array) => Buffer.from(buf.buffer, buf.byteOffset, buf.length)
  const writable = !shape.readOnly
  return openDisk({
    ...shape,
    size: () => sizeBytes,
    read: async (buf, offset, io) => functions.read(buffer(buf), offset, own(io)),
    write:
      write === undefined || !writable
        ? undefined
        : async (buf, offset, io) => write(buffer(buf), offset, own(io)),
    flush: flush === undefined || !writable ? undefined : async (io) => flush(own(io)),
    discard:
      discard === undefined || !writable
        ? undefined
        : async (offset, length, io) => discard(offset, length, own(io)),
    zero:
      definition.zero === undefined
        ? undefined
        : async (offset, length, io) => definition.zero!(offset, length, own(io)),
    extents:
      definition.extents === undefined
        ? undefined
        : async (offset, length, io) => definition.extents!(offset, length, own(io)),
    resize: !shape.canResize
      ? undefined
      : async (size) => {
          await disk.resize(size)
          sizeBytes = size
        },
  })
}

/** What a filter may have left out. */
const UNASKED = { fua: false, vbd: '', tag: 0, signal: new AbortController().signal }
