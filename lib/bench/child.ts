/**
 * Child: a process of ours that does what it is asked over Node's IPC channel, several calls at once. The backends
 * and the guests of a benchmark are such processes, so that they share neither processor nor address space.
 *
 *   bench process   call(name, argument) ──{id, name, argument}──►  serveCalls(handlers)
 *                   promise              ◄──{id, result | error}──
 *
 * Owned by who started it; a child whose parent is gone ends.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { toVbdError, VbdError, type VbdErrorCode } from '../errors.js'

/** What a child can be asked; each handler takes and gives plain data. */
export type Handlers = Readonly<Record<string, (argument: never) => Promise<unknown>>>

interface Call {
  readonly id: number
  readonly name: string
  readonly argument: unknown
}

interface Answer {
  readonly id: number
  readonly result?: unknown
  readonly error?: { code: VbdErrorCode; message: string; remedy?: string | undefined }
}

const STOP_MS = 5000
/** USER_HZ, which /proc counts in, is 100 on every Linux of ours. */
const TICK_NS = 1e7

/** A child, seen from who started it. `H` are the handlers of its script. */
export class Child<H extends Handlers> {
  readonly #process: ChildProcess
  readonly #name: string
  readonly #waiting = new Map<
    number,
    { resolve(value: unknown): void; reject(error: Error): void }
  >()
  readonly #exited: Promise<void>
  #lastId = 0
  #complaint = ''
  #over = false

  /** Starts `script` (beside this module) on one processor. */
  constructor(name: string, script: string, cpu: number) {
    this.#name = name
    const path = fileURLToPath(new URL(script, import.meta.url))
    // Garbage collection in parallel would take the other processor from who is measured there.
    const node = [process.execPath, '--single-threaded-gc', '--expose-gc', path]
    this.#process = spawn('taskset', ['-c', String(cpu), ...node], {
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      // What is freed goes back to the system at once, so that memory in use can be told from memory once used.
      env: { ...process.env, MALLOC_TRIM_THRESHOLD_: '65536', MALLOC_MMAP_THRESHOLD_: '32768' },
    })
    this.#process.stderr!.on('data', (chunk: Buffer) => {
      this.#complaint = (this.#complaint + chunk.toString()).slice(-4096)
    })
    this.#process.on('message', (answer: Answer) => this.#settle(answer))
    this.#exited = new Promise((resolve) => {
      this.#process.once('error', (error) => {
        this.#complaint += error.message
        this.#end(resolve)
      })
      // Not `close`: it never comes where we ended the channel ourselves.
      this.#process.once('exit', () => this.#end(resolve))
    })
  }

  get pid(): number {
    return this.#process.pid ?? -1
  }

  /** @throws what the handler threw, or ERR_VBD_STATE when the child ends first */
  call<K extends keyof H & string>(name: K, ...argument: Parameters<H[K]>): ReturnType<H[K]> {
    const id = ++this.#lastId
    return new Promise((resolve, reject) => {
      if (this.#over) return reject(this.#failure())
      this.#waiting.set(id, { resolve, reject })
      this.#process.send({ id, name, argument: argument[0] } satisfies Call, (error) => {
        if (error) reject(this.#failure())
      })
    }) as ReturnType<H[K]>
  }

  /** CPU time that all its threads have used. */
  cpuNs(): number {
    return processCpuNs(this.pid)
  }

  /** Ends it in good order, then by force. Idempotent. */
  async stop(): Promise<void> {
    if (this.#over) return
    this.#process.disconnect()
    const timer = setTimeout(() => this.#process.kill('SIGKILL'), STOP_MS)
    await this.#exited
    clearTimeout(timer)
  }

  #settle(answer: Answer): void {
    const waiting = this.#waiting.get(answer.id)
    this.#waiting.delete(answer.id)
    const { result, error } = answer
    if (error === undefined) {
      waiting?.resolve(result)
      return
    }
    const { code, message, remedy } = error
    waiting?.reject(new VbdError(code, message, remedy === undefined ? {} : { remedy }))
  }

  #end(resolve: () => void): void {
    this.#over = true
    for (const { reject } of this.#waiting.values()) reject(this.#failure())
    this.#waiting.clear()
    resolve()
  }

  #failure(): VbdError {
    const said = this.#complaint.trim().split('\n')[0] ?? ''
    return new VbdError('ERR_VBD_STATE', `the ${this.#name} ended early${said && `: ${said}`}`)
  }
}

/** The child's end: answers calls, each as soon as it can, until the parent lets go; then runs `close`. */
export function serveCalls(handlers: Handlers, close: () => Promise<void>): void {
  const running = new Set<Promise<void>>()
  const answer = async ({ id, name, argument }: Call): Promise<void> => {
    try {
      const handler = handlers[name] as (argument: unknown) => Promise<unknown>
      const result = await handler(argument)
      process.send?.({ id, result } satisfies Answer)
    } catch (thrown) {
      const { code, message, remedy } = toVbdError(thrown)
      process.send?.({ id, error: { code, message, remedy } } satisfies Answer)
    }
  }
  process.on('message', (call: Call) => {
    const done = answer(call).finally(() => running.delete(done))
    running.add(done)
  })
  process.once('disconnect', () => {
    void Promise.allSettled(running)
      .then(close)
      .finally(() => process.exit())
  })
  // Ctrl-C comes to all of us; stopping us is our parent's business.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {})
}

/** CPU nanoseconds that the living threads of a process have used; 0 for none that lives. */
export function processCpuNs(pid: number): number {
  let total = 0
  try {
    for (const thread of readdirSync(`/proc/${pid}/task`)) {
      total += threadCpuNs(pid, thread)
    }
  } catch {
    return total
  }
  return total
}

function threadCpuNs(pid: number, thread: string): number {
  try {
    return Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ')[0])
  } catch {
    return 0
  }
}

/** The same of a process whose threads come and go, ended ones too; to 10 ms. */
export function wholeCpuNs(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  // The name before it, in brackets, may hold anything.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return (Number(fields[11]) + Number(fields[12])) * TICK_NS
}
