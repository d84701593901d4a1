/**
 * Server: what `serve` and `daemon` are both made of: their options, and the order in which the log, the engine, the
 * control socket and the service manager come and go around what they serve.
 */
import { mkdirSync } from 'node:fs'
import { Backend } from '../backend.js'
import { controlFolder } from '../control/path.js'
import { ControlServer } from '../control/server.js'
import { backendTarget } from '../control/target.js'
import { VbdError } from '../errors.js'
import { Service } from '../host/service.js'
import type { XenChoice } from '../store.js'
import { Announcer } from './announcer.js'
import { diskOfParams } from './drivers.js'
import { openLog } from './log.js'
import type { Command, Context } from './program.js'
import { aborted } from './signals.js'
import { addTuningOptions, type TuningOptions, tuningOf } from './tuning_options.js'
import {
  addEngineOptions,
  addFileOptions,
  addOfferOptions,
  addServiceOptions,
  engineOptionsOf,
  type OfferWords,
  type OnStop,
  onStopOption,
  type ProcessWords,
} from './vbd_options.js'
import { mockDirOf } from './xen_option.js'

/** What the options of a command that serves become, besides its own. */
export interface ServerWords extends OfferWords, ProcessWords, TuningOptions {
  readonly onStop?: OnStop
}

/** How long guests are given to let go of their disk: less than what `stoppable` gives us. */
const CLOSE_MS = 7000

/** All options that commands which serve have in common. */
export function addServerOptions(command: Command, onStop: OnStop): void {
  addEngineOptions(command)
  addOfferOptions(command)
  addFileOptions(command)
  command.addOption(onStopOption(onStop))
  addServiceOptions(command)
  addTuningOptions(command, true)
}

/** What there is while a command serves. */
export interface Server {
  readonly backend: Backend
  readonly control: ControlServer
  readonly announcer: Announcer
  readonly service: Service
}

/** What a command serves. */
export interface Serving {
  /** For `systemctl status`. */
  readonly status: string
  /** Said when it is to stop. */
  stopping(): void
  /** Takes nothing new. */
  stop?(): Promise<void>
}

export interface ServerOptions {
  readonly words: ServerWords
  readonly kinds?: readonly string[]
  /** What becomes of connected guests at the end, when `--on-stop` does not say. */
  readonly onStop: OnStop
  /** Where the control socket is when it is not said. */
  controlPath(backend: Backend): string
  /** What it means that somebody answers there already. */
  readonly taken: { readonly message: string; readonly remedy: string; readonly vbd?: string }
  start(server: Server): Promise<Serving>
}

/** Serves until the signal fires, a client says stop, or the mock ends; resolves to the exit code. */
export async function runServer(
  { terminal }: Context,
  options: ServerOptions,
  signal: AbortSignal,
): Promise<number> {
  const { words, kinds, onStop } = options
  const log = await openLog(words.log, words.logLevel ?? 'info')
  const announcer = new Announcer(terminal, log)
  const end = new AbortController()
  let backend: Backend | undefined
  let control: ControlServer | undefined
  let serving: Serving | undefined
  const service = new Service({
    heartbeats: () => backend?.heartbeats() ?? [],
    onChange: (message) => announcer.warn(undefined, message),
  })
  try {
    backend = await Backend.open({
      ...engineOptionsOf(words),
      ...journalsOf(words),
      tunables: tuningOf(words),
      ...(kinds === undefined ? {} : { kinds }),
    })
    announcer.follow(backend)
    // Before anything is served: whoever sees a disk can ask about it.
    control = await listen(options, backend, () => end.abort())
    serving = await options.start({ backend, control, announcer, service })
    service.ready(serving.status)
    const stop = aborted(AbortSignal.any([signal, end.signal]))
    await Promise.race([stop, mockEnd(backend, words.xen)])
    serving.stopping()
    return 0
  } finally {
    service.stopping()
    await serving?.stop?.()
    await control?.close()
    await backend?.close({ timeoutMs: CLOSE_MS, keepGuest: (words.onStop ?? onStop) === 'keep' })
    if (serving !== undefined) announcer.say('stopped', {}, 'stopped')
    await log.close()
  }
}

/**
 * Where control sockets are, which is private and gone after a boot. Not where that cannot be: the guests are served
 * all the same. The mock of this process ends with it.
 */
function journalsOf({ xen }: ServerWords): { journals?: string } {
  if (xen === 'mock') return {}
  const mockDir = mockDirOf(xen)
  // The mock has made it; where none runs, nothing is left behind.
  if (mockDir !== undefined) return { journals: mockDir }
  try {
    const journals = controlFolder(undefined)
    mkdirSync(journals, { recursive: true, mode: 0o700 })
    return { journals }
  } catch {
    return {}
  }
}

async function listen(
  { words, taken, controlPath }: ServerOptions,
  backend: Backend,
  stop: () => void,
): Promise<ControlServer> {
  const path = words.control ?? controlPath(backend)
  try {
    return await ControlServer.listen(path, backendTarget(backend, stop, diskOfParams))
  } catch (thrown) {
    // In another place than the usual one it may be anybody.
    if (words.control !== undefined) throw thrown
    if (!(thrown instanceof VbdError) || thrown.code !== 'ERR_VBD_BUSY') throw thrown
    const { message, ...more } = taken
    throw new VbdError('ERR_VBD_BUSY', message, { path, cause: thrown, ...more })
  }
}

/**
 * A mock that has ended takes its guests with it and does not come back; rejects then. A host's
 * xenstore comes back.
 */
function mockEnd(backend: Backend, xen: XenChoice): Promise<never> {
  return new Promise((_, reject) => {
    backend.on('xenstore', ({ state }) => {
      if (state === 'lost' && xen.startsWith('mock')) {
        reject(
          new VbdError('ERR_VBD_XENSTORE', 'the mock Xen has ended, and its guests with it', {
            remedy: 'start `vbdkit mock` again, then serve again',
          }),
        )
      }
    })
  })
}
