/**
 * Side by side: what one request costs dom0, in instructions, with Linux's xen-blkback, QEMU's qdisk and this package in
 * each of its ways, under the same fio in the same guest in the same boot. Boots with CLOCK=icount; writes
 * $OUT/compare.json, of which docs/real-xen.md's table is made (test/xen/report.mjs).
 *
 * The guest sets marks in xenstore and dom0's meter answers each with what both domains have cost so far. Short and long
 * runs of fio lie between the marks: what a long one costs more, by request, is free of what starting fio, marking and
 * metering cost. Little else runs in dom0 meanwhile, a look at xenstore every few seconds for instance, and the least of
 * several rounds is free of that as well.
 */
import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import { after, before, describe, it } from 'node:test'
import { PATIENCE_MS, Program, patiently, sh } from './support/command.js'
import { Guest } from './support/guest.js'
import { assertNoTraces, lookForTraces, type Traces } from './support/traces.js'

/** As boot.sh has it: `-icount shift=3`. */
const NS_PER_INSTRUCTION = 8
const SIZE_MIB = 32
/** The least of them counts: what else dom0 does now and then can only add. The second says how sure that is. */
const ROUNDS = 5

/** libxl makes it for the QEMU behind a qdisk, and leaves it. */
const QEMUS = '/local/domain/0/device-model'

interface Work {
  readonly title: string
  readonly fio: string
  readonly kib: number
  readonly short: number
  readonly long: number
}

const WORKS: readonly Work[] = [
  work('4 KiB random read, 1 at a time', '--rw=randread --iodepth=1', 4, 100, 600),
  work('4 KiB random read, 32 at a time', '--rw=randread --iodepth=32', 4, 500, 2500),
  work('128 KiB sequential read, 1 at a time', '--rw=read --iodepth=1', 128, 20, 120),
  work('128 KiB sequential read, 8 at a time', '--rw=read --iodepth=8', 128, 40, 240),
]

function work(title: string, fio: string, kib: number, short: number, long: number): Work {
  return { title, fio, kib, short, long }
}

interface Contender {
  readonly name: string
  readonly device: string
  /** Of our own: what is served, and how. xl attaches the others. */
  readonly path?: string
  readonly transfer?: 'persistent' | 'copy' | 'map'
}

const CONTENDERS: readonly Contender[] = [
  { name: 'xen-blkback, loop device on tmpfs', device: 'xvda' },
  { name: 'xen-blkback, RAM disk', device: 'xvdb' },
  { name: 'qdisk, file on tmpfs', device: 'xvdc' },
  ours('xvdd', 'persistent', 'file on tmpfs', '/srv/ours.img'),
  ours('xvde', 'copy', 'file on tmpfs', '/srv/ours.img'),
  ours('xvdf', 'map', 'file on tmpfs', '/srv/ours.img'),
  ours('xvdg', 'persistent', 'RAM disk, io_uring', '/dev/ram1'),
  ours('xvdh', 'copy', 'RAM disk, io_uring', '/dev/ram1'),
]

function ours(
  device: string,
  transfer: 'persistent' | 'copy' | 'map',
  disk: string,
  path: string,
): Contender {
  return { name: `vbdkit, ${transfer}, ${disk}`, device, path, transfer }
}

/** All of our own in one process: starting one for each would cost more than everything that is measured. */
const SERVE = `
  import { Backend, file } from 'vbdkit'
  const [domid, ...disks] = JSON.parse(process.argv[1])
  const options = { xen: 'host', kinds: ['vbdkit'], journals: '/run', reconcileMs: 10_000 }
  const backend = await Backend.open(options)
  for (const { device, path, transfer } of disks) {
    const options = { transfer, toolstack: 'create', readOnly: true }
    await backend.serve(domid + ':' + device, file(path, { readOnly: true }), options)
  }
  process.once('SIGTERM', () => backend.close())
  console.log('serving')
`

interface Result {
  readonly contender: string
  readonly title: string
  /** Instructions for each request. */
  readonly dom0: number
  readonly guest: number
  /** The same from the second least of the rounds, as a share of it. */
  readonly apart: number
}

const results: Result[] = []
const mine = CONTENDERS.filter(({ path }) => path !== undefined)

describe('side by side, in instructions for each request', () => {
  let traces: Traces
  let guest: Guest
  let meter: Program
  let backend: Program

  before(async () => {
    traces = await lookForTraces()
    await sh(`
      modprobe -a xen-blkback loop
      modprobe brd rd_nr=2 rd_size=${SIZE_MIB * 1024}
      mount -t tmpfs tmpfs /srv
      for name in loop qdisk ours; do dd if=/dev/urandom of=/srv/$name.img bs=1M count=${SIZE_MIB} 2>/dev/null; done
      for name in ram0 ram1; do dd if=/srv/loop.img of=/dev/$name bs=1M 2>/dev/null; done
      losetup /dev/loop0 /srv/loop.img`)
    guest = await Guest.create('compare', {
      disks: [
        'phy:/dev/loop0,xvda,w',
        'phy:/dev/ram0,xvdb,w',
        'format=raw,backendtype=qdisk,vdev=xvdc,access=w,target=/srv/qdisk.img',
      ],
    })
    await guest.up()
    meter = new Program('meter', String(guest.domid))
    const what = JSON.stringify([guest.domid, ...mine])
    backend = new Program('node', '--input-type=module', '--eval', SERVE, what)
    await backend.line((line) => line === 'serving', 'our own backend serves')
    await guest.sh(
      CONTENDERS.map(({ device }) => `until [ -b /dev/${device} ]; do sleep 0.1; done`).join('\n'),
    )
  })
  after(async () => {
    await guest?.gone()
    backend?.kill('SIGKILL')
    meter?.kill('SIGKILL')
  })

  for (const contender of CONTENDERS) {
    it(contender.name, async () => {
      for (const work of WORKS) save(await measure(guest, meter, contender, work))
    })
  }

  it('leaves no trace', async () => {
    await guest.destroy()
    backend.kill('SIGTERM')
    assert.equal(await patiently(backend.ended, 'our own backend closes'), 0)
    await patiently(meter.ended, 'the meter ends with its guest')
    await assertNoTraces(traces, QEMUS)
  })
})

function save(result: Result): void {
  results.push(result)
  writeFileSync(`${process.env.OUT}/compare.json`, `${JSON.stringify(results, null, 1)}\n`)
  const thousands = (instructions: number) => (instructions / 1000).toFixed(1)
  const { title, dom0, guest, apart } = result
  const sure = `${(apart * 100).toFixed(1)} % apart`
  console.log(
    `rig:     ${title}: dom0 ${thousands(dom0)}, guest ${thousands(guest)} thousand, ${sure}`,
  )
}

let marks = 0

/** What is set up by one mark and ended by the next costs this, in nanoseconds of both domains. */
type Cost = readonly [dom0: number, guest: number]

async function measure(
  guest: Guest,
  meter: Program,
  { name, device }: Contender,
  work: Work,
): Promise<Result> {
  const fio = (requests: number) => `
    fio --name=read --filename=/dev/${device} --direct=1 --ioengine=libaio --thread --norandommap --size=${SIZE_MIB}M \
      --io_size=${requests * work.kib}k --bs=${work.kib}k ${work.fio} --output=fio.log || { cat fio.log; false; }
    grep -q 'total=${requests},0,0,0' fio.log || { cat fio.log; false; }`
  const first = marks + 1
  const mark = () => `
    xenstore-write data/mark m${++marks}
    until [ "$(xenstore-read data/seen 2>/dev/null)" = m${marks} ]; do sleep 0.1; done`
  const steps = [mark(), fio(work.short), mark()]
  for (let round = 0; round < ROUNDS; round++) {
    steps.push(fio(work.short), mark(), fio(work.long), mark())
  }
  await guest.sh(steps.join(''), 5 * PATIENCE_MS)
  const costs = await costsBetween(meter, first + 1, marks)
  const shorts = costs.filter((_, i) => i % 2 === 0)
  const longs = costs.filter((_, i) => i % 2 === 1)
  const perRequest = (domain: 0 | 1, rank: number) =>
    (ranked(longs, domain, rank) - ranked(shorts, domain, rank)) /
    NS_PER_INSTRUCTION /
    (work.long - work.short)
  const dom0 = perRequest(0, 0)
  return {
    contender: name,
    title: work.title,
    dom0: Math.round(dom0),
    guest: Math.round(perRequest(1, 0)),
    apart: Math.abs(perRequest(0, 1) - dom0) / dom0,
  }
}

/** From each mark to the next. */
async function costsBetween(meter: Program, from: number, to: number): Promise<Cost[]> {
  const costs: Cost[] = []
  let before: Cost | undefined
  for (let number = from; number <= to; number++) {
    const says = (line: string) => line.startsWith(`m${number} `)
    const { line } = await meter.line(says, `the meter says m${number}`)
    const [dom0 = Number.NaN, guest = Number.NaN] = line.split(' ').slice(1).map(Number)
    if (before) costs.push([dom0 - before[0], guest - before[1]])
    before = [dom0, guest]
  }
  return costs
}

/** The least, the second least, ... */
function ranked(costs: readonly Cost[], domain: 0 | 1, rank: number): number {
  return costs.map((cost) => cost[domain]).sort((a, b) => a - b)[rank] ?? Number.NaN
}
