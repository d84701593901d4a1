/**
 * Server: a peer's daemon, started for the benchmark on the processor of the backend, waited for until its socket is
 * there, and ended with it. Owned by who started it.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { VbdError } from '../../errors.js'
import { processCpuNs, wholeCpuNs } from '../child.js'

const START_MS = 10_000
const LOOK_MS = 10
const STOP_MS = 3000

/** A running daemon. */
export class Server {
  readonly #process: ChildProcess
  readonly #exited: Promise<void>
  #over = false
  #complaint = ''

  /**
   * Starts `program` and resolves when `socket` exists.
   *
   * @throws ERR_VBD_STATE when it ends before, ERR_VBD_TIMEOUT
   */
  static async start(
    program: string,
    args: readonly string[],
    { socket, cpu }: { socket: string; cpu: number },
  ): Promise<Server> {
    const server = new Server(program, args, cpu)
    const deadline = performance.now() + START_MS
    while (!existsSync(socket)) {
      if (server.#over) {
        const said = server.#complaint.trim().split('\n')[0]
        throw new VbdError('ERR_VBD_STATE', `${program} ended at once: ${said}`)
      }
      if (performance.now() > deadline) {
        await server.stop()
        throw new VbdError('ERR_VBD_TIMEOUT', `${program} makes no socket`, { path: socket })
      }
      await delay(LOOK_MS)
    }
    return server
  }

  private constructor(program: string, args: readonly string[], cpu: number) {
    this.#process = spawn('taskset', ['-c', String(cpu), program, ...args], {
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    this.#process.stderr!.on('data', (chunk: Buffer) => {
      this.#complaint = (this.#complaint + chunk.toString()).slice(-4096)
    })
    this.#exited = new Promise((resolve) => {
      const end = () => {
        this.#over = true
        resolve()
      }
      this.#process.once('error', end)
      this.#process.once('close', end)
    })
  }

  /** CPU time that its threads have used. */
  cpuNs(): number {
    return processCpuNs(this.#process.pid ?? -1)
  }

  /** The same with the threads that have ended, to 10 ms. */
  wholeCpuNs(): number {
    return wholeCpuNs(this.#process.pid ?? -1)
  }

  /** Idempotent, never rejects. */
  async stop(): Promise<void> {
    if (this.#over) return
    this.#process.kill('SIGTERM')
    const timer = setTimeout(() => this.#process.kill('SIGKILL'), STOP_MS)
    await this.#exited
    clearTimeout(timer)
  }
}
