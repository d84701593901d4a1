/** What a conformance test runs against: our own server, or one of Debian's daemons, behind one interface. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { XenstoreServer } from '../../lib/xenstore/server.js'
import { storeSocketPath } from '../../lib/xenstore/socket_file.js'
import { Store } from '../../lib/xenstore/store.js'
import { type DaemonName, RealDaemon } from './daemon.js'
import { type RawClient, RingClient, SocketClient } from './raw_client.js'

export interface Target {
  /** The socket of domain 0. */
  readonly socket: string
  /** The hypervisor makes, or destroys, a domain. */
  addDomain(domid: number): Promise<void>
  removeDomain(domid: number): Promise<void>
  /** A client that is domain `domid`, which is introduced. */
  guest(domid: number): Promise<RawClient>
  /** Kills the daemon, contents and all. */
  stop(): Promise<void>
  start(): Promise<void>
  close(): Promise<void>
}

export async function ownTarget(): Promise<Target> {
  const dir = mkdtempSync(join(tmpdir(), 'vbdkit-xenstore-'))
  const socket = storeSocketPath(dir)
  let server = await XenstoreServer.listen(dir)
  return {
    socket,
    addDomain: (domid) => server.addDomain(domid),
    removeDomain: (domid) => server.removeDomain(domid),
    guest: (domid) => SocketClient.connect(storeSocketPath(dir, domid)),
    stop: () => server.close(),
    start: async () => {
      server = await XenstoreServer.listen(dir, new Store())
    },
    close: async () => {
      await server.close()
      rmSync(dir, { recursive: true })
    },
  }
}

export async function realTarget(name: DaemonName): Promise<Target> {
  const daemon = await RealDaemon.start(name)
  return {
    socket: daemon.socket,
    addDomain: async (domid) => {
      daemon.addDomain(domid)
      writeFileSync(join(daemon.dir, `ring.${domid}`), Buffer.alloc(4096))
    },
    removeDomain: async (domid) => {
      daemon.removeDomain(domid)
      await untilGone(daemon.socket, domid)
    },
    guest: async (domid) => new RingClient(daemon, domid),
    stop: () => daemon.stop(),
    start: () => daemon.start(),
    close: () => daemon.close(),
  }
}

/** The daemon learns of a death by an event: nobody tells when it has seen it, but its own answer. */
async function untilGone(socket: string, domid: number): Promise<void> {
  const client = await SocketClient.connect(socket)
  for (;;) {
    const answer = await client.ask('IS_DOMAIN_INTRODUCED', `${domid}\0`)
    if (answer?.payload === 'F\0') break
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  await client.close()
}
