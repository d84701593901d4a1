/**
 * /dev/xen/xenbus: the way to xenstore for a domain in which no daemon runs (a driver domain, or a dom0 with a xenstore
 * domain). Runs on Node's event loop, over a device that someone else opens: Node itself cannot poll one.
 *
 * What sets it apart from a socket (drivers/xen/xenbus/xenbus_dev_frontend.c):
 *   - It executes one packet per write; a second one in the same write is lost. Hence one `write` per packet.
 *   - Header and payload are 4096 bytes together, so the payload is 4080 at most.
 *   - What the kernel refuses by itself (a bad watch path, most of all) fails the write and gets no answer: the answer
 *     is made up here.
 *   - Watch events have garbage for their request number, may come before the answer to their WATCH, and a WATCH that
 *     is there already is accepted again. The layers above take all of that.
 */
import { statSync } from 'node:fs'
import { getSystemErrorName } from 'node:util'
import { VbdError } from '../errors.js'
import { backoffMs, pause } from './backoff.js'
import {
  type Dial,
  type DialOptions,
  defaultXenstorePath,
  dialUnix,
  type Transport,
  type TransportEvents,
} from './transport.js'
import { encodePacket, HEADER_BYTES, MESSAGE } from './wire.js'

/** Payload bytes of one packet to the device. */
export const DEVICE_PAYLOAD_MAX = 4096 - HEADER_BYTES

/** An open device. */
export interface XenbusDevice {
  /** Queues one whole packet. */
  write(packet: Uint8Array): void
  close(): void
}

export interface XenbusDeviceEvents {
  /** Bytes as they come. */
  data(chunk: Buffer): void
  /** This packet's write failed with `errno` (positive); no answer comes. */
  refused(packet: Buffer, errno: number): void
  /** Once; `errno` of reading, or 0 at its end. */
  lost(errno: number): void
}

/** Opens the device, or throws an error with a positive `errno`. */
export type OpenXenbusDevice = (path: string, events: XenbusDeviceEvents) => XenbusDevice

const DEVICES = ['/dev/xen/xenbus', '/proc/xen/xenbus']

export interface XenstoreDialOptions extends DialOptions {
  path: string | undefined
  openDevice: OpenXenbusDevice | undefined
}

/**
 * Connects to xenstore by whatever there is, as libxenstore would: `path`, be it socket or device; without it the
 * daemon's usual socket where that exists, else the device. Looks anew at every connection.
 *
 * @throws VbdError ERR_VBD_NO_XEN when there is neither
 */
export function dialXenstore(options: XenstoreDialOptions): Dial {
  const { openDevice } = options
  return (events, signal) => {
    const socket = options.path ?? defaultXenstorePath()
    const device = openDevice === undefined ? undefined : deviceFor(options.path, socket)
    if (openDevice === undefined || device === undefined) {
      return dialUnix(socket, options)(events, signal)
    }
    return dialDevice(device, openDevice, options)(events, signal)
  }
}

function deviceFor(path: string | undefined, socket: string): string | undefined {
  if (path !== undefined) return isDevice(path) ? path : undefined
  if (isDevice(socket)) return socket
  return exists(socket) ? undefined : DEVICES.find(isDevice)
}

function exists(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false }) !== undefined
}

function isDevice(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isCharacterDevice() ?? false
}

/**
 * Connects through the device at `path`. It cannot be opened (ENOENT) before its domain has a xenstore: with
 * `awaitSocket` it is tried again for `patienceMs`.
 *
 * @throws VbdError ERR_VBD_NO_XEN when it cannot be opened
 */
export function dialDevice(path: string, open: OpenXenbusDevice, options: DialOptions): Dial {
  return async (events, signal) => {
    const started = Date.now()
    for (let attempt = 0; ; attempt++) {
      try {
        return new DeviceTransport(path, open, events)
      } catch (error) {
        const errno = nameOf((error as { errno?: number }).errno ?? 0)
        const patience = errno === 'ENOENT' && options.awaitSocket ? options.patienceMs : 0
        if (signal.aborted || Date.now() - started >= patience) throw notOpened(path, errno, error)
        await pause(backoffMs(attempt, 5, 250), signal)
      }
    }
  }
}

function nameOf(errno: number): string {
  return errno === 0 ? 'EIO' : getSystemErrorName(-Math.abs(errno))
}

function notOpened(path: string, errno: string, cause: unknown): VbdError {
  return new VbdError('ERR_VBD_NO_XEN', `no xenstore at ${path} (${errno})`, {
    path,
    cause,
    remedy:
      errno === 'EACCES' || errno === 'EPERM'
        ? 'run as root: the device belongs to the system'
        : 'start xenstored, or run in a domain that has one',
  })
}

class DeviceTransport implements Transport {
  readonly maxPayload = DEVICE_PAYLOAD_MAX
  readonly #device: XenbusDevice
  readonly #events: TransportEvents
  readonly #boundary = new PacketBoundary()
  /** Made-up answers that wait for the packet under way to end. */
  #waiting: Buffer[] = []
  #open = true

  constructor(path: string, open: OpenXenbusDevice, events: TransportEvents) {
    this.#events = events
    this.#device = open(path, {
      data: (chunk) => this.#receive(chunk),
      refused: (packet, errno) => this.#answer(packet, nameOf(errno)),
      lost: (errno) => this.#lose(nameOf(errno)),
    })
  }

  send(packet: Buffer): void {
    if (this.#open) this.#device.write(packet)
  }

  async close(): Promise<void> {
    this.#open = false
    this.#device.close()
  }

  #receive(chunk: Buffer): void {
    if (!this.#open) return
    this.#boundary.pass(chunk)
    this.#events.data(chunk)
    this.#deliverAnswers()
  }

  #answer(packet: Buffer, errno: string): void {
    const answer = {
      type: MESSAGE.ERROR,
      reqId: packet.readUInt32LE(4),
      txId: packet.readUInt32LE(8),
      payload: `${errno}\0`,
    }
    this.#waiting.push(encodePacket(answer))
    this.#deliverAnswers()
  }

  /** Between the header and the payload of a packet, which come apart, there is no room for another. */
  #deliverAnswers(): void {
    while (this.#open && this.#boundary.reached && this.#waiting.length > 0) {
      this.#events.data(this.#waiting.shift()!)
    }
  }

  #lose(errno: string): void {
    if (!this.#open) return
    this.#open = false
    this.#device.close()
    const error: NodeJS.ErrnoException = new Error(`reading the xenbus device: ${errno}`)
    error.code = errno
    this.#events.lost(error)
  }
}

/** Knows, of a stream of packets in chunks of any size, whether the last chunk ended with a packet. */
class PacketBoundary {
  readonly #header = Buffer.alloc(HEADER_BYTES)
  #filled = 0
  /** Payload bytes still to come, once the header is complete. */
  #left = 0

  get reached(): boolean {
    return this.#filled === 0
  }

  pass(chunk: Buffer): void {
    let at = 0
    while (at < chunk.length) {
      if (this.#filled < HEADER_BYTES) {
        const copied = chunk.copy(this.#header, this.#filled, at)
        this.#filled += copied
        at += copied
        if (this.#filled === HEADER_BYTES) this.#left = this.#header.readUInt32LE(12)
      }
      if (this.#filled === HEADER_BYTES) {
        const passed = Math.min(this.#left, chunk.length - at)
        this.#left -= passed
        at += passed
        if (this.#left === 0) this.#filled = 0
      }
    }
  }
}
