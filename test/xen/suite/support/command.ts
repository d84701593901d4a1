/**
 * Programs of dom0: run to their end, or left running with their lines read as they come.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'

const exec = promisify(execFile)

/** Everything here is emulated, on a machine that may be busy: what takes longer than this hangs. */
export const PATIENCE_MS = 600_000

/** What the program printed on stdout; throws with all it printed when it fails. */
export async function run(command: string, ...args: string[]): Promise<string> {
  try {
    const { stdout } = await exec(command, args, {
      timeout: PATIENCE_MS,
      maxBuffer: 64 * 1024 * 1024,
    })
    return stdout
  } catch (thrown) {
    const { code, signal, stdout, stderr } = thrown as NodeJS.ErrnoException & {
      signal?: string
      stdout: string
      stderr: string
    }
    const why = signal ? `ended by ${signal}` : `exited ${code}`
    throw new Error(`${[command, ...args].join(' ')}: ${why}\n${stdout}${stderr}`)
  }
}

/** A shell script of dom0. */
export function sh(script: string): Promise<string> {
  return run('sh', '-ec', script)
}

/** Rejects with `what` and `detail()` unless `promise` settles in time. */
export async function patiently<T>(
  promise: Promise<T>,
  what: string,
  detail: () => string = () => '',
  timeoutMs = PATIENCE_MS,
): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new Error(`${what}: not after ${timeoutMs / 1000} s\n${detail()}`)),
      timeoutMs,
    )
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}

/** A program that runs on; every line it prints, on stdout and stderr, is kept. */
export class Program {
  readonly name: string
  readonly lines: string[] = []
  readonly #child: ChildProcess
  readonly #waiters = new Set<() => void>()
  /** Resolves to the exit code, or the signal's name, once all is read. */
  readonly ended: Promise<number | string>
  #end: number | string | undefined

  constructor(command: string, ...args: string[]) {
    this.name = [command, ...args].join(' ')
    const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'] })
    this.#child = child
    for (const input of [child.stdout, child.stderr]) {
      createInterface({ input }).on('line', (line) => {
        this.lines.push(line.replace(/\r+$/, ''))
        this.#wake()
      })
    }
    child.stdin.on('error', () => {})
    this.ended = new Promise((resolve) => {
      child.once('error', (error) => this.lines.push(error.message))
      child.once('close', (code, signal) => {
        this.#end = code ?? signal ?? 'nothing'
        resolve(this.#end)
        this.#wake()
      })
    })
  }

  get running(): boolean {
    return this.#end === undefined
  }

  write(text: string): void {
    this.#child.stdin?.write(text)
  }

  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal)
  }

  /**
   * The first line at or behind number `from` that `test` accepts, and its number.
   *
   * @throws when the program ends first, or takes too long
   */
  async line(
    test: (line: string) => boolean,
    what: string,
    from = 0,
    timeoutMs = PATIENCE_MS,
  ): Promise<{ line: string; at: number }> {
    const detail = () => `${this.name} said:\n${this.lines.slice(-40).join('\n')}`
    let next = from
    const search = async () => {
      for (;;) {
        for (; next < this.lines.length; next++) {
          const line = this.lines[next] ?? ''
          if (test(line)) return { line, at: next }
        }
        if (!this.running) throw new Error(`${what}: ended with ${this.#end}\n${detail()}`)
        await new Promise<void>((resolve) => this.#waiters.add(resolve))
      }
    }
    return patiently(search(), what, detail, timeoutMs)
  }

  #wake(): void {
    for (const waiter of this.#waiters) waiter()
    this.#waiters.clear()
  }
}
