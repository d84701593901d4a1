/**
 * The guests of a benchmark: a process that is any number of domains of a mock Xen, keeps load on their disks with the
 * native generator, and looks at the data that comes through them. Runs as a Child.
 */
import { VbdError } from '../errors.js'
import { MockGuest } from '../testing/guest.js'
import { LoadDisk, type LoadDiskOptions, type Workload } from '../testing/load.js'
import { connectXenstore } from '../xenstore/client.js'
import { serveCalls } from './child.js'
import { mismatch, patternAt } from './pattern.js'
import { latenciesOf, type Sample } from './sample.js'

export interface OpenDisk {
  readonly dir: string
  readonly domid: number
  readonly vdev: string
  readonly memoryBytes: number
  readonly options: Omit<LoadDiskOptions, 'signal'>
}

export interface RunLoad {
  readonly domids: readonly number[]
  readonly workload: Workload
}

export interface VerifyDisk {
  readonly dir: string
  readonly domid: number
  readonly vdev: string
  readonly blocks: number
  /** The disk holds the pattern already. */
  readonly filled: boolean
  readonly writable: boolean
}

const BLOCK_BYTES = 4096
const guests = new Map<number, { guest: MockGuest; disk: LoadDisk }>()

const handlers = {
  async open({ dir, domid, vdev, memoryBytes, options }: OpenDisk): Promise<void> {
    const guest = await MockGuest.join({ dir, domid, memoryBytes })
    try {
      guests.set(domid, { guest, disk: await LoadDisk.open(guest, vdev, options) })
    } catch (thrown) {
      await guest.close()
      throw thrown
    }
  },

  /** The sample's CPU time is the load's own. */
  async run({ domids, workload }: RunLoad): Promise<Sample> {
    const disks = domids.map((domid) => guests.get(domid)!.disk)
    const result = await LoadDisk.runTogether(disks, workload)
    return {
      operations: result.requests,
      errors: result.errors,
      elapsedNs: result.elapsedNs,
      cpuNs: result.cpuNs,
      latencyNs: latenciesOf(result.latencyNs),
      shares: result.queueRequests,
    }
  },

  async close(domid: number): Promise<void> {
    const opened = guests.get(domid)
    guests.delete(domid)
    await opened?.disk.close()
    await opened?.guest.close()
  },

  /** Reads what should be there, then writes something else, reads that, and puts back what was. */
  async verify({ dir, domid, vdev, ...what }: VerifyDisk): Promise<number> {
    const guest = await MockGuest.join({ dir, domid, memoryBytes: 16 * 1024 * 1024 })
    try {
      const disk = await guest.disk(vdev)
      const { sizeBytes } = disk.properties
      for (let i = 0; i < what.blocks; i++) {
        // A multiplicative hash: spread over the disk, the same in every run.
        const block = (Math.imul(i + 1, 0x9e3779b1) >>> 0) % Math.floor(sizeBytes / BLOCK_BYTES)
        const offset = block * BLOCK_BYTES
        const check = async (stamp: number) => {
          const wrong = mismatch(await disk.read(offset, BLOCK_BYTES), offset, stamp)
          if (wrong !== undefined) throw corrupt(disk.vbd, wrong)
        }
        if (what.filled) await check(0)
        if (!what.writable) continue
        await disk.write(offset, patternAt(offset, BLOCK_BYTES, 0x5a5a5a5a))
        await check(0x5a5a5a5a)
        await disk.write(offset, patternAt(offset, BLOCK_BYTES))
        await check(0)
      }
      return what.blocks
    } finally {
      await guest.close()
    }
  },

  /** Reads of one small node, one after the other. */
  async xenstore({
    socket,
    milliseconds,
  }: {
    socket: string
    milliseconds: number
  }): Promise<Sample> {
    const store = await connectXenstore({ path: socket })
    try {
      const cpuBefore = process.cpuUsage()
      const start = performance.now()
      let operations = 0
      while (performance.now() - start < milliseconds) {
        await store.read('/local/domain/0/name').catch(() => '')
        operations++
      }
      const { user, system } = process.cpuUsage(cpuBefore)
      const elapsedNs = (performance.now() - start) * 1e6
      return { operations, errors: 0, elapsedNs, cpuNs: (user + system) * 1000 }
    } finally {
      await store.close()
    }
  },
}

function corrupt(vbd: string, offset: number): VbdError {
  return new VbdError('ERR_VBD_IO', `byte ${offset} of ${vbd} is not what it should be`, { vbd })
}

export type GuestHandlers = typeof handlers

serveCalls(handlers, async () => {
  for (const { guest } of guests.values()) await guest.close()
})
