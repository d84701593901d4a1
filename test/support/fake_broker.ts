/** A broker without hypervisor: it keeps account of domains and tells of them, as the native one does, a turn later. */
import type { Addon, MockDomain, MockFault, NativeMockBroker } from '../../lib/engine/addon.js'

export class FakeBroker implements NativeMockBroker {
  readonly socketPath: string
  faults: readonly MockFault[] = []
  closed = 0
  /** Domains whose pages a peer still maps: they stay dying. */
  readonly mapped = new Set<number>()
  readonly #domains = new Map<number, MockDomain>()
  readonly #onDomain: Parameters<Addon['startMockBroker']>[1]

  constructor(socketPath: string, onDomain: Parameters<Addon['startMockBroker']>[1]) {
    this.socketPath = socketPath
    this.#onDomain = onDomain
  }

  createDomain(domid: number, pages: number): void {
    if (this.#domains.has(domid)) throw nativeError('domain exists', 17)
    this.#domains.set(domid, { domid, pages, dying: false, grantsMapped: 0, portsBound: 0 })
    this.#tell('created', domid)
  }

  destroyDomain(domid: number): void {
    const domain = this.#domains.get(domid)
    if (domain === undefined) throw nativeError('no such domain', 3)
    if (this.mapped.has(domid)) this.#domains.set(domid, { ...domain, dying: true })
    else this.#domains.delete(domid)
    this.#tell('dying', domid)
    if (!this.mapped.has(domid)) this.#tell('destroyed', domid)
  }

  domains(): MockDomain[] {
    return [...this.#domains.values()]
  }

  setFaults(faults: readonly MockFault[]): void {
    this.faults = faults
  }

  close(): void {
    this.closed++
  }

  #tell(event: 'created' | 'dying' | 'destroyed', domid: number): void {
    setImmediate(() => this.#onDomain(event, domid))
  }
}

export function nativeError(message: string, errno: number): Error {
  return Object.assign(new Error(message), { kind: 'xen', errno })
}
