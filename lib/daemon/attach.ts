/**
 * Attaching and detaching past the guest's toolstack: the part of xl, for a kind of backend that no toolstack knows.
 * Writes the directories, watches what the backend and the guest make of them, and takes them away when nothing comes
 * of it. The backend may be another process, or another domain. Owns nothing but its watches.
 */
import { onAbort } from '../deadline.js'
import { VbdError } from '../errors.js'
import { formatVbdId, MAX_DOMID } from '../units.js'
import { type DeviceAddress, devicePaths, quietly } from '../xenbus/device.js'
import { parseState, stateName, type XenbusState, type XenbusStateName } from '../xenbus/state.js'
import { ATTACH_MARK, type DeviceDescription, Directories, Toolstack } from '../xenbus/toolstack.js'
import type { Watch, Xenstore } from '../xenstore/xenstore.js'

/** Milliseconds within which a backend that serves the kind answers: as long as libxl waits. */
const ANSWER_MS = 10_000

export interface AttachOptions {
  /** Milliseconds that the guest may take; 0: it is not waited for. */
  readonly timeoutMs: number
  readonly signal?: AbortSignal
  /** Told of every change of either side. */
  readonly onState?: (states: States) => void
}

/** Both sides, `none` where there is no directory. */
export interface States {
  readonly backend: XenbusStateName | 'none'
  readonly frontend: XenbusStateName | 'none'
}

interface Reading extends States {
  readonly hotplugStatus: string | undefined
  readonly hotplugError: string | undefined
}

/**
 * The number of a domain that is there.
 *
 * @param domain its number or name
 * @throws ERR_VBD_NOT_FOUND
 */
export async function findDomain(store: Xenstore, domain: string): Promise<number> {
  if (/^(0|[1-9]\d{0,4})$/.test(domain) && Number(domain) <= MAX_DOMID) {
    if (await store.isDomainIntroduced(Number(domain))) return Number(domain)
  } else {
    for (const domid of await store.tryList('/local/domain')) {
      if ((await store.tryRead(`/local/domain/${domid}/name`)) === domain) return Number(domid)
    }
  }
  throw new VbdError('ERR_VBD_NOT_FOUND', `there is no domain ${domain}`, {
    remedy: 'name it as `xl list` does, by its name or number',
  })
}

/**
 * Gives a guest a disk. Resolves to `connected`, or to `waiting` when the backend has it and the guest does not want it
 * yet.
 *
 * @throws ERR_VBD_BUSY when the guest has that device, ERR_VBD_TIMEOUT when no backend answers, ERR_VBD_BACKING with
 *   the backend's reason when it refuses; nothing is left then; ERR_VBD_ABORTED
 */
export async function attach(
  store: Xenstore,
  address: DeviceAddress,
  description: DeviceDescription,
  options: AttachOptions,
): Promise<'connected' | 'waiting'> {
  const vbd = formatVbdId(address)
  const toolstack = new Toolstack(store, address, description, ATTACH_MARK)
  const { frontend } = toolstack.paths
  const taken = (await store.tryRead(`${frontend}/state`)) !== undefined
  if (taken || !(await toolstack.create())) {
    throw new VbdError('ERR_VBD_BUSY', `${vbd} is attached already`, {
      vbd,
      path: frontend,
      remedy: 'detach it first, or choose another device',
    })
  }
  try {
    const answered = await watchUntil(
      store,
      address,
      ({ backend, hotplugStatus }) => backend !== 'Initialising' || hotplugStatus !== undefined,
      { ...options, timeoutMs: ANSWER_MS },
    )
    if (answered === undefined) throw nobodyAnswers(vbd, address)
    if (answered.hotplugStatus === 'error') throw refused(vbd, answered)
  } catch (thrown) {
    await quietly(new Directories(store, address, ATTACH_MARK).remove())
    throw thrown
  }
  if (options.timeoutMs === 0) return 'waiting'
  const connected = await watchUntil(
    store,
    address,
    ({ backend, frontend: front }) => backend === 'Connected' && front === 'Connected',
    options,
  )
  return connected === undefined ? 'waiting' : 'connected'
}

export interface DetachOptions extends AttachOptions {
  /** Takes the guest's side away first: it loses the disk, whatever it does with it. */
  readonly force?: boolean
}

/**
 * Takes a disk away that `attach` gave.
 *
 * @throws ERR_VBD_NOT_FOUND when it is not one of those, ERR_VBD_TIMEOUT when the guest holds on to it; ERR_VBD_ABORTED
 */
export async function detach(
  store: Xenstore,
  address: DeviceAddress,
  options: DetachOptions,
): Promise<void> {
  const vbd = formatVbdId(address)
  const directories = new Directories(store, address, ATTACH_MARK)
  const presence = await directories.look()
  if (presence === 'foreign' || presence === 'absent' || presence === 'no-domain') {
    throw new VbdError('ERR_VBD_NOT_FOUND', `${vbd} was not attached by \`vbdkit attach\``, {
      vbd,
      path: directories.paths.backend,
      remedy: 'a disk that xl attached is detached by `xl block-detach`',
    })
  }
  if (options.force === true) await store.remove(directories.paths.frontend)
  await directories.requestClose()
  const closed = await watchUntil(
    store,
    address,
    ({ backend }) => backend === 'Closed' || backend === 'none',
    options,
  )
  if (closed === undefined) {
    throw new VbdError(
      'ERR_VBD_TIMEOUT',
      `${vbd} has not closed within ${options.timeoutMs / 1000} s`,
      {
        vbd,
        remedy: 'unmount it in the guest, which closes it then; or take it away with --force',
      },
    )
  }
  await directories.removeClosed()
}

function nobodyAnswers(vbd: string, { kind, backendDomid }: DeviceAddress): VbdError {
  return new VbdError(
    'ERR_VBD_TIMEOUT',
    `no backend of kind ${kind} answers in domain ${backendDomid}`,
    { vbd, remedy: 'start `vbdkit daemon` there (systemctl status vbdkit)' },
  )
}

function refused(vbd: string, { hotplugError }: Reading): VbdError {
  const message = `the backend refuses: ${hotplugError ?? 'it does not say why'}`
  return new VbdError('ERR_VBD_BACKING', message, { vbd })
}

/** Reads both sides at every change; undefined when the time is over. */
async function watchUntil(
  store: Xenstore,
  address: DeviceAddress,
  holds: (reading: Reading) => boolean,
  { timeoutMs, signal, onState }: AttachOptions,
): Promise<Reading | undefined> {
  const paths = devicePaths(address)
  let wake = () => {}
  let changed = true
  const onEvent = () => {
    changed = true
    wake()
  }
  const until = performance.now() + timeoutMs
  const timer = setTimeout(() => wake(), timeoutMs)
  const unsubscribe = onAbort(signal, onEvent)
  const watches: Watch[] = []
  try {
    for (const path of [paths.backend, `${paths.frontend}/state`]) {
      watches.push(await store.watch(path, onEvent))
    }
    let told = ''
    while (signal?.aborted !== true) {
      changed = false
      const reading = await read(store, address)
      const states = { backend: reading.backend, frontend: reading.frontend }
      if (JSON.stringify(states) !== told) onState?.(states)
      told = JSON.stringify(states)
      if (holds(reading)) return reading
      if (performance.now() >= until) return undefined
      await new Promise<void>((resolve) => {
        wake = resolve
        if (changed) resolve()
      })
    }
    throw new VbdError('ERR_VBD_ABORTED', 'aborted', { cause: signal.reason })
  } finally {
    clearTimeout(timer)
    unsubscribe()
    for (const watch of watches) await quietly(watch.close())
  }
}

async function read(store: Xenstore, address: DeviceAddress): Promise<Reading> {
  const { backend, frontend } = devicePaths(address)
  const [own, front, hotplugStatus, hotplugError] = await Promise.all([
    store.tryRead(`${backend}/state`),
    store.tryRead(`${frontend}/state`),
    store.tryRead(`${backend}/hotplug-status`),
    store.tryRead(`${backend}/hotplug-error`),
  ])
  return { backend: nameOf(own), frontend: nameOf(front), hotplugStatus, hotplugError }
}

function nameOf(state: string | undefined): XenbusStateName | 'none' {
  return state === undefined ? 'none' : stateName(parseState(state) as XenbusState)
}
