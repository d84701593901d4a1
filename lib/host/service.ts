/**
 * Service: how a serving command tells the service manager (systemd) how it is: READY=1, STATUS=, STOPPING=1, and its
 * watchdog. Without a service manager nothing of it does anything. JavaScript thread.
 *
 * The watchdog is fed only while everything that serves guests is alive: the JavaScript thread, because the timer is
 * its own, and every reactor, because each has turned since the last look. A reactor inside a grant call is held up by
 * its guest, not hung: the kernel lets it go after 32 s a page, and a restart would disturb every other guest.
 */
import type { Heartbeat } from '../engine/engine.js'
import { notifyServiceManager } from '../engine/host.js'

export interface ServiceOptions {
  /** The threads that move data: `backend.heartbeats()`. */
  heartbeats(): readonly Heartbeat[]
  /** A reactor hangs: the watchdog is not fed any more, or is fed again. One line. */
  onChange?(message: string): void
  readonly env?: NodeJS.ProcessEnv
  readonly pid?: number
}

/** How often per watchdog period its threads are looked at: a hang shows after at most two of these. */
const LOOKS = 4

/** Tells the service manager. Whoever makes one calls `stopping` when the command ends. */
export class Service {
  readonly #o: ServiceOptions
  readonly #env: NodeJS.ProcessEnv
  readonly #beats = new Map<number, number>()
  #timer: NodeJS.Timeout | undefined
  #hung = ''

  constructor(options: ServiceOptions) {
    this.#o = options
    this.#env = options.env ?? process.env
  }

  /** Milliseconds within which the service manager wants to be told; undefined: it does not watch us. */
  get watchdogMs(): number | undefined {
    const { WATCHDOG_USEC, WATCHDOG_PID } = this.#env
    if (!WATCHDOG_USEC || !/^[1-9]\d{0,15}$/.test(WATCHDOG_USEC)) return undefined
    if (WATCHDOG_PID && Number(WATCHDOG_PID) !== (this.#o.pid ?? process.pid)) return undefined
    return Number(WATCHDOG_USEC) / 1000
  }

  /** Guests can be served from now on; feeds the watchdog from now on. */
  ready(status: string): void {
    this.#tell('READY=1', `STATUS=${oneLine(status)}`)
    const { watchdogMs } = this
    if (watchdogMs === undefined || this.#timer !== undefined) return
    this.#look()
    this.#timer = setInterval(() => this.#look(), Math.max(1, watchdogMs / LOOKS))
    this.#timer.unref()
  }

  /** What `systemctl status` shows. */
  status(text: string): void {
    this.#tell(`STATUS=${oneLine(text)}`)
  }

  /** The end has begun; how long it may take is the service manager's to say (TimeoutStopSec). Idempotent. */
  stopping(status = 'stopping'): void {
    clearInterval(this.#timer)
    this.#timer = undefined
    this.#tell('STOPPING=1', `STATUS=${oneLine(status)}`)
  }

  #look(): void {
    const hung = this.#hangingReactors().join(', ')
    if (hung === '') this.#tell('WATCHDOG=1')
    if (hung === this.#hung) return
    this.#hung = hung
    const message =
      hung === '' ? 'every reactor turns again' : `${hung} does not turn: the watchdog is not fed`
    this.status(message)
    this.#o.onChange?.(message)
  }

  /** Names of the reactors that have not turned since the last look although nothing holds them up. */
  #hangingReactors(): string[] {
    const hanging: string[] = []
    const seen = new Set<number>()
    for (const { id, name, beats, inGuestCall } of this.#o.heartbeats()) {
      seen.add(id)
      if (this.#beats.get(id) === beats && !inGuestCall) hanging.push(name)
      this.#beats.set(id, beats)
    }
    for (const id of this.#beats.keys()) if (!seen.has(id)) this.#beats.delete(id)
    return hanging
  }

  #tell(...lines: string[]): void {
    notifyServiceManager(lines.join('\n'), this.#env)
  }
}

/** A status is one line: what follows a line break would be another message. */
function oneLine(text: string): string {
  return text.replace(/\s+/g, ' ').trim()
}
