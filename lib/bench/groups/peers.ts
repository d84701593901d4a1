/**
 * Peers: the same file served by others: QEMU's storage daemon as vhost-user-blk and as NBD, and nbdkit. Sleepers are
 * compared with sleepers; the CPU time is the server's.
 */
import { type Context, compare, withNative } from '../context.js'
import { versionOf } from '../machine.js'
import { type NbdServer, startNbdkit, startQemuNbd, VhostServer } from '../peers/daemons.js'
import { fio } from '../peers/fio.js'
import type { Contender } from '../sample.js'
import { diskOf, type Medium, mediaOf, prepare } from './files.js'

const VHOST = 'qemu vhost-user-blk'
// Long enough for the 10 ms in which the CPU time of NBD servers is counted.
const LEAST_MS = 200
const DEPTH = 32

/** Measures the group. */
export async function measurePeers(context: Context): Promise<void> {
  for (const medium of mediaOf(context)) {
    if (context.quick && medium.name !== 'page cache') continue
    await prepare(context, medium)
    await measureMedium(context, medium)
  }
}

function blockdevOf(medium: Medium): string {
  // Direct I/O is the only kind for which QEMU takes aio=io_uring and aio=native alike.
  const cache = medium.direct ? ',cache.direct=on' : ''
  const aio = medium.name === 'tmpfs' ? 'threads' : 'io_uring'
  return `file,node-name=disk,filename=${medium.path},locking=off,aio=${aio}${cache}`
}

async function measureMedium(context: Context, medium: Medium): Promise<void> {
  const rings = await context.world.connect({ disk: diskOf(medium) })
  const blockdev = blockdevOf(medium)
  const vhost = await VhostServer.start(context, blockdev)
  const canNbd = versionOf('fio') !== undefined
  const qemu = canNbd ? await startQemuNbd(context, blockdev) : undefined
  const nbdkit = canNbd && !medium.direct ? await startNbdkit(context, medium.path) : undefined
  const client = vhost?.client(VHOST, { depth: DEPTH, poll: 0 })
  try {
    await withNative(client === undefined ? [] : [client], (...clients) =>
      compare(context, {
        group: 'peers',
        workload: `4 KiB random read, ${medium.name}`,
        axis: 'depth',
        at: DEPTH,
        bytesEach: 4096,
        contenders: [
          rings.contender({ series: 'vbdkit', mode: 'sleeping' }),
          ...clients.map((each) => vhost!.contender(each)),
          ...(qemu === undefined ? [] : [nbd(context, 'qemu NBD', qemu)]),
          ...(nbdkit === undefined ? [] : [nbd(context, 'nbdkit NBD', nbdkit)]),
        ],
        reference: 'vbdkit',
        leastMs: LEAST_MS,
      }),
    )
  } finally {
    await nbdkit?.stop()
    await qemu?.stop()
    await vhost?.stop()
    await rings.close()
  }
}

function nbd(context: Context, series: string, server: NbdServer): Contender {
  return fio({
    series,
    engine: 'nbd',
    target: server.uri,
    sizeBytes: context.files.sizeBytes,
    write: false,
    sequential: false,
    block: 4096,
    depth: DEPTH,
    cpu: context.cpus.guest,
    serverCpuNs: () => server.cpuNs(),
  })
}
