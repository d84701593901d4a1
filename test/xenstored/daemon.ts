/**
 * Debian's real daemons and tools, run without Xen, for the tests that compare with them. See fetch.sh and shim.c.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { appendFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { dialUnix } from '../../lib/xenstore/transport.js'

const run = promisify(execFile)
const here = (name: string) => fileURLToPath(new URL(name, import.meta.url))
const CACHE = here('../../.cache/xenstored')

export type DaemonName = 'xenstored' | 'oxenstored'

/** Why the real daemons cannot run here; undefined: they can. */
export async function whyNoDaemons(): Promise<string | undefined> {
  try {
    await run(here('fetch.sh'), { timeout: 120_000 })
    return undefined
  } catch (error) {
    const { stderr, message } = error as Error & { stderr?: string }
    return stderr?.trim().split('\n').at(-1) || message
  }
}

/** Why this daemon cannot run here, once the packages are there; undefined: it can. */
export async function whyNot(name: DaemonName): Promise<string | undefined> {
  const missing = await whyNoDaemons()
  if (missing !== undefined || name === 'xenstored') return missing
  return await run('unshare', ['-m', 'mount', '-t', 'tmpfs', 'none', '/mnt']).then(
    () => undefined,
    () => 'a mount namespace of its own is not allowed here',
  )
}

/** One of the tools that Debian ships (`xenstore-ls`, `test-xenstore`), run against a daemon's socket. */
export function xenstoreTool(
  socket: string,
  tool: string,
  ...args: string[]
): { child: ChildProcess; done: Promise<{ code: number | null; stdout: string; stderr: string }> } {
  const folder = tool === 'test-xenstore' ? 'root/usr/lib/xen-4.17/bin' : 'root/usr/bin'
  const child = spawn(join(CACHE, folder, tool), args, {
    env: {
      ...process.env,
      XENSTORED_PATH: socket,
      LD_LIBRARY_PATH: join(CACHE, 'root/usr/lib', multiarch()),
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let stdout = ''
  let stderr = ''
  child.stdout!.on('data', (text) => {
    stdout += text
  })
  child.stderr!.on('data', (text) => {
    stderr += text
  })
  const done = once(child, 'close').then(([code]) => ({ code, stdout, stderr }))
  return { child, done }
}

function multiarch(): string {
  return process.arch === 'arm64' ? 'aarch64-linux-gnu' : 'x86_64-linux-gnu'
}

/** A running daemon. `stop` and `start` are a restart: its contents are lost, its socket's path stays. */
export class RealDaemon {
  readonly name: DaemonName
  readonly dir = mkdtempSync(join(tmpdir(), 'vbdkit-xenstored-'))
  #child: ChildProcess | undefined

  static async start(name: DaemonName): Promise<RealDaemon> {
    const daemon = new RealDaemon(name)
    await daemon.start()
    return daemon
  }

  private constructor(name: DaemonName) {
    this.name = name
  }

  get socket(): string {
    return join(this.dir, 'run/socket')
  }

  /** Resolves when it accepts connections. */
  async start(): Promise<void> {
    const child = spawn(here('run.sh'), [this.name, this.dir], {
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    this.#child = child
    let output = ''
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (text) => {
        output = `${output}${text}`.slice(-4096)
      })
    }
    const died = once(child, 'exit').then(() => {
      if (this.#child === child) throw new Error(`${this.name} ended: ${output}`)
    })
    const dial = dialUnix(this.socket, { patienceMs: 20_000, awaitSocket: true })
    const reached = dial({ data: () => {}, lost: () => {} }, new AbortController().signal)
    const transport = await Promise.race([reached, died])
    await transport?.close()
    died.catch(() => {})
  }

  /** As `kill -9`: the socket's file is left behind. */
  async stop(): Promise<void> {
    const child = this.#child
    this.#child = undefined
    if (child === undefined || child.exitCode !== null) return
    const exited = once(child, 'exit')
    child.kill('SIGKILL')
    await exited
  }

  /** The hypervisor makes domain `domid`. */
  addDomain(domid: number): void {
    writeFileSync(join(this.dir, `dom/${domid}`), '')
  }

  /** The hypervisor destroys domain `domid` and says so. */
  removeDomain(domid: number): void {
    rmSync(join(this.dir, `dom/${domid}`))
    this.raise(1)
  }

  /** Raises an event channel: 1 is "a domain died", any other "look at the rings". */
  raise(port: number): void {
    const bytes = Buffer.alloc(4)
    bytes.writeUInt32LE(port)
    appendFileSync(join(this.dir, 'evtchn'), bytes)
  }

  async close(): Promise<void> {
    await this.stop()
    rmSync(this.dir, { recursive: true, force: true })
  }
}
