/**
 * Traces: what disks leave behind where every trace shows: domains that cannot go, xenstore, and Xen's own tables of
 * grants and event channels (its debug keys `g` and `e`).
 */
import assert from 'node:assert/strict'
import { run } from './command.js'

export interface Traces {
  readonly domains: readonly string[]
  /** Paths: values may change as they like. */
  readonly xenstore: readonly string[]
  /** What one domain has mapped of another: `d1 [0x008] by d0`. */
  readonly grants: readonly string[]
  /** Bound ports: `d0:22 to d1:1`. */
  readonly ports: readonly string[]
}

export async function lookForTraces(): Promise<Traces> {
  const [domains, paths] = [await run('xl', 'list'), await run('xenstore-ls', '-f')]
  await run('xl', 'dmesg', '-c')
  await run('xl', 'debug-keys', 'ge')
  const tables = await run('xl', 'dmesg', '-c')
  return {
    domains: domains
      .split('\n')
      .slice(1)
      .filter((line) => line !== '')
      .map((line) => line.replace(/^(\S+)\s+(\d+).*/, '$2 $1')),
    xenstore: paths
      .split('\n')
      .map((line) => line.replace(/ = ".*$/, ''))
      .filter((path) => path.startsWith('/local/domain/') || path.startsWith('/libxl/')),
    grants: parseGrants(tables),
    ports: parsePorts(tables),
  }
}

/**
 * Nothing is there that was not there in `before`, guests nor traces of them.
 *
 * @param others a xenstore path that somebody else leaves with all below it
 */
export async function assertNoTraces(before: Traces, others?: string): Promise<void> {
  const now = await lookForTraces()
  const foreign = (trace: string) => trace === others || trace.startsWith(`${others}/`)
  for (const kind of ['domains', 'xenstore', 'grants', 'ports'] as const) {
    const known = new Set(before[kind])
    const left = now[kind].filter((trace) => !known.has(trace) && !foreign(trace))
    assert.deepEqual(left, [], `left behind: ${kind}`)
  }
}

/** `(XEN) [0x008]      0 0x7ec02 0x00000002          0 0x07ec02 0x19`, under the line of the domain that grants. */
export function parseGrants(tables: string): string[] {
  let granter = ''
  return tables.split('\n').flatMap((line) => {
    granter = /grant-table for remote (d\d+)/.exec(line)?.[1] ?? granter
    const [, ref, mapper] = /\[(0x[0-9a-f]+)\]\s+(\d+)\s+0x/.exec(line) ?? []
    return ref === undefined ? [] : [`${granter} [${ref}] by d${mapper}`]
  })
}

/** `(XEN)       22 [0/0/  -   ]: s=3 n=0 x=0 d=1 p=1`, where s=3 is bound to another's, s=2 waits for that. */
export function parsePorts(tables: string): string[] {
  let domain = ''
  return tables.split('\n').flatMap((line) => {
    domain = /Event channel information for domain (\d+)/.exec(line)?.[1] ?? domain
    const [, port, state, rest] = /\s(\d+) \[.*\]: s=(\d) n=\d+ x=\d (.*)$/.exec(line) ?? []
    if (port === undefined || (state !== '2' && state !== '3')) return []
    return [`d${domain}:${port} ${state === '3' ? 'to' : 'waits for'} ${rest?.trim()}`]
  })
}
