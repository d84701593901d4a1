/**
 * Disks in xl's configuration, and the images behind them.
 */
import { sh } from './command.js'
import type { Guest } from './guest.js'

/** A disk line, as the documentation has it. `target` comes last: all behind it is ours. */
export function diskLine(vdev: string, target: string, access: 'w' | 'r' = 'w'): string {
  return `vdev=${vdev},access=${access},format=raw,backendtype=phy,script=block-vbdkit,target=${target}`
}

/** An empty image. */
export async function makeImage(path: string, mebibytes: number): Promise<string> {
  await sh(`rm -f ${path}; truncate -s ${mebibytes}M ${path}`)
  return path
}

export interface Verification {
  /** Simultaneous requests. */
  readonly depth?: number
  /** In each of the jobs' own part of the disk. */
  readonly mebibytes?: number
  readonly jobs?: number
  /** Bytes, as fio has them. */
  readonly blockSizes?: string
}

/**
 * fio in the guest: random reads and writes of mixed sizes, past its page cache, then everything that was written is
 * read back and compared with its checksum.
 */
export async function verify(
  guest: Guest,
  file: string,
  { depth = 16, mebibytes = 16, jobs = 1, blockSizes = '512-128k' }: Verification = {},
): Promise<void> {
  const fio = [
    `fio --name=verify --filename=${file} --size=${mebibytes}M --offset_increment=${mebibytes}M --numjobs=${jobs}`,
    `--direct=1 --ioengine=io_uring --iodepth=${depth} --rw=randrw --bsrange=${blockSizes}`,
    '--verify=crc32c --do_verify=1 --verify_fatal=1 --thread --group_reporting --output=fio.log',
  ].join(' ')
  await guest.sh(`${fio} || { cat fio.log; false; }`)
}
