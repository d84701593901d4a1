/**
 * Ring only: a disk that does nothing, so that nothing but the ring, the grants and the reactor is measured; and a
 * disk in memory, against copying memory without a ring.
 */
import { formatSize } from '../../units.js'
import { type Context, compare, type NativeWish, settle, withNative } from '../context.js'
import type { Figure } from '../figures.js'
import { VhostServer } from '../peers/daemons.js'
import { nativeProgram } from '../peers/native.js'
import type { RingsOptions } from '../world.js'

const GIB = 1024 ** 3
const PAGE_BYTES = 4096
const MAX_PERSISTENT = 1024
const QEMU = 'qemu vhost-user-blk, null-co'
const NULL_BLOCKDEV = 'null-co,node-name=disk,size=1073741824,read-zeroes=off'
const NULL_DISK = { driver: 'null', sizeBytes: GIB, noFill: true } as const

interface Shape {
  readonly workload: string
  readonly segments: number
  readonly options: Omit<RingsOptions, 'disk'>
}

function shapes(): Shape[] {
  const shape = (workload: string, segments: number, options: Shape['options']): Shape => ({
    workload,
    segments,
    options: {
      ...options,
      load: {
        ...options.load,
        segments,
        depth: Math.min(32, Math.floor(MAX_PERSISTENT / segments)),
      },
    },
  })
  return [
    shape('ring only, persistent', 11, {}),
    shape('ring only, persistent', 32, { load: { indirect: true } }),
    shape('ring only, persistent', 256, { load: { indirect: true } }),
    shape('ring only, copy', 1, { transfer: 'copy', load: { persistent: false } }),
    shape('ring only, map', 1, { transfer: 'map', load: { persistent: false } }),
    shape('ring only, persistent, x86_32 ABI', 1, { load: { protocol: 'x86_32-abi' } }),
  ]
}

/** Measures the group. */
export async function measureRing(context: Context): Promise<void> {
  await measureOneSegment(context)
  for (const { workload, segments, options } of shapes()) {
    const rings = await context.world.connect({ ...options, disk: NULL_DISK })
    try {
      await compare(context, {
        group: 'ring',
        workload,
        axis: 'segments',
        at: segments,
        bytesEach: segments * PAGE_BYTES,
        contenders: [rings.contender({ series: 'vbdkit', mode: 'polling' })],
      })
    } finally {
      await rings.close()
    }
  }
  await measureMemory(context)
}

/** One page a request at depth 1 and 32, beside a bare ring and QEMU's daemon: W1. */
async function measureOneSegment(context: Context): Promise<void> {
  const { world } = context
  const rings = await world.connect({ disk: NULL_DISK })
  const qemu = await VhostServer.start(context, NULL_BLOCKDEV)
  try {
    for (const depth of [1, 32]) {
      const measured = await withNative(peersAt(context, depth, qemu), (...peers) =>
        compare(context, {
          group: 'ring',
          workload: depth === 32 ? 'ring only, persistent' : `ring only, depth ${depth}`,
          axis: 'segments',
          at: 1,
          bytesEach: PAGE_BYTES,
          contenders: [
            rings.contender({ series: 'vbdkit', depth, mode: 'polling' }),
            ...peers.map((peer) => (peer.series === QEMU ? qemu!.contender(peer) : peer)),
          ],
          ...(qemu && { reference: QEMU }),
        }),
      )
      if (depth === 32 && qemu !== undefined) settleRing(context, measured.speed('vbdkit', QEMU))
    }
  } finally {
    await qemu?.stop()
    await rings.close()
  }
}

function peersAt(context: Context, depth: number, qemu: VhostServer | undefined): NativeWish[] {
  if (nativeProgram() === undefined) return []
  const { guest, backend } = context.cpus
  const bare: NativeWish = ['bare ring', 'ring-loop', { depth, cpu: guest, 'peer-cpu': backend }]
  return qemu === undefined ? [bare] : [bare, qemu.client(QEMU, { depth, poll: 1 })]
}

function settleRing(context: Context, figure: Figure): void {
  settle(context, {
    id: 'W1',
    what: 'ring only, 4 KiB, depth 32, adaptive polling',
    against: QEMU,
    figure,
    unit: '×',
    better: 'more',
    floor: 3,
    goal: 8,
  })
}

/** A memory disk against memcpy: W2. */
async function measureMemory(context: Context): Promise<void> {
  const { world, cpus, quick, collected } = context
  if (nativeProgram() === undefined) return
  for (const transfer of ['persistent', 'copy'] as const) {
    const disk = { driver: 'memory', sizeBytes: GIB } as const
    const blocks = await world.verify({
      disk,
      transfer,
      blocks: 256,
      filled: false,
      writable: true,
    })
    collected.verified.push({ what: `memory disk, ${transfer}`, blocks })
  }
  for (const sizeBytes of quick ? [GIB] : [256 * 1024, 256 * 1024 ** 2, GIB]) {
    const rings = await world.connect({ disk: { driver: 'memory', sizeBytes } })
    try {
      await rings.fill(sizeBytes, PAGE_BYTES)
      const copy = ['memcpy', 'memory-copy', { bytes: sizeBytes, cpu: cpus.backend }] as const
      await withNative([copy], async (memcpy) => {
        const measured = await compare(context, {
          group: 'ring',
          workload: `memory disk of ${formatSize(sizeBytes)}, random read`,
          axis: 'depth',
          at: 32,
          bytesEach: PAGE_BYTES,
          contenders: [rings.contender({ series: 'vbdkit', mode: 'polling' }), memcpy],
          reference: 'memcpy',
        })
        if (sizeBytes === GIB) settleMemory(context, measured.speed('vbdkit', 'memcpy'))
      })
    } finally {
      await rings.close()
    }
  }
}

function settleMemory(context: Context, figure: Figure): void {
  settle(context, {
    id: 'W2',
    what: 'memory disk, random 4 KiB over 1 GiB, depth 32',
    against: 'memcpy over as much',
    figure,
    unit: '×',
    better: 'more',
    floor: 0.85,
    goal: 0.92,
  })
}
