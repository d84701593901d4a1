/**
 * qemu-storage-daemon as a peer: a vhost-user-blk server, driven by vbdkit-bench, and an NBD server, driven by fio.
 */
import { join } from 'node:path'
import { type Context, type NativeWish, skip } from '../context.js'
import { versionOf } from '../machine.js'
import type { Contender } from '../sample.js'
import { nativeProgram } from './native.js'
import { Server } from './server.js'

const DAEMON = 'qemu-storage-daemon'
let lastSocket = 0

/** Whether the daemon is installed; leaves word where it is not. */
function hasDaemon(context: Context, what: string): boolean {
  if (versionOf(DAEMON) !== undefined) return true
  skip(context, what, `${DAEMON} is not installed`, 'apt-get install qemu-system-common')
  return false
}

function newSocket(context: Context): string {
  return join(context.world.mock.dir, `peer-${++lastSocket}.sock`)
}

/** A vhost-user-blk export with an I/O thread of its own. */
export class VhostServer {
  readonly #server: Server
  readonly #socket: string
  readonly #cpu: number

  /** `blockdev`: what follows --blockdev; its node is `disk`. Undefined, and word left, where there is no daemon. */
  static async start(context: Context, blockdev: string): Promise<VhostServer | undefined> {
    const what = 'qemu-storage-daemon, vhost-user-blk'
    if (nativeProgram() === undefined || !hasDaemon(context, what)) return undefined
    const socket = newSocket(context)
    const exported = `vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path=${socket}`
    const server = await Server.start(
      DAEMON,
      [
        ...['--blockdev', blockdev],
        ...['--object', 'iothread,id=thread'],
        ...['--export', `${exported},writable=on,iothread=thread`],
      ],
      { socket, cpu: context.cpus.backend },
    )
    return new VhostServer(server, socket, context.cpus.guest)
  }

  private constructor(server: Server, socket: string, cpu: number) {
    this.#server = server
    this.#socket = socket
    this.#cpu = cpu
  }

  /** The client to start for it; one at a time. */
  client(series: string, values: Readonly<Record<string, number>>): NativeWish {
    return [series, 'vhost-user', { socket: this.#socket, cpu: this.#cpu, ...values }]
  }

  /** A started client as a contender: the CPU time is the server's. */
  contender(client: Contender): Contender {
    return {
      series: client.series,
      measure: async (milliseconds) => {
        const before = this.#server.cpuNs()
        const sample = await client.measure(milliseconds)
        return { ...sample, cpuNs: this.#server.cpuNs() - before }
      },
    }
  }

  stop(): Promise<void> {
    return this.#server.stop()
  }
}

/** An NBD server on a socket; its `uri` is for fio. */
export interface NbdServer {
  readonly uri: string
  cpuNs(): number
  stop(): Promise<void>
}

/** qemu-storage-daemon's NBD server. Undefined, and word left, where there is none. */
export async function startQemuNbd(
  context: Context,
  blockdev: string,
): Promise<NbdServer | undefined> {
  if (!hasDaemon(context, 'qemu-storage-daemon, NBD')) return undefined
  const socket = newSocket(context)
  const server = await Server.start(
    DAEMON,
    [
      ...['--blockdev', blockdev],
      ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
      ...['--export', 'nbd,id=export,node-name=disk,name=disk,writable=on'],
    ],
    { socket, cpu: context.cpus.backend },
  )
  const uri = `nbd+unix:///disk?socket=${socket}`
  return { uri, cpuNs: () => server.wholeCpuNs(), stop: () => server.stop() }
}

/** nbdkit with its file plugin. Undefined, and word left, where there is none. */
export async function startNbdkit(context: Context, path: string): Promise<NbdServer | undefined> {
  if (versionOf('nbdkit') === undefined) {
    skip(context, 'nbdkit', 'it is not installed', 'apt-get install nbdkit')
    return undefined
  }
  const socket = newSocket(context)
  const args = ['--foreground', '--unix', socket, '--threads', '4', 'file', path]
  const server = await Server.start('nbdkit', args, { socket, cpu: context.cpus.backend })
  const uri = `nbd+unix:///?socket=${socket}`
  return { uri, cpuNs: () => server.wholeCpuNs(), stop: () => server.stop() }
}
