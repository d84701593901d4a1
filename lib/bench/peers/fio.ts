/**
 * fio as a limit (its engines on the same file) and as the client of NBD servers: one short run is one sample.
 */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { VbdError } from '../../errors.js'
import type { Contender, Sample } from '../sample.js'

const run = promisify(execFile)

export interface FioJob {
  readonly series: string
  /** `io_uring`, `psync`, `nbd` */
  readonly engine: string
  /** A file, or for the engine nbd a URI. */
  readonly target: string
  readonly sizeBytes: number
  readonly write: boolean
  readonly sequential: boolean
  readonly block: number
  readonly depth: number
  readonly direct?: boolean
  readonly cpu: number
  /** CPU time of a server that fio drives, to be counted instead of fio's own. */
  readonly serverCpuNs?: () => number
}

interface FioReport {
  readonly jobs: readonly [
    {
      readonly error: number
      readonly usr_cpu: number
      readonly sys_cpu: number
      readonly read: FioSide
      readonly write: FioSide
    },
  ]
}

interface FioSide {
  readonly total_ios: number
  /** Milliseconds. */
  readonly runtime: number
  readonly iops: number
  readonly clat_ns: { readonly percentile?: Readonly<Record<string, number>> }
}

/** fio's own arguments for a job that runs this long. */
export function fioArguments(job: FioJob, milliseconds: number): string[] {
  const pattern = `${job.sequential ? '' : 'rand'}${job.write ? 'write' : 'read'}`
  const uring = job.engine === 'io_uring'
  return [
    '--name=job',
    '--output-format=json',
    '--thread',
    `--cpus_allowed=${job.cpu}`,
    '--time_based',
    `--runtime=${Math.round(milliseconds)}ms`,
    '--norandommap',
    '--randrepeat=0',
    // Keeps the page cache, which fio would drop.
    '--invalidate=0',
    `--ioengine=${job.engine}`,
    job.engine === 'nbd' ? `--uri=${job.target}` : `--filename=${job.target}`,
    `--size=${job.sizeBytes}`,
    `--rw=${pattern}`,
    `--bs=${job.block}`,
    `--iodepth=${job.depth}`,
    `--direct=${job.direct ? 1 : 0}`,
    // The page cache is fastest with all that io_uring has; on a disk batches only make requests wait.
    ...(uring && !job.direct ? ['--registerfiles', '--fixedbufs'] : []),
    ...(uring && !job.direct && job.depth > 1
      ? [`--iodepth_batch_submit=${job.depth}`, `--iodepth_batch_complete_max=${job.depth}`]
      : []),
  ]
}

/** What fio said, as a sample; latencies are from submission to completion. */
export function sampleOf(text: string, write: boolean): Sample {
  const report = JSON.parse(text.slice(text.indexOf('{'))) as FioReport
  const [job] = report.jobs
  const side = write ? job.write : job.read
  const elapsedNs = (side.total_ios * 1e9) / side.iops
  const { percentile } = side.clat_ns
  return {
    operations: side.total_ios,
    errors: job.error,
    elapsedNs,
    cpuNs: (elapsedNs * (job.usr_cpu + job.sys_cpu)) / 100,
    ...(percentile && {
      latencyNs: {
        p50: percentile['50.000000'] ?? 0,
        p99: percentile['99.000000'] ?? 0,
        p999: percentile['99.900000'] ?? 0,
      },
    }),
  }
}

/** A job as a contender. */
export function fio(job: FioJob): Contender {
  return {
    series: job.series,
    startsAnew: true,
    async measure(milliseconds) {
      const before = job.serverCpuNs?.() ?? 0
      try {
        const { stdout } = await run('fio', fioArguments(job, milliseconds))
        const sample = sampleOf(stdout, job.write)
        if (job.serverCpuNs === undefined) return sample
        return { ...sample, cpuNs: job.serverCpuNs() - before }
      } catch (cause) {
        const { stderr = '' } = cause as { stderr?: string }
        const why = stderr.trim().split('\n')[0] ?? ''
        throw new VbdError('ERR_VBD_STATE', `fio failed on ${job.target}: ${why}`, { cause })
      }
    },
  }
}
