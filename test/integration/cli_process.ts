/** vbdkit as users run it: processes of bin/vbdkit.js, with what they print, and the folder they work in. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { ENGINE } from '../support/engines.js'

const SCRIPT = fileURLToPath(new URL('../../bin/vbdkit.js', import.meta.url))
const PATIENCE_MS = 30_000

export interface Ended {
  readonly code: number | null
  readonly out: string
  readonly err: string
}

/** One running command, on the engine under test where it serves disks and names none. */
export class Running {
  readonly child: ChildProcess
  readonly ended: Promise<Ended>
  out = ''
  err = ''
  #over = false
  readonly #listeners = new Set<() => void>()

  constructor(args: readonly string[], env: NodeJS.ProcessEnv = {}) {
    this.child = spawn(process.execPath, [SCRIPT, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, NO_COLOR: '1', VBDKIT_ENGINE: ENGINE, ...env },
    })
    this.child.stdout!.on('data', (chunk) => this.#said('out', chunk))
    this.child.stderr!.on('data', (chunk) => this.#said('err', chunk))
    this.ended = once(this.child, 'close').then(([code]) => {
      this.#over = true
      for (const listener of this.#listeners) listener()
      return { code, out: this.out, err: this.err }
    })
  }

  #said(stream: 'out' | 'err', chunk: Buffer): void {
    this[stream] += chunk.toString()
    for (const listener of this.#listeners) listener()
  }

  /** Resolves when stdout matches; rejects when the process ends before, or takes too long. */
  says(pattern: RegExp): Promise<RegExpExecArray> {
    return new Promise((resolve, reject) => {
      const fail = (why: string) => {
        settle()
        reject(new Error(`${why} waiting for ${pattern}\nstdout: ${this.out}\nstderr: ${this.err}`))
      }
      const look = () => {
        const match = pattern.exec(this.out)
        if (match !== null) {
          settle()
          resolve(match)
        } else if (this.#over) fail('ended')
      }
      const timer = setTimeout(() => fail('too late'), PATIENCE_MS)
      const settle = () => {
        clearTimeout(timer)
        this.#listeners.delete(look)
      }
      this.#listeners.add(look)
      look()
    })
  }

  kill(signal: NodeJS.Signals): Promise<Ended> {
    this.child.kill(signal)
    return this.ended
  }
}

/** A folder of its own and the processes in it; `close` ends and removes all of it. */
export class Scene {
  readonly folder: string
  readonly #running: Running[] = []

  static async make(): Promise<Scene> {
    return new Scene(await mkdtemp(join(tmpdir(), 'vbdkit-cli-')))
  }

  private constructor(folder: string) {
    this.folder = folder
  }

  get xen(): string {
    return `mock:${join(this.folder, 'xen')}`
  }

  path(name: string): string {
    return join(this.folder, name)
  }

  start(...args: string[]): Running {
    const running = new Running(args)
    this.#running.push(running)
    return running
  }

  /** Runs a command to its end. */
  run(...args: string[]): Promise<Ended> {
    return this.start(...args).ended
  }

  async mock(...args: string[]): Promise<Running> {
    const mock = this.start('mock', this.path('xen'), ...args)
    await mock.says(/mock Xen in|"ready"/)
    return mock
  }

  async serve(...args: string[]): Promise<Running> {
    const server = this.start('serve', '--xen', this.xen, ...args)
    await server.says(/: serving |"serving"/)
    return server
  }

  async guest(...args: string[]): Promise<Running> {
    const guest = this.start('guest', '--xen', this.xen, ...args)
    await guest.says(/: connected, |"connected"/)
    return guest
  }

  async close(): Promise<void> {
    for (const running of this.#running.reverse()) await running.kill('SIGKILL')
    await rm(this.folder, { recursive: true, force: true })
  }
}

/** The JSON lines of a text. */
export function jsonLines(text: string): Record<string, unknown>[] {
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line))
}
