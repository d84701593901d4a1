/**
 * The NBD protocol as bytes: constants, parsers and builders for the fixed newstyle handshake and for transmission
 * with simple and structured replies. Pure; all numbers are big endian. Source: the NBD project's doc/proto.md.
 */

export const MAGIC = {
  /** `NBDMAGIC` */
  server: 0x4e42444d41474943n,
  /** `IHAVEOPT` */
  option: 0x49484156454f5054n,
  optionReply: 0x0003e889045565a9n,
  request: 0x25609513,
  simpleReply: 0x67446698,
  structuredReply: 0x668e33ef,
} as const

/** Handshake flags, the same bits on both sides. */
export const HANDSHAKE = { fixedNewstyle: 1, noZeroes: 2 } as const

export const OPTION = {
  exportName: 1,
  abort: 2,
  list: 3,
  startTls: 5,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
} as const

const FAILED = 2 ** 31

export const REPLY = {
  ack: 1,
  server: 2,
  info: 3,
  unsupported: FAILED + 1,
  invalid: FAILED + 3,
  unknown: FAILED + 6,
  tooBig: FAILED + 9,
} as const

export const INFO = { export: 0, name: 1, description: 2, blockSize: 3 } as const

export const TRANSMISSION = {
  hasFlags: 1,
  readOnly: 2,
  sendFlush: 4,
  sendFua: 8,
  sendTrim: 32,
  sendWriteZeroes: 64,
  sendDf: 128,
  canMultiConn: 256,
} as const

export const COMMAND = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  writeZeroes: 6,
} as const

export const COMMAND_FLAG = { fua: 1, noHole: 2, df: 4 } as const

/** NBD's own error numbers, whatever the host's are. */
export const ERROR = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const

/** Bytes of payload that a request or an answer may have. */
export const MAX_PAYLOAD = 32 * 1024 * 1024
/** Bytes of data that an option may have; the longest name there is has 4096. */
export const MAX_OPTION = 8192

export const CLIENT_FLAGS_BYTES = 4
export const OPTION_HEADER_BYTES = 16
export const REQUEST_BYTES = 28

const REPLY_DONE = 1
const CHUNK = { none: 0, offsetData: 1, error: 2 ** 15 + 1 } as const

/** What the server says first. */
export function greeting(): Buffer {
  const bytes = Buffer.alloc(18)
  bytes.writeBigUInt64BE(MAGIC.server, 0)
  bytes.writeBigUInt64BE(MAGIC.option, 8)
  bytes.writeUInt16BE(HANDSHAKE.fixedNewstyle | HANDSHAKE.noZeroes, 16)
  return bytes
}

export interface OptionHeader {
  readonly option: number
  readonly length: number
}

/** undefined: not an option, the connection is of no use. */
export function parseOptionHeader(bytes: Buffer): OptionHeader | undefined {
  if (bytes.readBigUInt64BE(0) !== MAGIC.option) return undefined
  return { option: bytes.readUInt32BE(8), length: bytes.readUInt32BE(12) }
}

/** One answer to an option; `type` is one of REPLY. */
export function optionReply(option: number, type: number, data: Buffer = Buffer.alloc(0)): Buffer {
  const bytes = Buffer.alloc(20 + data.length)
  bytes.writeBigUInt64BE(MAGIC.optionReply, 0)
  bytes.writeUInt32BE(option, 8)
  bytes.writeUInt32BE(type, 12)
  bytes.writeUInt32BE(data.length, 16)
  data.copy(bytes, 20)
  return bytes
}

/** The data of OPT_INFO and OPT_GO. undefined: malformed. */
export function parseInfoRequest(
  data: Buffer,
): { readonly name: string; readonly infos: readonly number[] } | undefined {
  if (data.length < 6) return undefined
  const nameLength = data.readUInt32BE(0)
  if (nameLength > data.length - 6) return undefined
  const count = data.readUInt16BE(4 + nameLength)
  const start = 6 + nameLength
  if (data.length !== start + 2 * count) return undefined
  const infos = Array.from({ length: count }, (_, i) => data.readUInt16BE(start + 2 * i))
  return { name: data.toString('utf8', 4, 4 + nameLength), infos }
}

/** The data of OPT_LIST_META_CONTEXT and OPT_SET_META_CONTEXT, as far as it matters: the export. */
export function parseMetaContextRequest(data: Buffer): { readonly name: string } | undefined {
  if (data.length < 8) return undefined
  const nameLength = data.readUInt32BE(0)
  if (nameLength > data.length - 8) return undefined
  return { name: data.toString('utf8', 4, 4 + nameLength) }
}

/** An export's name in OPT_LIST's answer. */
export function serverEntry(name: string): Buffer {
  const text = Buffer.from(name)
  const bytes = Buffer.alloc(4 + text.length)
  bytes.writeUInt32BE(text.length, 0)
  text.copy(bytes, 4)
  return bytes
}

export interface ExportDescription {
  readonly name: string
  readonly description: string
  /** Bytes. */
  readonly size: number
  /** TRANSMISSION bits. */
  readonly flags: number
  readonly minBlock: number
  readonly preferredBlock: number
  readonly maxBlock: number
}

/** The information blocks that answer OPT_INFO and OPT_GO: always size and block sizes, the texts on request. */
export function infoBlocks(described: ExportDescription, infos: readonly number[]): Buffer[] {
  const size = Buffer.alloc(12)
  size.writeUInt16BE(INFO.export, 0)
  size.writeBigUInt64BE(BigInt(described.size), 2)
  size.writeUInt16BE(described.flags, 10)
  const blocks = Buffer.alloc(14)
  blocks.writeUInt16BE(INFO.blockSize, 0)
  blocks.writeUInt32BE(described.minBlock, 2)
  blocks.writeUInt32BE(described.preferredBlock, 6)
  blocks.writeUInt32BE(described.maxBlock, 10)
  const texts = [
    { type: INFO.name, text: described.name },
    { type: INFO.description, text: described.description },
  ].filter(({ type, text }) => infos.includes(type) && text !== '')
  return [size, blocks, ...texts.map(({ type, text }) => textBlock(type, text))]
}

function textBlock(type: number, text: string): Buffer {
  const bytes = Buffer.alloc(2 + Buffer.byteLength(text))
  bytes.writeUInt16BE(type, 0)
  bytes.write(text, 2)
  return bytes
}

/** The answer to OPT_EXPORT_NAME, after which transmission begins. */
export function exportNameReply(described: ExportDescription, zeroes: boolean): Buffer {
  const bytes = Buffer.alloc(zeroes ? 134 : 10)
  bytes.writeBigUInt64BE(BigInt(described.size), 0)
  bytes.writeUInt16BE(described.flags, 8)
  return bytes
}

export interface Request {
  readonly flags: number
  readonly command: number
  /** Eight opaque bytes, echoed. */
  readonly cookie: bigint
  readonly offset: bigint
  readonly length: number
}

/** undefined: not a request, the connection is of no use. */
export function parseRequest(bytes: Buffer): Request | undefined {
  if (bytes.readUInt32BE(0) !== MAGIC.request) return undefined
  return {
    flags: bytes.readUInt16BE(4),
    command: bytes.readUInt16BE(6),
    cookie: bytes.readBigUInt64BE(8),
    offset: bytes.readBigUInt64BE(16),
    length: bytes.readUInt32BE(24),
  }
}

/** `error` 0: done. */
export function simpleReply(cookie: bigint, error: number): Buffer {
  const bytes = Buffer.allocUnsafe(16)
  bytes.writeUInt32BE(MAGIC.simpleReply, 0)
  bytes.writeUInt32BE(error, 4)
  bytes.writeBigUInt64BE(cookie, 8)
  return bytes
}

function chunkHeader(cookie: bigint, type: number, length: number, extra: number): Buffer {
  const bytes = Buffer.allocUnsafe(20 + extra)
  bytes.writeUInt32BE(MAGIC.structuredReply, 0)
  bytes.writeUInt16BE(REPLY_DONE, 4)
  bytes.writeUInt16BE(type, 6)
  bytes.writeBigUInt64BE(cookie, 8)
  bytes.writeUInt32BE(length, 16)
  return bytes
}

/** What comes before the data of a read, in one chunk. */
export function readChunk(cookie: bigint, offset: bigint, length: number): Buffer {
  // A data chunk without data is forbidden.
  if (length === 0) return chunkHeader(cookie, CHUNK.none, 0, 0)
  const bytes = chunkHeader(cookie, CHUNK.offsetData, 8 + length, 8)
  bytes.writeBigUInt64BE(offset, 20)
  return bytes
}

/** A read that failed, where structured replies were agreed on. */
export function errorChunk(cookie: bigint, error: number, message: string): Buffer {
  const text = Buffer.from(message).subarray(0, 1024)
  const bytes = chunkHeader(cookie, CHUNK.error, 6 + text.length, 6 + text.length)
  bytes.writeUInt32BE(error, 20)
  bytes.writeUInt16BE(text.length, 24)
  text.copy(bytes, 26)
  return bytes
}
