/**
 * What tests of hostile guests stand on: a World with a neighbour, a well-behaved guest whose verified I/O must never
 * notice anything, and a victim, the vbd that the hostile guest has.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { expect, vi } from 'vitest'
import type { ServeOptions } from '../../lib/backend.js'
import type { Disk } from '../../lib/disk/disk.js'
import { memory } from '../../lib/disk/drivers.js'
import type { VbdCounters } from '../../lib/engine/engine.js'
import type { Frontend } from '../../lib/testing/frontend.js'
import type { FrontendOptions } from '../../lib/testing/frontend_options.js'
import type { MockGuest } from '../../lib/testing/guest.js'
import { HostileGuest } from '../../lib/testing/hostile.js'
import { encodeRequest, LAYOUTS, type Segment, type WireRequest } from '../../lib/testing/wire.js'
import type { Vbd } from '../../lib/vbd/vbd.js'
import { PATIENT } from './patience.js'
import { VerifiedDisk } from './product_verify.js'
import { MIB, type World } from './product_world.js'

export const VICTIM_SECTORS = (4 * MIB) / 512

/** Two busy disks, one for each reactor of the world. */
export class Neighbour {
  readonly #disks: VerifiedDisk[] = []
  readonly #frontends: Frontend[] = []
  readonly #stop = new AbortController()
  readonly #running: Promise<void>[] = []

  static async movesIn(world: World): Promise<Neighbour> {
    const neighbour = new Neighbour()
    const guest = await world.guest({ memoryBytes: 32 * MIB })
    for (const [i, vdev] of ['xvda', 'xvdb'].entries()) {
      await world.backend.serve(`${guest.domid}:${vdev}`, memory('4MiB'))
      const frontend = await guest.disk(vdev, { memoryBytes: 8 * MIB })
      const disk = new VerifiedDisk(frontend, { seed: i + 1, sectors: 8192, maxSectors: 64 })
      neighbour.#frontends.push(frontend)
      neighbour.#disks.push(disk)
      neighbour.#running.push(disk.run({ depth: 2, signal: neighbour.#stop.signal }))
    }
    return neighbour
  }

  /** Goes on: both disks do more, and no byte was wrong so far. */
  async goesOn(): Promise<void> {
    const before = this.#disks.map((disk) => disk.done)
    const failed = Promise.race(this.#running)
    const progress = vi.waitFor(() => {
      this.#disks.forEach((disk, i) => {
        expect(disk.done, `disk ${i} of the neighbour`).toBeGreaterThan(before[i]! + 10)
      })
    }, PATIENT)
    await Promise.race([progress, failed])
    for (const frontend of this.#frontends) expect(frontend.violations).toEqual([])
  }

  async movesOut(): Promise<void> {
    this.#stop.abort()
    await Promise.all(this.#running)
    for (const disk of this.#disks) await disk.check()
  }
}

/** A vbd in the hands of a hostile guest. */
export class Victim {
  readonly world: World
  readonly vbd: Vbd
  readonly guest: MockGuest
  readonly frontend: Frontend
  #hostile: HostileGuest | undefined
  #ids = 0

  /** Served, with a guest; not connected yet. */
  static async make(
    world: World,
    options: {
      disk?: Disk
      serve?: ServeOptions
      front?: FrontendOptions
      memoryBytes?: number
    } = {},
  ): Promise<Victim> {
    const domid = world.nextDomid()
    const vbd = await world.backend.serve(
      `${domid}:xvda`,
      options.disk ?? memory('4MiB'),
      options.serve,
    )
    const guest = await world.guest({ domid, memoryBytes: options.memoryBytes ?? 16 * MIB })
    await vi.waitFor(() => expect(vbd.state).toBe('InitWait'), PATIENT)
    const frontend = guest.frontend('xvda', {
      closeTimeoutMs: 3000,
      reconnect: false,
      memoryBytes: 4 * MIB,
      ...options.front,
    })
    return new Victim(world, vbd, guest, frontend)
  }

  /** As `make`, connected, with the rings in hostile hands. */
  static async connected(...args: Parameters<typeof Victim.make>): Promise<Victim> {
    const victim = await Victim.make(...args)
    await victim.frontend.connect()
    await victim.vbd.whenConnected()
    victim.#hostile = new HostileGuest(victim.guest, victim.frontend)
    return victim
  }

  private constructor(world: World, vbd: Vbd, guest: MockGuest, frontend: Frontend) {
    this.world = world
    this.vbd = vbd
    this.guest = guest
    this.frontend = frontend
  }

  get hostile(): HostileGuest {
    return this.#hostile!
  }

  get counters(): VbdCounters {
    return this.vbd.stats().counters
  }

  /** Rejected requests of one reason, or of all. */
  rejected(reason?: string): number {
    const { rejected } = this.counters
    if (reason !== undefined) return rejected[reason] ?? 0
    return Object.values(rejected).reduce((sum, count) => sum + count, 0)
  }

  nextId() {
    return { lo: ++this.#ids, hi: 0x8000_0001 }
  }

  /** A request that is right, for a start. */
  request(
    operation: 'read' | 'write' | 'barrier' | 'flush',
    segments: Segment[],
    sector: number | bigint = 0,
  ): WireRequest {
    return { operation, handle: 0, id: this.nextId(), sector, segments }
  }

  /** A segment of one whole page. */
  segment(options: Parameters<HostileGuest['grant']>[0] = {}): Segment {
    return { ref: this.hostile.grant(options).ref, first: 0, last: 7 }
  }

  /** The bytes of a request, to be bent. */
  bytes(request: WireRequest): Uint8Array {
    const { layout } = this.hostile.ring()
    const view = new DataView(new ArrayBuffer(layout.stride))
    encodeRequest(view, 0, LAYOUTS[layout.protocol], request)
    return new Uint8Array(view.buffer)
  }

  /** Sends one request and takes its answer. */
  async answer(request: WireRequest, bend: (slot: Uint8Array) => void = () => {}): Promise<number> {
    const slot = this.bytes(request)
    bend(slot)
    this.hostile.send(slot)
    const [response] = await this.hostile.responses(1)
    expect(response!.id).toEqual(request.id)
    return response!.status
  }

  /** Still answers what is right. */
  async works(): Promise<void> {
    const { page, ref } = this.hostile.grant()
    this.hostile.page(page).fill(0x5a)
    const whole = [{ ref, first: 0, last: 7 }]
    expect(await this.answer(this.request('write', whole, 16))).toBe(0)
    this.hostile.page(page).fill(0)
    expect(await this.answer(this.request('read', whole, 16))).toBe(0)
    expect(this.hostile.page(page).every((byte) => byte === 0x5a)).toBe(true)
  }

  /** Waits until the backend has given the ring up and says so in xenstore. */
  async expectGivenUp(): Promise<void> {
    await vi.waitFor(() => expect(['Closing', 'Closed']).toContain(this.vbd.state), PATIENT)
    await this.world.expectReleased(this.guest.domid)
  }

  /** Ends guest and vbd; nothing of the guest may be held afterwards. */
  async leaves(): Promise<void> {
    await this.frontend.close({ drain: false })
    await this.world.expectReleased(this.guest.domid)
    if (!this.guest.signal.aborted) {
      expect(this.#hostile?.cleanUp() ?? 0, 'pages that stay mapped').toBe(0)
    }
    await this.guest.close()
    await this.vbd.close()
    await vi.waitFor(() => {
      const domids = this.world.mock.domains().map(({ domid }) => domid)
      expect(domids).not.toContain(this.guest.domid)
    }, PATIENT)
  }
}

/** CPU time of all reactors of this process, in seconds. */
export function reactorSeconds(): number {
  let ticks = 0
  for (const task of readdirSync('/proc/self/task')) {
    const stat = readFileSync(`/proc/self/task/${task}/stat`, 'utf8')
    if (!/\(vbdkit-\d+\)/.test(stat)) continue
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    ticks += Number(fields[11]) + Number(fields[12])
  }
  return ticks / 100
}
