/** A raw NBD client: sends bytes, and reads the answers field by field. Knows no more than a test wants it to. */
import { once } from 'node:events'
import { createConnection, type Socket } from 'node:net'

export class NbdClient {
  readonly socket: Socket
  #bytes = Buffer.alloc(0)
  #ended = false
  #wake: () => void = () => {}

  private constructor(socket: Socket) {
    this.socket = socket
    socket.on('data', (chunk) => {
      this.#bytes = Buffer.concat([this.#bytes, chunk])
      this.#wake()
    })
    socket.on('error', () => {})
    socket.on('close', () => {
      this.#ended = true
      this.#wake()
    })
  }

  static async connect(path: string): Promise<NbdClient> {
    const client = new NbdClient(createConnection(path))
    await once(client.socket, 'connect')
    return client
  }

  /** Resolves with exactly `count` bytes; rejects when the connection ends before. */
  async take(count: number): Promise<Buffer> {
    while (this.#bytes.length < count) {
      if (this.#ended) throw new Error(`closed after ${this.#bytes.length} of ${count} bytes`)
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
    const taken = this.#bytes.subarray(0, count)
    this.#bytes = this.#bytes.subarray(count)
    return taken
  }

  /** Resolves when the server has closed; what it sent before is dropped. */
  async closed(): Promise<void> {
    while (!this.#ended) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  send(...hex: (string | Buffer)[]): void {
    const parts = hex.map((one) =>
      typeof one === 'string' ? Buffer.from(one.replaceAll(' ', ''), 'hex') : one,
    )
    this.socket.write(Buffer.concat(parts))
  }

  /** The greeting and our flags: fixed newstyle, no zeroes. */
  async greet(flags = 3): Promise<Buffer> {
    const greeting = await this.take(18)
    this.send(u32(flags))
    return greeting
  }

  option(option: number, data: Buffer = Buffer.alloc(0)): void {
    this.send('49484156454f5054', u32(option), u32(data.length), data)
  }

  async optionReply(): Promise<{ option: number; type: number; data: Buffer }> {
    const head = await this.take(20)
    if (head.readBigUInt64BE(0) !== 0x3e889045565a9n) throw new Error('not an option reply')
    const data = await this.take(head.readUInt32BE(16))
    return { option: head.readUInt32BE(8), type: head.readUInt32BE(12), data }
  }

  /** Goes to transmission with OPT_GO; resolves with size, flags and block sizes. */
  async go(name = ''): Promise<{ size: bigint; flags: number; blocks: number[] }> {
    const text = Buffer.from(name)
    this.option(7, Buffer.concat([u32(text.length), text, Buffer.alloc(2)]))
    const found = { size: 0n, flags: 0, blocks: [] as number[] }
    for (;;) {
      const { type, data } = await this.optionReply()
      if (type === 1) return found
      if (type !== 3) throw new Error(`OPT_GO was answered ${type}`)
      if (data.readUInt16BE(0) === 0) {
        found.size = data.readBigUInt64BE(2)
        found.flags = data.readUInt16BE(10)
      } else found.blocks = [2, 6, 10].map((at) => data.readUInt32BE(at))
    }
  }

  request(command: number, cookie: bigint, offset: number, length: number, flags = 0): void {
    const head = Buffer.alloc(28)
    head.writeUInt32BE(0x25609513, 0)
    head.writeUInt16BE(flags, 4)
    head.writeUInt16BE(command, 6)
    head.writeBigUInt64BE(cookie, 8)
    head.writeBigUInt64BE(BigInt(offset), 16)
    head.writeUInt32BE(length, 24)
    this.send(head)
  }

  async simpleReply(): Promise<{ error: number; cookie: bigint }> {
    const head = await this.take(16)
    if (head.readUInt32BE(0) !== 0x67446698) throw new Error('not a simple reply')
    return { error: head.readUInt32BE(4), cookie: head.readBigUInt64BE(8) }
  }

  async chunk(): Promise<{ flags: number; type: number; cookie: bigint; data: Buffer }> {
    const head = await this.take(20)
    if (head.readUInt32BE(0) !== 0x668e33ef) throw new Error('not a structured reply')
    const data = await this.take(head.readUInt32BE(16))
    const [flags, type] = [head.readUInt16BE(4), head.readUInt16BE(6)]
    return { flags, type, cookie: head.readBigUInt64BE(8), data }
  }
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}
