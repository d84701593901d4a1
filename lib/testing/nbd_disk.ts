/** A frontend's disk as the NBD server sees it. */
import type { Frontend } from './frontend.js'
import type { NbdDisk } from './nbd/disk.js'

/** @param frontend connected; it stays its owner's */
export function nbdDiskOf(frontend: Frontend): NbdDisk {
  const { sectorSize, physicalSectorSize, readOnly, discard } = frontend.properties
  return {
    size: () => frontend.properties.sizeBytes,
    blockSize: sectorSize,
    preferredBlockSize: Math.max(4096, physicalSectorSize),
    readOnly,
    canTrim: discard && !readOnly,
    description: `vbd ${frontend.vbd}`,
    read: (offset, into) => frontend.read(offset, into),
    write: (offset, data, fua) => frontend.write(offset, data, { fua }),
    flush: () => frontend.flush(),
    trim: (offset, length) => trim(frontend, offset, length),
  }
}

/** NBD trims any blocks; a backend takes whole granules only, so the ragged ends stay. */
async function trim(frontend: Frontend, offset: number, length: number): Promise<void> {
  const { discardGranularity: granule, discardAlignment: alignment } = frontend.properties
  const start = Math.ceil((offset - alignment) / granule) * granule + alignment
  const end = Math.floor((offset + length - alignment) / granule) * granule + alignment
  // A hint that the backend no longer takes is no failure.
  if (end > start && frontend.has('discard')) await frontend.discard(start, end - start)
}
