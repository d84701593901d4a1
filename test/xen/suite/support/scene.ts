/**
 * Scene: what the tests of one `describe` share: a daemon, guests, and at the end the search for what they left behind.
 */
import assert from 'node:assert/strict'
import { after, before, it } from 'node:test'
import { run } from './command.js'
import { Guest, type GuestOptions } from './guest.js'
import { Service } from './service.js'
import { assertNoTraces, lookForTraces, type Traces } from './traces.js'

export class Scene {
  readonly #guests: Guest[] = []
  #daemon: Service | undefined
  #traces: Traces | undefined

  /** Within a `describe`, before its tests: starts the daemon before the first of them. */
  constructor(...daemonArgs: string[]) {
    before(async () => {
      await run('vbdkit', 'xl-script', 'install')
      this.#traces = await lookForTraces()
      this.#daemon = await Service.daemon(...daemonArgs)
    })
    after(async () => {
      await this.#clear()
      await this.#daemon?.stop()
    })
  }

  get daemon(): Service {
    assert.ok(this.#daemon, 'the daemon runs')
    return this.#daemon
  }

  /** Another daemon takes the place of one that was stopped. */
  set daemon(daemon: Service) {
    this.#daemon = daemon
  }

  /** A guest that has booted. */
  async guest(name: string, options: GuestOptions = {}): Promise<Guest> {
    const guest = await Guest.create(name, options)
    this.#guests.push(guest)
    await guest.up()
    return guest
  }

  /** Every guest is gone, and nothing of them is left. */
  async assertNoTraces(): Promise<void> {
    await this.#clear()
    assert.ok(this.#traces)
    await assertNoTraces(this.#traces)
  }

  /** The last test of a `describe`. */
  endsWithoutTraces(): void {
    it('leaves no domain, no xenstore path, no grant and no port', () => this.assertNoTraces())
    it('stops the daemon', async () => {
      assert.equal(await this.daemon.stop(), 0)
    })
  }

  async #clear(): Promise<void> {
    for (const guest of this.#guests.splice(0)) await guest.gone()
  }
}
