/**
 * Service: `vbdkit daemon` or `vbdkit serve`, as an operator runs it, in its own process; what it says are JSON lines.
 */
import { Program, run } from './command.js'

type Event = Record<string, unknown> & { event: string }

export class Service {
  readonly #program: Program

  /** `vbdkit daemon`; resolves when it serves what xl attaches. */
  static async daemon(...args: string[]): Promise<Service> {
    const service = new Service(['daemon', ...args])
    await service.event('ready')
    return service
  }

  /** `vbdkit serve DOM:VDEV DRIVER...`; resolves when it serves. The guest need not be there. */
  static async serve(vbd: string, ...args: string[]): Promise<Service> {
    const service = new Service(['serve', vbd, ...args])
    await service.event('serving')
    return service
  }

  private constructor([command = '', ...args]: string[]) {
    this.#program = new Program('vbdkit', command, '--json', '--xen', 'host', ...args)
  }

  /**
   * The first event of that name with these fields, of those said after the first `from` lines.
   *
   * @throws when the process ends first, or takes too long
   */
  async event(event: string, fields: Record<string, unknown> = {}, from = 0): Promise<Event> {
    const wanted = { event, ...fields }
    const fits = (line: string) => {
      if (!line.startsWith('{')) return false
      const said = JSON.parse(line) as Event
      return Object.entries(wanted).every(([name, value]) => said[name] === value)
    }
    const { line } = await this.#program.line(fits, JSON.stringify(wanted), from)
    return JSON.parse(line) as Event
  }

  /** What both sides of a vbd agreed on when it connected. */
  async connection(vbd: string, from = 0): Promise<Record<string, unknown>> {
    const { connection } = await this.event('connected', { vbd }, from)
    return connection as Record<string, unknown>
  }

  /** The ABI of each connection of a vbd that there was, in order. */
  protocols(vbd: string): string[] {
    return this.#program.lines
      .filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line))
      .filter((said) => said.event === 'connected' && said.vbd === vbd)
      .map(({ connection }) => connection.protocol)
  }

  /** What has been said so far: `event` from here on sees only what comes. */
  get said(): number {
    return this.#program.lines.length
  }

  /** Warnings and errors that it has said so far. */
  get complaints(): string[] {
    return this.#program.lines.filter((line) => /"event":"(warning|error)"/.test(line))
  }

  /** As a service manager does; its exit code. */
  async stop(): Promise<number | string> {
    this.#program.kill('SIGTERM')
    return this.#program.ended
  }

  /** As the kernel does when memory runs out. */
  async kill(): Promise<void> {
    this.#program.kill('SIGKILL')
    await this.#program.ended
  }
}

type Operation = Readonly<Record<'requests' | 'errors' | 'bytes', number>>

/** `vbdkit stats` of a disk, since it was attached. */
export async function statistics(
  vbd: string,
): Promise<Readonly<Record<'read' | 'write' | 'flush' | 'discard', Operation>>> {
  return JSON.parse(await run('vbdkit', 'stats', '--json', vbd))
}
