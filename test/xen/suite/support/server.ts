/**
 * Server: `vbdkit serve`, as an operator runs it, in its own process.
 */
import { Program } from './command.js'

type Event = Record<string, unknown> & { event: string }

export class Server {
  readonly vbd: string
  readonly #program: Program

  /** Resolves when it serves; the guest need not be there. */
  static async start(vbd: string, ...args: string[]): Promise<Server> {
    const server = new Server(vbd, args)
    await server.event('serving')
    return server
  }

  private constructor(vbd: string, args: string[]) {
    this.vbd = vbd
    this.#program = new Program('vbdkit', 'serve', '--json', '--xen', 'host', vbd, ...args)
  }

  /** The first event of that name, after `from` lines, with these fields. */
  async event(event: string, fields: Record<string, unknown> = {}, from = 0): Promise<Event> {
    const wanted = { event, ...fields }
    const fits = (line: string) => {
      if (!line.startsWith('{')) return false
      const said = JSON.parse(line) as Event
      return Object.entries(wanted).every(([name, value]) => said[name] === value)
    }
    const what = `vbdkit serve ${this.vbd} says ${JSON.stringify(wanted)}`
    return JSON.parse((await this.#program.line(fits, what, from)).line) as Event
  }

  /** What it says from here on: give it to `event`. */
  get now(): number {
    return this.#program.lines.length
  }

  get output(): string {
    return this.#program.lines.join('\n')
  }

  get ended(): Promise<number | string> {
    return this.#program.ended
  }

  /** As a service manager does; its exit code. */
  async stop(): Promise<number | string> {
    this.#program.kill('SIGTERM')
    return this.#program.ended
  }

  async kill(): Promise<void> {
    this.#program.kill('SIGKILL')
    await this.#program.ended
  }
}
