/**
 * VbdWorld: a backend on a SimStore and a FakeEngine, with a toolstack's and a guest's hands beside it, and the laws
 * that hold whatever they do checked at every write.
 */
import { Backend, type BackendOptions } from '../../lib/backend.js'
import { isLegalWrite, parseState, type XenbusState } from '../../lib/xenbus/state.js'
import { FakeEngine, type FakeVbd } from './fake_engine.js'
import { type SimClient, SimStore } from './sim_store.js'

export const BACKEND_PATH = '/local/domain/0/backend/vbd/1/51712'
export const FRONTEND_PATH = '/local/domain/1/device/vbd/51712'

export class VbdWorld {
  readonly store = new SimStore()
  readonly engine = new FakeEngine()
  readonly ours: SimClient = this.store.client('backend')
  readonly xl: SimClient = this.store.client('xl')
  readonly guest: SimClient = this.store.client('guest')
  /** Our own states in the order they were written. */
  readonly written: number[] = []
  readonly violations: string[] = []
  readonly warnings: string[] = []
  readonly errors: string[] = []
  backend!: Backend

  static async open(options: BackendOptions = {}): Promise<VbdWorld> {
    const world = new VbdWorld()
    world.#keepLaws()
    const { ours: store, engine } = world
    const close = async () => {
      await engine.close()
      await store.close()
    }
    const platform = { kind: 'mock' as const, domid: 0, store, engine, close }
    world.backend = await Backend.open({ reconcileMs: 10_000, ...options, platform })
    world.backend.on('warning', ({ message }) => world.warnings.push(message))
    world.backend.on('error', ({ error }) => world.errors.push(error.message))
    return world
  }

  get vbd(): FakeVbd | undefined {
    return [...this.engine.vbds][0]
  }

  get state(): string | undefined {
    return this.store.get(`${BACKEND_PATH}/state`)
  }

  back(key: string): string | undefined {
    return this.store.get(`${BACKEND_PATH}/${key}`)
  }

  front(key: string): string | undefined {
    return this.store.get(`${FRONTEND_PATH}/${key}`)
  }

  /** A domain, with the directory that its devices go into. */
  async createDomain(domid = 1): Promise<void> {
    await this.xl.mkdir(`/local/domain/${domid}/device`)
    this.store.introduce(domid)
  }

  /** What xl writes, over what is there; `keys` beside or instead of it. */
  async attach(keys: Record<string, string> = {}): Promise<void> {
    await this.xl.transaction(async (tx) => {
      for (const path of [FRONTEND_PATH, BACKEND_PATH]) await tx.remove(path)
      await tx.mkdir(FRONTEND_PATH)
      await tx.setPermissions(FRONTEND_PATH, [
        { access: 'n', domid: 1 },
        { access: 'r', domid: 0 },
      ])
      await tx.mkdir(BACKEND_PATH)
      const back: Record<string, string> = {
        frontend: FRONTEND_PATH,
        'frontend-id': '1',
        online: '1',
        state: '1',
        mode: 'w',
        params: 'aio:disk.img',
        'discard-enable': '1',
        ...keys,
      }
      const front = { backend: BACKEND_PATH, 'backend-id': '0', state: '1' }
      for (const [key, value] of Object.entries(back))
        await tx.write(`${BACKEND_PATH}/${key}`, value)
      for (const [key, value] of Object.entries(front)) {
        await tx.write(`${FRONTEND_PATH}/${key}`, value)
      }
    })
  }

  async detach(): Promise<void> {
    await this.xl.transaction(async (tx) => {
      if ((await tx.tryRead(`${BACKEND_PATH}/state`)) === undefined) return
      await tx.write(`${BACKEND_PATH}/online`, '0')
      await tx.write(`${BACKEND_PATH}/state`, '5')
    })
  }

  async removeDirectories(): Promise<void> {
    await this.xl.remove(FRONTEND_PATH)
    await this.xl.remove(BACKEND_PATH)
  }

  /** The guest's ring keys; `keys` beside or instead of them, undefined takes one away. */
  async publishRing(keys: Record<string, string | undefined> = {}): Promise<void> {
    const all = { 'ring-ref': '8', 'event-channel': '15', protocol: 'x86_64-abi', ...keys }
    for (const [key, value] of Object.entries(all)) {
      if (value !== undefined) await this.guest.write(`${FRONTEND_PATH}/${key}`, value)
      else await this.guest.remove(`${FRONTEND_PATH}/${key}`)
    }
  }

  async frontState(state: number | string): Promise<void> {
    await this.guest.write(`${FRONTEND_PATH}/state`, String(state))
  }

  /** Resolves when our state is this. */
  reach(state: number): Promise<void> {
    return this.until(() => this.state === String(state), `backend state ${state}`)
  }

  /** A frontend as Linux drives it, from 1 to 4. */
  async connectLinux(keys: Record<string, string | undefined> = {}): Promise<void> {
    await this.reach(2)
    await this.publishRing(keys)
    await this.frontState(3)
    await this.reach(4)
    await this.frontState(4)
  }

  /** Waits, turn by turn, until something holds. */
  async until(holds: () => boolean, what: string): Promise<void> {
    const deadline = Date.now() + 20_000
    while (!holds()) {
      if (Date.now() > deadline) {
        throw new Error(`never: ${what}; states ${this.written}, warnings ${this.warnings}`)
      }
      await new Promise((resolve) => setImmediate(resolve))
    }
  }

  /** Lets everything happen that will happen by itself. */
  async settle(): Promise<void> {
    let quiet = 0
    let version = this.store.version
    while (quiet < 50) {
      await new Promise((resolve) => setImmediate(resolve))
      quiet = this.store.version === version ? quiet + 1 : 0
      version = this.store.version
    }
  }

  /** The laws of blkif.h and of this project about what we may write, checked at every commit. */
  #keepLaws(): void {
    const statePath = `${BACKEND_PATH}/state`
    this.store.onCommit.add(({ client, path, value, before }) => {
      if (client !== 'backend' || !path.startsWith(BACKEND_PATH) || value === undefined) return
      if (this.state === undefined) this.violations.push(`wrote ${path}, whose directory is gone`)
      if (path !== statePath) return
      const to = parseState(value)
      this.written.push(to)
      // A directory that our own toolstack makes begins with 1.
      if (before === undefined) {
        if (to !== 1) this.violations.push(`wrote ${value} into a directory that is gone`)
        return
      }
      if (to === 1) return
      const from = parseState(before)
      const requested = to === 5 && this.store.get(`${BACKEND_PATH}/online`) === '0'
      if (!isLegalWrite(from, to as XenbusState) && !requested) {
        this.violations.push(`wrote ${to} over ${from}`)
      }
      if (to === 6 && this.engine.mapped > 0) this.violations.push('Closed with mapped pages')
      if (to === 4 && this.engine.mapped === 0) this.violations.push('Connected without a ring')
    })
  }
}
