/**
 * Parts of disks, and several in a row, as scripts: for chains in which a script lies below them.
 */
import { VbdError } from '../errors.js'
import type { DiskDefinition, ForwardedIo, MakeFilter, OpenDisk } from './script.js'
import { settled } from './settled.js'

/** What `slice` is told. */
export interface SliceStage {
  readonly offsetBytes: number
  /** To the end of the disk below where it is absent. */
  readonly lengthBytes?: number
}

/** A part of the disk below. */
export function sliceStage({ offsetBytes, lengthBytes }: SliceStage): MakeFilter<unknown> {
  return (next) => {
    const { resize, write, discard, zero, ...rest } = next
    const size = lengthBytes ?? next.size - offsetBytes
    if (size <= 0 || offsetBytes + size > next.size || offsetBytes % next.sectorSize !== 0) {
      const message = `a slice of ${size} bytes at ${offsetBytes} is not on the disk ${next.name}`
      throw new VbdError('ERR_VBD_ARGUMENT', message, {
        remedy: `it has ${next.size} bytes in sectors of ${next.sectorSize}`,
      })
    }
    const at = (offset: number) => offset + offsetBytes
    return {
      ...rest,
      size,
      read: (buf, offset, io) => next.read(buf, at(offset), io),
      ...(write && { write: (buf, offset, io) => write(buf, at(offset), io) }),
      ...(discard && { discard: (offset, length, io) => discard(at(offset), length, io) }),
      ...(zero && { zero: (offset, length, io) => zero(at(offset), length, io) }),
      // To the end, it grows with the disk.
      ...(resize && lengthBytes === undefined && { resize: (bytes) => resize(at(bytes)) }),
      async extents(offset, length, io) {
        const found = await next.extents(at(offset), length, io)
        return Array.from(found, (one) => ({ ...one, offset: one.offset - offsetBytes }))
      },
    }
  }
}

/** A disk of the row, and where it begins. */
interface Part {
  readonly disk: OpenDisk
  readonly begin: number
}

/** Several disks in a row. Only the last one can have another size. */
export function concatStage(disks: readonly OpenDisk[]): DiskDefinition<unknown> {
  const { sectorSize } = disks[0]!
  if (disks.some((disk) => disk.sectorSize !== sectorSize)) {
    const message = 'the disks of a concatenation have different sector sizes'
    throw new VbdError('ERR_VBD_ARGUMENT', message, { remedy: 'give disks of one sector size' })
  }
  let begin = 0
  const parts: Part[] = disks.map((disk) => {
    const part = { disk, begin }
    begin += disk.size
    return part
  })
  const last = parts.at(-1)!
  const all = (name: 'write' | 'discard' | 'zero') => disks.every((disk) => disk[name])
  const resize = last.disk.resize
  return {
    name: 'concat',
    size: begin,
    sectorSize,
    physicalSectorSize: Math.max(...disks.map((disk) => disk.physicalSectorSize)),
    discardGranularity: Math.max(...disks.map((disk) => disk.discardGranularity)),
    read: (buf, offset, io) =>
      each(parts, offset, buf.length, (disk, at, from, bytes) =>
        disk.read(buf.subarray(from, from + bytes), at, io),
      ),
    ...(all('write') && {
      write: (buf, offset, io) =>
        each(parts, offset, buf.length, (disk, at, from, bytes) =>
          disk.write!(buf.subarray(from, from + bytes), at, io),
        ),
    }),
    ...(disks.some((disk) => disk.flush) && {
      flush: (io) => settled(disks.map((disk) => disk.flush?.(io))),
    }),
    ...(all('discard') && { discard: ranges(parts, 'discard') }),
    ...(all('zero') && { zero: ranges(parts, 'zero') }),
    ...(resize && {
      async resize(bytes) {
        if (bytes > last.begin) return resize(bytes - last.begin)
        const message = `a concatenation cannot become shorter than what its last disk begins at`
        throw new VbdError('ERR_VBD_ARGUMENT', message, { remedy: `it is ${last.begin} bytes` })
      },
    }),
  }
}

function ranges(parts: readonly Part[], name: 'discard' | 'zero') {
  return (offset: number, length: number, io: ForwardedIo) =>
    each(parts, offset, length, (disk, at, _from, bytes) => disk[name]!(at, bytes, io))
}

/** Has `act` do a range, disk by disk, all at once: at a place of the disk, from a place of the range on. */
function each(
  parts: readonly Part[],
  offset: number,
  length: number,
  act: (disk: OpenDisk, at: number, from: number, bytes: number) => Promise<void>,
): Promise<void> {
  const running: Promise<void>[] = []
  for (const { disk, begin } of parts) {
    const first = Math.max(offset, begin)
    const end = Math.min(offset + length, begin + disk.size)
    if (first < end) running.push(act(disk, first - begin, first - offset, end - first))
  }
  return settled(running)
}
