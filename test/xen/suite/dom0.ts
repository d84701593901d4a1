/**
 * dom0 alone: the semantics of grants and event channels that the mock is held to as well, with both ends here; and the
 * command line on a host without guests.
 */
import assert from 'node:assert/strict'
import { before, describe, it } from 'node:test'
import { run, sh } from './support/command.js'
import { makeImage } from './support/disk.js'
import { Service } from './support/service.js'
import { assertNoTraces, lookForTraces, type Traces } from './support/traces.js'

/** What the doctor has nothing against in dom0; Xen's version and limits are the machine's own affair. */
const FIT = [
  ...['addon', 'kernel', 'xenstore', 'gntdev', 'evtchn', 'grant-copy', 'conflicts', 'xl-script'],
  ...['libxengnttab.so.1', 'libxenevtchn.so.1'],
]

const semantics = parseJUnit(
  // It exits with 1 when a case fails: which, stands in the report.
  await sh(`/opt/rig/native_tests --test-case='xen semantics\\, real*' --reporters=junit || true`),
)

describe('the semantics of Xen, both ends in dom0', () => {
  it('are all here', () => assert.ok(semantics.length >= 20, `only ${semantics.length} cases ran`))
  for (const { name, failure } of semantics) {
    it(name.replace('xen semantics, real: ', ''), () => assert.equal(failure, undefined))
  }
})

describe('dom0 without guests', () => {
  let traces: Traces
  before(async () => {
    traces = await lookForTraces()
  })

  it('is found fit by the doctor, once the hotplug script is installed', async () => {
    await run('vbdkit', 'xl-script', 'install')
    // Exits with 1, and throws, when a check failed.
    const { xen, checks } = JSON.parse(await run('vbdkit', 'doctor', '--json', '--xen', 'host'))
    assert.equal(xen, 'host')
    const passed = checks
      .filter(({ status }: Check) => status === 'pass')
      .map(({ name }: Check) => name)
    for (const name of FIT) assert.ok(passed.includes(name), name)
  })

  it('takes a disk for a guest that is not there yet, and lets go of it', async () => {
    const image = await makeImage('/srv/early.img', 64)
    const server = await Service.serve('99:xvda', 'file', image)
    const list = JSON.parse(await run('vbdkit', 'list', '--json'))
    assert.deepEqual(
      list.map(({ vbd, sizeBytes }: { vbd: string; sizeBytes: number }) => [vbd, sizeBytes]),
      [['99:xvda', 64 << 20]],
    )
    assert.equal(await server.stop(), 0)
  })

  it('has no trace of it', () => assertNoTraces(traces))
})

interface Check {
  readonly name: string
  readonly status: 'pass' | 'warn' | 'fail'
}

interface Case {
  readonly name: string
  readonly failure: string | undefined
}

function parseJUnit(xml: string): Case[] {
  return [
    ...xml.matchAll(/<testcase [^>]*name="([^"]*)"[^>]*?(?:\/>|>([\s\S]*?)<\/testcase>)/g),
  ].map(([, name = '', body]) => ({
    name: name.replaceAll('&apos;', "'").replaceAll('&quot;', '"'),
    failure: body?.trim() || undefined,
  }))
}
