/**
 * FakeGuest: a guest's hands without a hypervisor: memory is an ArrayBuffer, grants and ports are Maps. The backend's
 * hands are methods of the same object. Semantics as on Xen: a mapped grant cannot be ended, a delivered event masks
 * its port until unmask().
 */
import type { NativeMockGuest } from '../../lib/engine/addon.js'
import type { GuestContext } from '../../lib/testing/guest_context.js'
import { GuestMemory } from '../../lib/testing/guest_memory.js'
import type { FakeStore } from './fake_store.js'

interface Grant {
  readonly page: number
  readonly domid: number
  readonly readOnly: boolean
  mapped: number
}

interface Port {
  readonly handler: () => void
  pending: boolean
  masked: boolean
  /** The backend's end. */
  peer: (() => void) | undefined
}

export class FakeGuest implements GuestContext {
  readonly domid: number
  readonly xenstore: FakeStore
  readonly native: NativeMockGuest
  readonly memory: GuestMemory
  readonly grants = new Map<number, Grant>()
  readonly ports = new Map<number, Port>()
  readonly #life = new AbortController()
  #nextPort = 1
  /** Notifications from the guest to its backends. */
  notifications = 0

  constructor(domid: number, xenstore: FakeStore, pages = 4096) {
    this.domid = domid
    this.xenstore = xenstore
    this.native = this.#makeNative(new ArrayBuffer(pages * 4096))
    this.memory = new GuestMemory(this.native)
  }

  get signal(): AbortSignal {
    return this.#life.signal
  }

  die(reason: Error): void {
    this.#life.abort(reason)
  }

  #makeNative(memory: ArrayBuffer): NativeMockGuest {
    return {
      domid: this.domid,
      memory,
      grant: (ref, page, domid, readOnly) => {
        if (this.grants.has(ref)) throw new Error(`reference ${ref} is in use`)
        this.grants.set(ref, { page, domid, readOnly, mapped: 0 })
      },
      endAccess: (ref) => {
        if ((this.grants.get(ref)?.mapped ?? 0) > 0) return false
        this.grants.delete(ref)
        return true
      },
      allocUnbound: () => this.#nextPort++,
      notify: (port) => {
        this.notifications++
        const peer = this.ports.get(port)?.peer
        if (peer !== undefined) setImmediate(peer)
      },
      unmask: (port) => this.#unmask(port),
      closePort: (port) => void this.ports.delete(port),
      runLoad: () => Promise.reject(new Error('no load generator here')),
      close: () => {},
    }
  }

  openPort(domid: number, handler: () => void): number {
    const number = this.native.allocUnbound(domid)
    this.ports.set(number, { handler, pending: false, masked: false, peer: undefined })
    return number
  }

  closePort(port: number): void {
    this.ports.delete(port)
  }

  #unmask(number: number): void {
    const port = this.ports.get(number)
    if (port === undefined) return
    port.masked = false
    if (port.pending) this.#deliver(number, port)
  }

  #deliver(number: number, port: Port): void {
    setImmediate(() => {
      if (this.ports.get(number) !== port || port.masked || !port.pending) return
      port.pending = false
      port.masked = true
      port.handler()
      if (this.ports.get(number) === port) this.#unmask(number)
    })
  }

  /** Backend: binds to a port; `onEvent` runs for its notifications, and once now. */
  bind(number: number, onEvent: () => void): void {
    const port = this.ports.get(number)
    if (port === undefined) throw new Error(`port ${number} cannot be bound`)
    port.peer = onEvent
    setImmediate(onEvent)
  }

  /** Backend: lets go of a port. */
  unbind(number: number): void {
    const port = this.ports.get(number)
    if (port !== undefined) port.peer = undefined
  }

  /** Backend: notifies the guest. */
  notifyGuest(number: number): void {
    const port = this.ports.get(number)
    if (port === undefined) return
    port.pending = true
    if (!port.masked) this.#deliver(number, port)
  }

  /** Backend: maps a grant and gives its byte offset in guest memory. */
  map(ref: number, write: boolean): number {
    const grant = this.grants.get(ref)
    if (grant === undefined) throw new Error(`reference ${ref} is not granted`)
    if (write && grant.readOnly) throw new Error(`reference ${ref} is read-only`)
    grant.mapped++
    return grant.page * 4096
  }

  unmap(ref: number): void {
    this.grants.get(ref)!.mapped--
  }

  /** Grants that a backend maps. */
  get mapped(): number {
    return [...this.grants.values()].filter((grant) => grant.mapped > 0).length
  }
}
