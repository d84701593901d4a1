/**
 * World: a backend on a mock Xen in this process, with scratch directories and guests, that knows what must be left of
 * it at the end: nothing. For tests of the product as a whole.
 *
 * Owns the backend, the guests and the directories; close() ends them in that order.
 */
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statfsSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, vi } from 'vitest'
import { Backend, type BackendOptions } from '../../lib/backend.js'
import { DEFAULT_TUNABLES, type Engine } from '../../lib/engine/engine.js'
import type { MockHost } from '../../lib/mock/mock_host.js'
import { openPlatform } from '../../lib/platform.js'
import { MockGuest, type MockGuestOptions } from '../../lib/testing/guest.js'
import { ENGINE } from './engines.js'
import { PATIENT } from './patience.js'

export const MIB = 1024 * 1024
const TMPFS_MAGIC = 0x01021994

/** A directory whose files are on a disk, not in memory. */
export function diskFolder(): string {
  const checkout = fileURLToPath(new URL('../..', import.meta.url))
  const folder = [tmpdir(), '/var/tmp', checkout].find(
    (one) => statfsSync(one).type !== TMPFS_MAGIC,
  )
  return folder ?? checkout
}

/** A directory whose files are in memory. */
export function tmpfsFolder(): string {
  return '/dev/shm'
}

/** What an engine tells beside its contract. */
interface EngineResources {
  resources(): { reactors: number; vbds: number; disks: number }
}

/** What a World has seen of its backend. */
export interface Said {
  readonly warnings: string[]
  readonly errors: string[]
  readonly states: string[]
}

export class World implements AsyncDisposable {
  readonly backend: Backend
  readonly mock: MockHost
  readonly engine: EngineResources
  readonly said: Said = { warnings: [], errors: [], states: [] }
  readonly #guests = new Set<MockGuest>()
  readonly #folders: string[] = []
  #nextDomid = 1

  /** A world on the engine under test, or the one that is named. */
  static async open(options: Omit<BackendOptions, 'xen' | 'platform'> = {}): Promise<World> {
    const { engine = ENGINE, jsIo, reactors = 2, tunables, ...rest } = options
    const platform = await openPlatform({
      xen: 'mock',
      engine,
      ...(jsIo === undefined ? {} : { jsIo }),
      reactors,
      tunables: { ...DEFAULT_TUNABLES, ...tunables },
    })
    const backend = await Backend.open({ ...rest, ...(tunables ? { tunables } : {}), platform })
    return new World(backend, platform.engine as Engine & EngineResources)
  }

  private constructor(backend: Backend, engine: EngineResources) {
    this.backend = backend
    this.engine = engine
    this.mock = backend.mock!
    backend.on('warning', ({ message }) => void this.said.warnings.push(message))
    backend.on('error', ({ error }) => void this.said.errors.push(error.message))
    backend.on('state', ({ vbd, side, state }) => {
      this.said.states.push(`${vbd.id} ${side} ${state}`)
    })
  }

  /** A domain number that was not used before. */
  nextDomid(): number {
    return this.#nextDomid++
  }

  /** A directory of its own, removed at the end. */
  folder(where: string = tmpdir()): string {
    const path = mkdtempSync(join(where, 'vbdkit-world-'))
    this.#folders.push(path)
    return path
  }

  /** Removes every directory that was made so far; how many. */
  dropFolders(): number {
    const dropped = this.#folders.splice(0)
    for (const folder of dropped) rmSync(folder, { recursive: true, force: true })
    return dropped.length
  }

  /** A sparse image of `bytes` zeroes, in a directory of its own. */
  image(bytes: number, where: string = tmpdir()): string {
    const path = join(this.folder(where), 'disk.img')
    writeFileSync(path, '')
    truncateSync(path, bytes)
    return path
  }

  /** A guest of this mock. */
  async guest(options: Partial<MockGuestOptions> = {}): Promise<MockGuest> {
    const domid = options.domid ?? this.nextDomid()
    const guest = await MockGuest.join({ dir: this.mock.dir, domid, ...options })
    this.#guests.add(guest)
    guest.once('closed', () => this.#guests.delete(guest))
    return guest
  }

  /** Waits until the mock has forgotten every guest: none is mapped, bound or dying. */
  async expectNoDomains(): Promise<void> {
    await vi.waitFor(() => expect(this.mock.domains().filter(isGuest)).toEqual([]), PATIENT)
  }

  /** Waits until a guest's pages and ports are its own again. */
  async expectReleased(domid: number): Promise<void> {
    await vi.waitFor(() => {
      const domain = this.mock.domains().find((one) => one.domid === domid)
      const { grantsMapped = 0, portsBound = 0 } = domain ?? {}
      expect({ grantsMapped, portsBound }).toEqual({ grantsMapped: 0, portsBound: 0 })
    }, PATIENT)
  }

  /** Ends guests and backend; what they made in the file system must be gone then. */
  async close(): Promise<void> {
    for (const guest of this.#guests) await guest.close()
    const { dir } = this.mock
    await this.backend.close()
    expect(this.engine.resources()).toEqual({ reactors: 0, vbds: 0, disks: 0 })
    expect(exists(dir), `${dir} is left`).toBe(false)
    this.dropFolders()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

/** `promise`, or a failure that says how things stand when it takes longer than it ever should. */
export async function bounded<T>(
  promise: Promise<T>,
  seconds: number,
  describe: () => unknown,
): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      const said = JSON.stringify(describe(), (key, value) =>
        key === 'buckets' ? undefined : value,
      )
      reject(new Error(`not done after ${seconds} s: ${said}`))
    }, seconds * 1000)
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}

function isGuest({ domid }: { domid: number }): boolean {
  return domid !== 0
}

function exists(path: string): boolean {
  try {
    readdirSync(path)
    return true
  } catch {
    return false
  }
}

/** Makes a directory and those above it. */
export function makeFolder(path: string): string {
  mkdirSync(path, { recursive: true })
  return path
}
