/**
 * The xenstore wire protocol: packets to bytes and back. Pure; knows no socket.
 *
 *   0        4        8        12       16
 *   ├ type ──┼ req_id ┼ tx_id ─┼ length ┼ payload (length bytes) ...      all u32, little endian
 *
 * Payloads are byte strings carried as latin1. Lists are strings that each end in NUL. A failure is answered with type
 * ERROR and the errno's name; a watch event has type WATCH_EVENT and belongs to no request.
 * (xen/include/public/io/xs_wire.h, docs/misc/xenstore.txt)
 */
import { XenstoreError } from './xenstore.js'

export const HEADER_BYTES = 16
/** What a request may carry on a unix socket: both daemons refuse more. */
export const PAYLOAD_MAX = 4096
/** What an answer may carry: oxenstored exceeds the protocol's 4096 for long directories. */
export const INBOUND_MAX = 1024 * 1024

/** Operation numbers. The gaps (20, and 23 up) are operations that no daemon must have. */
export const MESSAGE = {
  CONTROL: 0,
  DIRECTORY: 1,
  READ: 2,
  GET_PERMS: 3,
  WATCH: 4,
  UNWATCH: 5,
  TRANSACTION_START: 6,
  TRANSACTION_END: 7,
  INTRODUCE: 8,
  RELEASE: 9,
  GET_DOMAIN_PATH: 10,
  WRITE: 11,
  MKDIR: 12,
  RM: 13,
  SET_PERMS: 14,
  WATCH_EVENT: 15,
  ERROR: 16,
  IS_DOMAIN_INTRODUCED: 17,
  RESUME: 18,
  SET_TARGET: 19,
  RESET_WATCHES: 21,
  DIRECTORY_PART: 22,
} as const

export type MessageName = keyof typeof MESSAGE

const NAMES = new Map<number, MessageName>(
  Object.entries(MESSAGE).map(([name, type]) => [type, name as MessageName]),
)

/** `READ`, or `type 99` for a number without a name. */
export function messageName(type: number): MessageName | `type ${number}` {
  return NAMES.get(type) ?? `type ${type}`
}

export interface Packet {
  readonly type: number
  /** Chosen by the client, echoed by the daemon; 0 in watch events. */
  readonly reqId: number
  /** 0 outside a transaction. */
  readonly txId: number
  /** Bytes as latin1. */
  readonly payload: string
}

const BYTES_ONLY = /^[\x00-\xff]*$/

/**
 * One packet as bytes.
 * @throws XenstoreError E2BIG when the payload exceeds `maxPayload`, EINVAL when it holds a character above U+00FF
 */
export function encodePacket(packet: Packet, maxPayload = PAYLOAD_MAX): Buffer {
  const { type, reqId, txId, payload } = packet
  if (payload.length > maxPayload) {
    throw new XenstoreError('E2BIG', `xenstore message of ${payload.length} bytes`, {
      remedy: `keep path and value together under ${maxPayload} bytes`,
    })
  }
  if (!BYTES_ONLY.test(payload)) {
    throw new XenstoreError('EINVAL', 'xenstore message with a character above U+00FF', {
      remedy: 'xenstore holds bytes: encode the text first',
    })
  }
  const bytes = Buffer.allocUnsafe(HEADER_BYTES + payload.length)
  bytes.writeUInt32LE(type, 0)
  bytes.writeUInt32LE(reqId, 4)
  bytes.writeUInt32LE(txId, 8)
  bytes.writeUInt32LE(payload.length, 12)
  bytes.write(payload, HEADER_BYTES, 'latin1')
  return bytes
}

/** `a\0b\0` → `['a', 'b']`. A last string without its NUL counts too; an empty payload is no strings. */
export function splitStrings(payload: string): string[] {
  if (payload === '') return []
  return (payload.endsWith('\0') ? payload.slice(0, -1) : payload).split('\0')
}

/** `['a', 'b']` → `a\0b\0`. */
export function joinStrings(strings: readonly string[]): string {
  return strings.map((one) => `${one}\0`).join('')
}

/** The daemon's text up to its NUL, where there is one. */
export function untilNul(payload: string): string {
  const end = payload.indexOf('\0')
  return end < 0 ? payload : payload.slice(0, end)
}

const ERRNO_NAME = /^E[A-Z0-9]{1,15}$/

/** The errno's name in an ERROR answer; anything that is no name is EINVAL, as libxenstore has it. */
export function errnoOf(payload: string): string {
  const name = untilNul(payload)
  return ERRNO_NAME.test(name) ? name : 'EINVAL'
}

/**
 * Cuts a byte stream into packets, whatever the chunks. Memory is bounded by one packet of `maxPayload`.
 * After it has thrown, the stream has lost its framing and the connection is of no more use.
 */
export class PacketParser {
  readonly #maxPayload: number
  readonly #header = Buffer.alloc(HEADER_BYTES)
  #headerFilled = 0
  #body: Buffer | undefined
  #bodyFilled = 0

  constructor(maxPayload = INBOUND_MAX) {
    this.#maxPayload = maxPayload
  }

  /**
   * Calls `onPacket` for every packet that `chunk` completes, in order.
   * @throws XenstoreError E2BIG at a header that announces more than `maxPayload`, after the packets before it
   */
  push(chunk: Buffer, onPacket: (packet: Packet) => void): void {
    let at = 0
    while (at < chunk.length) {
      at += this.#body === undefined ? this.#fillHeader(chunk, at) : this.#fillBody(chunk, at)
      if (this.#body !== undefined && this.#bodyFilled === this.#body.length) {
        onPacket(this.#take(this.#body))
      }
    }
  }

  #fillHeader(chunk: Buffer, at: number): number {
    const copied = chunk.copy(this.#header, this.#headerFilled, at)
    this.#headerFilled += copied
    if (this.#headerFilled === HEADER_BYTES) {
      const length = this.#header.readUInt32LE(12)
      if (length > this.#maxPayload) {
        throw new XenstoreError('E2BIG', `xenstore packet that announces ${length} bytes`)
      }
      this.#body = Buffer.allocUnsafe(length)
      this.#bodyFilled = 0
    }
    return copied
  }

  #fillBody(chunk: Buffer, at: number): number {
    const copied = chunk.copy(this.#body!, this.#bodyFilled, at)
    this.#bodyFilled += copied
    return copied
  }

  #take(body: Buffer): Packet {
    this.#headerFilled = 0
    this.#body = undefined
    return {
      type: this.#header.readUInt32LE(0),
      reqId: this.#header.readUInt32LE(4),
      txId: this.#header.readUInt32LE(8),
      payload: body.toString('latin1'),
    }
  }
}
