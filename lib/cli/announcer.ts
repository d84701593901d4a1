/**
 * Announcer: everything that happens to a served disk, as lines for people, as events for programs, and in the log.
 */
import type { Backend } from '../backend.js'
import type { VbdError } from '../errors.js'
import { formatSize } from '../units.js'
import { describeConnection } from '../vbd/explain.js'
import type { Log } from './log.js'
import { oneLine, type Terminal } from './terminal.js'

/** Says what happens to the backend's vbds until it is closed. */
export class Announcer {
  readonly #terminal: Terminal
  readonly #log: Log

  constructor(terminal: Terminal, log: Log) {
    this.#terminal = terminal
    this.#log = log
  }

  /** One thing that happened. */
  say(event: string, fields: Record<string, unknown>, human: string): void {
    this.#terminal.event(event, fields, oneLine(human))
    this.#log.logger.info({ event, ...fields }, oneLine(human))
  }

  /** Something that only a log at level debug has. */
  detail(event: string, fields: Record<string, unknown>, human: string): void {
    this.#log.logger.debug({ event, ...fields }, oneLine(human))
  }

  warn(vbd: string | undefined, message: string): void {
    const text = vbd === undefined ? message : `${vbd}: ${message}`
    if (this.#terminal.json) this.#terminal.event('warning', { vbd, message }, undefined)
    this.#terminal.warn(text)
    this.#log.logger.warn({ event: 'warning', vbd }, oneLine(message))
  }

  error(vbd: string | undefined, error: VbdError): void {
    if (this.#terminal.json) this.#terminal.event('error', { vbd, ...error.toJSON() }, undefined)
    this.#terminal.warn(vbd === undefined ? error.message : `${vbd}: ${error.message}`)
    if (error.remedy !== undefined) this.#terminal.warn(error.remedy)
    this.#log.logger.error({ event: 'error', vbd, ...error.toJSON() }, oneLine(error.message))
  }

  /** Follows every event of the backend. */
  follow(backend: Backend): void {
    backend.on('state', ({ vbd, side, state }) => {
      this.say('state', { vbd: vbd.id, side, state }, `${vbd.id}: ${side} ${state}`)
    })
    backend.on('connected', ({ vbd, connection }) => {
      this.say(
        'connected',
        { vbd: vbd.id, connection },
        `${vbd.id}: connected, ${describeConnection(connection)}`,
      )
    })
    backend.on('disconnected', ({ vbd }) => {
      this.say('disconnected', { vbd: vbd.id }, `${vbd.id}: disconnected`)
    })
    backend.on('resized', ({ vbd, disk }) => {
      this.say('resized', { vbd: vbd.id, disk }, `${vbd.id}: now ${formatSize(disk.sizeBytes)}`)
    })
    backend.on('warning', ({ vbd, message }) => this.warn(vbd?.id, message))
    backend.on('error', ({ vbd, error }) => this.error(vbd?.id, error))
    backend.on('log', ({ vbd, line }) => {
      if (this.#terminal.json) this.#terminal.event('stats', { vbd: vbd.id, line }, undefined)
      this.#terminal.err.write(`${line}\n`)
      this.#log.logger.info({ event: 'stats', vbd: vbd.id }, line)
    })
  }
}
