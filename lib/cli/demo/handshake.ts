/**
 * Handshake: what both sides write to xenstore about one disk, told in order, one line for each key whose value is new.
 */
import { stateName, type XenbusState } from '../../xenbus/state.js'
import type { ChildEvent } from './process.js'

/** Turns the mock's trace into lines; remembers what was told. */
export class Handshake {
  readonly #sides: readonly (readonly [string, string])[]
  readonly #told = new Map<string, string>()

  /** @param domid and @param devid of the guest's disk; the backend is domain 0 */
  constructor(domid: number, devid: number) {
    this.#sides = [
      ['backend', `/local/domain/0/backend/vbd/${domid}/${devid}/`],
      ['frontend', `/local/domain/${domid}/device/vbd/${devid}/`],
    ]
  }

  /** The line about one change, undefined when it is about something else or says nothing new. */
  line(event: ChildEvent): string | undefined {
    const { path, value } = event
    if (typeof path !== 'string' || typeof value !== 'string') return undefined
    const side = this.#sides.find(([, prefix]) => path.startsWith(prefix))
    if (side === undefined) return undefined
    const key = path.slice(side[1].length)
    // The same state again is how a resize is announced; other keys are only told when they change.
    if (value === '' || (key !== 'state' && this.#told.get(path) === value)) return undefined
    this.#told.set(path, value)
    const meaning = key === 'state' ? `  ${stateText(value)}` : ''
    return `  ${side[0].padEnd(8)}  ${key} = ${value}${meaning}`
  }
}

function stateText(value: string): string {
  const number = Number(value)
  return number >= 1 && number <= 8 ? stateName(number as XenbusState) : ''
}
