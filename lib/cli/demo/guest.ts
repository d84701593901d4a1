/**
 * The demo's guest: a process that is a domain of the mock Xen, connects its disk, runs the
 * workload on it, and waits to be told to end. It speaks in JSON lines to the demo that started it.
 */
import { open } from 'node:fs/promises'
import { VbdError } from '../../errors.js'
import { MockGuest } from '../../testing/guest.js'
import { parseVbdId } from '../../units.js'
import { aborted } from '../signals.js'
import type { Terminal } from '../terminal.js'
import { Workload } from './workload.js'

export interface DemoGuestOptions {
  readonly dir: string
  /** `1:xvda` */
  readonly vbd: string
  readonly reference: string
  readonly scratchFrom: number
  readonly seconds: number
  /** What the disk grows to meanwhile; the workload does not end before. */
  readonly untilBytes: number
  readonly seed: number
}

const QUEUES = 2
const RING_ORDER = 2
const DEPTH = 32
/** The whole disk is read once more in the end; one that is larger than the demo's own, for at most so long. */
const VERIFY_SECONDS = 8
const VERIFY_BYTES = 64 * 1024 * 1024

/** Runs until the signal fires. Rejects when anything is wrong with the disk. */
export async function demoGuest(
  terminal: Terminal,
  options: DemoGuestOptions,
  signal: AbortSignal,
): Promise<number> {
  const { domid, devid } = parseVbdId(options.vbd)
  const reference = await open(options.reference)
  const guest = await MockGuest.join({ dir: options.dir, domid })
  try {
    const frontend = guest.frontend(devid, { queues: QUEUES, ringOrder: RING_ORDER })
    frontend.on('resize', (size) => terminal.event('resized', { ...size }, undefined))
    const connection = await frontend.connect({ signal })
    terminal.event('connected', { connection }, undefined)
    const workload = new Workload(frontend, {
      reference,
      scratchFrom: options.scratchFrom,
      seconds: options.seconds,
      untilBytes: options.untilBytes,
      seed: options.seed,
      depth: DEPTH,
      signal,
      onProgress: (tally) => terminal.event('tally', { ...tally }, undefined),
    })
    const tally = await workload.run()
    await frontend.flush()
    const verified = await workload.verify(VERIFY_SECONDS, VERIFY_BYTES)
    const [violation] = frontend.violations
    if (violation !== undefined) {
      throw new VbdError('ERR_VBD_PROTOCOL', `the backend broke the protocol: ${violation.message}`)
    }
    terminal.event(
      'verified',
      { ...tally, verified, sizeBytes: frontend.properties.sizeBytes },
      undefined,
    )
    await aborted(AbortSignal.any([signal, guest.signal]))
    if (guest.failure !== undefined) throw guest.failure
    return 0
  } finally {
    await guest.close()
    await reference.close()
  }
}
