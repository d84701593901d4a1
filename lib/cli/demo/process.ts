/**
 * ChildProcess: one vbdkit command as a process of its own, whose JSON lines are its voice. Its
 * stdin is our lifeline: when we die, it ends, and the child stops. Owned by the demo, which stops
 * it.
 */
import { type ChildProcessByStdio, spawn } from 'node:child_process'
import type { Readable, Writable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import { LineSplitter } from '../../control/protocol.js'
import { VbdError } from '../../errors.js'
import { GRACE_MS } from '../signals.js'

/** A line of a child. */
export interface ChildEvent {
  readonly event: string
  readonly [field: string]: unknown
}

/** How long a stop in a hurry may take before the child is killed. */
const HURRY_MS = 5000
/** The last resort of one in good order: a child that takes long ends itself before, and says so. */
const ORDERLY_MS = 2 * GRACE_MS
const MAX_LINE_BYTES = 4 * 1024 * 1024
/** Of what a child said on stderr, for the message when it fails. */
const MAX_COMPLAINT_BYTES = 4096

const SCRIPT = fileURLToPath(new URL('../../../../bin/vbdkit.js', import.meta.url))

interface Waiter {
  readonly name: string
  readonly wanted: (event: ChildEvent) => boolean
  resolve(event: ChildEvent): void
  reject(error: VbdError): void
}

/** A running vbdkit command. */
export class Child {
  readonly name: string
  readonly exited: Promise<number>
  readonly #process: ChildProcessByStdio<Writable, Readable, Readable>
  readonly #waiters = new Set<Waiter>()
  readonly #listeners = new Map<string, (event: ChildEvent) => void>()
  readonly #onEvent: (event: ChildEvent) => void
  #complaint = ''
  #over = false

  /** Starts `vbdkit ARGS --json`. `onEvent` is called for each of its lines. */
  constructor(name: string, args: readonly string[], onEvent: (event: ChildEvent) => void) {
    this.name = name
    this.#onEvent = onEvent
    // A group of its own: Ctrl-C is for us, and we stop the children in order.
    this.#process = spawn(process.execPath, [SCRIPT, ...args, '--json'], {
      stdio: ['pipe', 'pipe', 'pipe'],
      detached: true,
      env: { ...process.env, VBDKIT_STOP_ON_STDIN_END: '1' },
    })
    this.#process.stdin.on('error', () => {})
    this.#read()
    this.exited = new Promise((resolve) => {
      this.#process.once('error', (error) => {
        this.#complaint += error.message
        resolve(this.#ended(1))
      })
      this.#process.once('close', (code, signal) => {
        if (signal !== null) this.#complaint ||= `killed by ${signal}`
        resolve(this.#ended(code ?? 1))
      })
    })
  }

  get pid(): number | undefined {
    return this.#process.pid
  }

  /** The next event of that name. Rejects when the child ends before, with what it complained about. */
  next(name: string): Promise<ChildEvent> {
    return this.until(name, () => true)
  }

  /** As `next`, for the first that is wanted. */
  until(name: string, wanted: (event: ChildEvent) => boolean): Promise<ChildEvent> {
    const promise = new Promise<ChildEvent>((resolve, reject) => {
      if (this.#over) reject(this.#failure())
      else this.#waiters.add({ name, wanted, resolve, reject })
    })
    // Who waits may have been interrupted meanwhile.
    promise.catch(() => {})
    return promise
  }

  /** Has `listener` called for every event of that name; one listener for each. */
  onEvent(name: string, listener: (event: ChildEvent) => void): void {
    this.#listeners.set(name, listener)
  }

  /** The first line of what it said on stderr. */
  get complaint(): string {
    return (
      this.#complaint
        .trim()
        .split('\n')[0]
        ?.replace(/^vbdkit: /, '') ?? ''
    )
  }

  /** Rejects when the child ends by itself; never resolves. For racing. */
  async failed(): Promise<never> {
    await this.exited
    throw this.#failure()
  }

  /** Stops it in good order, then by force. Resolves to its exit code. Idempotent. */
  async stop(patience: 'hurry' | 'orderly'): Promise<number> {
    if (!this.#over) this.#process.kill('SIGTERM')
    const patienceMs = patience === 'orderly' ? ORDERLY_MS : HURRY_MS
    const timer = setTimeout(() => this.#process.kill('SIGKILL'), patienceMs)
    const code = await this.exited
    clearTimeout(timer)
    return code
  }

  #read(): void {
    const lines = new LineSplitter(MAX_LINE_BYTES)
    this.#process.stdout.on('data', (chunk: Buffer) => {
      for (const line of lines.push(chunk)) this.#line(line)
    })
    this.#process.stderr.on('data', (chunk: Buffer) => {
      this.#complaint = (this.#complaint + chunk.toString()).slice(-MAX_COMPLAINT_BYTES)
    })
  }

  #line(line: string): void {
    let event: ChildEvent
    try {
      event = JSON.parse(line) as ChildEvent
    } catch {
      return
    }
    if (typeof event.event !== 'string') return
    this.#onEvent(event)
    this.#listeners.get(event.event)?.(event)
    for (const waiter of [...this.#waiters]) {
      if (waiter.name !== event.event || !waiter.wanted(event)) continue
      this.#waiters.delete(waiter)
      waiter.resolve(event)
    }
  }

  #ended(code: number): number {
    this.#over = true
    const failure = this.#failure()
    for (const waiter of this.#waiters) waiter.reject(failure)
    this.#waiters.clear()
    return code
  }

  #failure(): VbdError {
    const said =
      this.#complaint
        .trim()
        .split('\n')[0]
        ?.replace(/^vbdkit: /, '') ?? ''
    return new VbdError(
      'ERR_VBD_STATE',
      `the ${this.name} ended early${said === '' ? '' : `: ${said}`}`,
    )
  }
}
