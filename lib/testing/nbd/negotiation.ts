/**
 * Negotiation: the option phase of one connection, as a machine that is fed options and says what to answer. No I/O.
 *
 * There is one export. It answers to its name and to the empty one, which is the default export.
 */
import type { NbdDisk } from './disk.js'
import {
  type ExportDescription,
  exportNameReply,
  infoBlocks,
  MAX_PAYLOAD,
  OPTION,
  optionReply,
  parseInfoRequest,
  parseMetaContextRequest,
  REPLY,
  serverEntry,
  TRANSMISSION,
} from './protocol.js'

/** What follows an option. `refused`: there is no answer that would help, close. */
export type Next = 'options' | 'transmission' | 'closed' | 'refused'

export interface OptionAnswer {
  readonly replies: readonly Buffer[]
  readonly next: Next
}

/** The option phase of one connection. */
export class Negotiation {
  readonly #disk: NbdDisk
  readonly #name: string
  readonly #zeroes: boolean
  #structured = false

  /** @param zeroes the client wants the 124 zeroes of old after OPT_EXPORT_NAME */
  constructor(disk: NbdDisk, name: string, zeroes: boolean) {
    this.#disk = disk
    this.#name = name
    this.#zeroes = zeroes
  }

  /** Whether reads are answered in chunks. */
  get structured(): boolean {
    return this.#structured
  }

  answer(option: number, data: Buffer): OptionAnswer {
    const reply = (type: number, body?: Buffer) => optionReply(option, type, body)
    switch (option) {
      case OPTION.exportName:
        return this.#exportName(data.toString('utf8'))
      case OPTION.abort:
        return { replies: [reply(REPLY.ack)], next: 'closed' }
      case OPTION.list: {
        if (data.length > 0) return stay(reply(REPLY.invalid))
        return stay(reply(REPLY.server, serverEntry(this.#name)), reply(REPLY.ack))
      }
      case OPTION.info:
      case OPTION.go:
        return this.#info(option, data)
      case OPTION.structuredReply: {
        if (data.length > 0) return stay(reply(REPLY.invalid))
        this.#structured = true
        return stay(reply(REPLY.ack))
      }
      case OPTION.listMetaContext:
      case OPTION.setMetaContext:
        return stay(reply(this.#metaContext(data)))
      default:
        return stay(reply(REPLY.unsupported))
    }
  }

  #exportName(name: string): OptionAnswer {
    // This option has no error answer.
    if (!this.#isOurs(name)) return { replies: [], next: 'refused' }
    return { replies: [exportNameReply(this.#describe(), this.#zeroes)], next: 'transmission' }
  }

  #info(option: number, data: Buffer): OptionAnswer {
    const request = parseInfoRequest(data)
    if (request === undefined) return stay(optionReply(option, REPLY.invalid))
    if (!this.#isOurs(request.name)) return stay(optionReply(option, REPLY.unknown))
    const blocks = infoBlocks(this.#describe(), request.infos)
    const replies = blocks.map((block) => optionReply(option, REPLY.info, block))
    replies.push(optionReply(option, REPLY.ack))
    return { replies, next: option === OPTION.go ? 'transmission' : 'options' }
  }

  /** There are no contexts: blkif knows nothing of holes. */
  #metaContext(data: Buffer): number {
    const request = parseMetaContextRequest(data)
    if (!this.#structured || request === undefined) return REPLY.invalid
    return this.#isOurs(request.name) ? REPLY.ack : REPLY.unknown
  }

  #isOurs(name: string): boolean {
    return name === '' || name === this.#name
  }

  #describe(): ExportDescription {
    const disk = this.#disk
    const { hasFlags, canMultiConn, sendFlush, readOnly, sendDf } = TRANSMISSION
    const { sendFua, sendTrim, sendWriteZeroes } = TRANSMISSION
    // One disk behind all connections: what one flushes is durable for all of them.
    let flags = hasFlags | canMultiConn | sendFlush
    if (this.#structured) flags |= sendDf
    if (disk.readOnly) flags |= readOnly
    else flags |= sendFua | sendWriteZeroes | (disk.canTrim ? sendTrim : 0)
    return {
      name: this.#name,
      description: disk.description,
      size: disk.size(),
      flags,
      minBlock: disk.blockSize,
      preferredBlock: Math.max(disk.blockSize, disk.preferredBlockSize),
      maxBlock: MAX_PAYLOAD,
    }
  }
}

function stay(...replies: Buffer[]): OptionAnswer {
  return { replies, next: 'options' }
}
