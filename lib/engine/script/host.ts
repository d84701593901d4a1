/**
 * ScriptHost: where a script disk's functions run, here or on a thread of their own. Both open the disk, attach it to
 * its channel, and close it; what goes wrong in between is told, and ends nothing else.
 *
 *     open ──► shape ──► the engine makes the channel ──► attach ──► requests ──► close
 */
import { Worker } from 'node:worker_threads'
import { within } from '../../deadline.js'
import type { DiskShape, OpenDefinition } from '../../disk/open_definition.js'
import { toVbdError, VbdError, type VbdErrorCode } from '../../errors.js'
import type { Addon } from '../addon.js'
import { Pump } from './pump.js'
import type { FromWorker, ToWorker, WireError, WorkerData } from './wire.js'

/** What a function threw, or what became of the thread; `vbd` is '' where it is no request's. */
export type ErrorListener = (error: VbdError, vbd: string) => void

export interface ScriptHost {
  readonly shape: DiskShape
  /** Takes requests from this channel from now on. */
  attach(channel: number): Promise<void>
  resize(sizeBytes: number): Promise<void>
  /** Ends the channel, then the disk. Idempotent. */
  close(): Promise<void>
}

/** Milliseconds that a thread is given to close its disk before it is ended. */
const CLOSE_MS = 5000

/** In this thread: the functions of an open disk, which it closes at the end. */
export function hostHere(disk: OpenDefinition, addon: Addon, onError: ErrorListener): ScriptHost {
  let pump: Pump | undefined
  const { shape, functions, state } = disk
  return {
    shape,
    async attach(channel) {
      const options = { name: shape.name, functions, state, onError }
      pump = new Pump(addon.attachScript, channel, options)
    },
    resize: disk.resize,
    async close() {
      pump?.detach()
      await disk.close()
    },
  }
}

/**
 * A disk of a module, on a thread of its own.
 *
 * @throws ERR_VBD_BACKING for a module that cannot be loaded, and as `openDefinition`
 */
export function hostOnThread(data: WorkerData, onError: ErrorListener): Promise<ScriptHost> {
  return WorkerHost.open(data, onError)
}

class WorkerHost implements ScriptHost {
  readonly #worker: Worker
  #name: string
  readonly #onError: ErrorListener
  readonly #calls = new Map<number, { resolve(): void; reject(error: VbdError): void }>()
  #nextCall = 0
  #closing: Promise<void> | undefined
  #crash: unknown
  shape!: DiskShape

  static async open(data: WorkerData, onError: ErrorListener): Promise<WorkerHost> {
    const host = new WorkerHost(data, onError)
    try {
      host.shape = await host.#opened()
      host.#name = host.shape.name
      return host
    } catch (thrown) {
      await host.#worker.terminate()
      throw thrown
    }
  }

  private constructor(data: WorkerData, onError: ErrorListener) {
    this.#name = data.name
    this.#onError = onError
    this.#worker = new Worker(new URL('./worker.js', import.meta.url), {
      workerData: data,
      name: `vbdkit ${data.name}`.slice(0, 15),
      // It says how the program's own text is to be read, and is refused for a file.
      ...(process.execArgv.some((arg) => arg.startsWith('--input-type')) ? { execArgv: [] } : {}),
    })
    this.#worker.on('error', (thrown) => {
      this.#crash = thrown
    })
    this.#worker.on('exit', (code) => this.#exited(code))
    this.#worker.on('message', (message: FromWorker) => this.#message(message))
  }

  attach(channel: number): Promise<void> {
    return this.#call({ type: 'attach', channel })
  }

  resize(sizeBytes: number): Promise<void> {
    return this.#call({ type: 'resize', sizeBytes })
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  #opened(): Promise<DiskShape> {
    return new Promise((resolve, reject) => {
      this.#worker.on('message', (message: FromWorker) => {
        if (message.type === 'opened') resolve(message.shape)
        else if (message.type === 'failed') reject(fromWire(message.error))
      })
      this.#worker.once('exit', (code) => reject(this.#ended(code)))
    })
  }

  async #close(): Promise<void> {
    // It ended before, which was told then.
    if (this.#worker.threadId < 0) return
    let failure: unknown
    const closed = this.#call({ type: 'close' }).catch((thrown) => {
      failure = thrown
    })
    if (!(await within(closed, CLOSE_MS))) {
      failure = new VbdError(
        'ERR_VBD_TIMEOUT',
        `the disk ${this.#name} did not close within ${CLOSE_MS} ms`,
      )
    }
    await this.#worker.terminate()
    if (failure !== undefined) throw failure
  }

  #call(call: DistributiveOmit<ToWorker, 'id'>): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#worker.threadId < 0) {
        reject(new VbdError('ERR_VBD_STATE', `the thread of the disk ${this.#name} has ended`))
        return
      }
      const id = this.#nextCall++
      this.#calls.set(id, { resolve, reject })
      this.#worker.postMessage({ ...call, id })
    })
  }

  #message(message: FromWorker): void {
    if (message.type === 'error') this.#onError(fromWire(message.error), message.vbd)
    if (message.type !== 'done') return
    const call = this.#calls.get(message.id)
    this.#calls.delete(message.id)
    if (message.error === undefined) call?.resolve()
    else call?.reject(fromWire(message.error))
  }

  #ended(code: number): VbdError {
    const why =
      this.#crash === undefined ? ` with code ${code}` : `: ${toVbdError(this.#crash).message}`
    const message = `the thread of the disk ${this.#name} has ended${why}`
    return new VbdError('ERR_VBD_BACKING', message, {
      cause: this.#crash,
      remedy: 'mend the disk’s module, then serve it again',
    })
  }

  #exited(code: number): void {
    const error = this.#ended(code)
    for (const call of this.#calls.values()) call.reject(error)
    this.#calls.clear()
    if (this.#closing === undefined && this.shape !== undefined) this.#onError(error, '')
  }
}

type DistributiveOmit<T, K extends PropertyKey> = T extends unknown ? Omit<T, K> : never

function fromWire({ code, message, vbd, remedy }: WireError): VbdError {
  return new VbdError(code as VbdErrorCode, message, {
    ...(vbd === undefined ? {} : { vbd }),
    ...(remedy === undefined ? {} : { remedy }),
  })
}
