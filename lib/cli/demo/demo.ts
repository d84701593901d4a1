/**
 * Demo: the whole way of a request in front of your eyes. Three processes (mock Xen, backend,
 * guest), a handshake told key by key, a workload in which every byte is checked, a resize while it
 * runs, and a filesystem check in the end. Owns a temporary folder and its processes; neither is
 * left behind, however it ends.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { ControlClient } from '../../control/client.js'
import type { Resized } from '../../control/target.js'
import { VbdError } from '../../errors.js'
import type { ConnectionSummary } from '../../testing/frontend_events.js'
import { formatSize, parseVbdId } from '../../units.js'
import { describeConnection } from '../../vbd/explain.js'
import type { ConnectionInfo } from '../../vbd/reporter.js'
import type { VbdStats } from '../../vbd/stats.js'
import { showStats } from '../commands/stats.js'
import { startProgress } from '../progress.js'
import { aborted } from '../signals.js'
import type { Terminal } from '../terminal.js'
import { Handshake } from './handshake.js'
import {
  checkFilesystem,
  type DemoImage,
  FILES,
  prepareImage,
  SCRATCH_BYTES,
  sameBytes,
} from './image.js'
import { Child, type ChildEvent } from './process.js'
import type { Tally } from './workload.js'

export interface DemoOptions {
  /** The operator's image; only read. One is made when it is absent. */
  readonly image: string | undefined
  readonly seconds: number
  readonly seed: number
  readonly transfer: string
}

const VBD = '1:xvda'
/** By how much the disk grows while the workload runs, and when, as a part of the workload's time. */
const GROW_BYTES = 16 * 1024 * 1024
const GROW_AT = 0.4

/** Runs the demo. Rejects with what went wrong; everything is cleaned up then, too. */
export async function demo(
  terminal: Terminal,
  options: DemoOptions,
  signal: AbortSignal,
): Promise<number> {
  // Nothing under the folder may be too long for a socket's path, whatever TMPDIR is.
  const folder = await mkdtemp(join(tmpdir(), 'vbdkit-'))
  const show = new Show(terminal, options, folder, signal)
  const running = show.run()
  const interrupted = aborted(signal).then(() => {
    throw new VbdError('ERR_VBD_ABORTED', 'interrupted')
  })
  try {
    await Promise.race([running, interrupted])
    return 0
  } catch (thrown) {
    if (signal.aborted) return 0
    throw thrown
  } finally {
    await show.stop()
    // It may be in the midst of a step; nothing writes to the folder after it.
    await running.catch(() => {})
    await rm(folder, { recursive: true, force: true })
  }
}

/** One performance. */
class Show {
  readonly #terminal: Terminal
  readonly #options: DemoOptions
  readonly #folder: string
  readonly #signal: AbortSignal
  readonly #children: Child[] = []
  readonly #handshake: Handshake
  readonly #startedMs = performance.now()
  /** Lines of the handshake wait here while a progress bar is drawn. */
  #held: string[] | undefined
  #stopping = false

  constructor(terminal: Terminal, options: DemoOptions, folder: string, signal: AbortSignal) {
    this.#terminal = terminal
    this.#signal = signal
    this.#options = options
    this.#folder = folder
    const { domid, devid } = parseVbdId(VBD)
    this.#handshake = new Handshake(domid, devid)
  }

  async run(): Promise<void> {
    const image = await this.#makeImage()
    const xen = join(this.#folder, 'xen')
    this.#heading('The handshake, key by key, as xenstore sees it')
    await this.#start('mock', ['mock', xen, '--trace']).next('ready')
    const { server, control } = await this.#serve(xen, image)
    const connected = server.next('connected')
    const guest = this.#guest(xen, image)
    const summary = await this.#orFailed(guest.next('connected'))
    this.#negotiated(await this.#orFailed(connected), summary)
    const verified = await this.#work(guest, control, image)
    const stats = await this.#statistics(control)
    await this.#end()
    await this.#check(image)
    this.#result(verified, stats)
  }

  /** Ends the processes, the guest first. Idempotent. */
  async stop(): Promise<void> {
    this.#stopping = true
    for (const child of this.#children.splice(0).reverse()) await child.stop('hurry')
  }

  async #makeImage(): Promise<DemoImage> {
    const { image: path } = this.#options
    const image = await prepareImage(this.#folder, path, this.#signal)
    const size = formatSize(image.imageBytes)
    const what =
      path === undefined
        ? `an ext4 filesystem of ${size} with ${FILES} files`
        : `a copy of ${path}, ${size}`
    this.#say(
      'image',
      { ...image },
      `Image: ${what}, and ${formatSize(SCRATCH_BYTES)} of free space behind it`,
    )
    if (path !== undefined) this.#terminal.line('       (your file is only read)')
    return image
  }

  #start(name: string, args: readonly string[]): Child {
    if (this.#stopping) throw new VbdError('ERR_VBD_ABORTED', 'interrupted')
    const child = new Child(name, args, (event) => this.#heard(name, event))
    this.#children.push(child)
    this.#say(
      'process',
      { name, pid: child.pid, args },
      `  process   ${child.pid}: vbdkit ${args.map(short).join(' ')}`,
    )
    return child
  }

  async #serve(xen: string, image: DemoImage) {
    const { transfer } = this.#options
    const args = [
      'serve',
      '--xen',
      `mock:${xen}`,
      VBD,
      'file',
      image.served,
      '--transfer',
      transfer,
      '--queues',
      '2',
    ]
    const server = this.#start('backend', args)
    const serving = await this.#orFailed(server.next('serving'))
    return { server, control: String(serving.control) }
  }

  #guest(xen: string, image: DemoImage): Child {
    const { seconds, seed } = this.#options
    return this.#start('guest', [
      'demo-guest',
      xen,
      VBD,
      ...['--reference', image.reference],
      ...['--scratch-from', String(image.imageBytes)],
      ...['--seconds', String(seconds)],
      ...['--until-bytes', String(grownBytes(image))],
      ...['--seed', String(seed)],
    ])
  }

  #heard(name: string, event: ChildEvent): void {
    if (name !== 'mock' || event.event !== 'xenstore' || this.#stopping) return
    const line = this.#handshake.line(event)
    if (line === undefined) return
    this.#terminal.result({ event: 'xenstore', path: event.path, value: event.value })
    if (this.#held === undefined) this.#terminal.line(line)
    else this.#held.push(line)
  }

  #negotiated(backend: ChildEvent, guest: ChildEvent): void {
    const connection = backend.connection as ConnectionInfo
    const summary = guest.connection as ConnectionSummary
    this.#heading('Negotiated')
    this.#terminal.line(`  the backend  ${describeConnection(connection)}`)
    const slots = `${summary.queues} rings of ${summary.ringEntries} slots`
    const segments = `${summary.indirectSegments} segments a request`
    this.#terminal.line(
      `  the guest    ${formatSize(summary.sizeBytes)} disk, ${slots}, ${segments}`,
    )
    this.#terminal.result({ event: 'negotiated', backend: connection, guest: summary })
  }

  /** The workload, with the resize in the midst of it. */
  async #work(guest: Child, control: string, image: DemoImage): Promise<ChildEvent> {
    const { seconds, seed } = this.#options
    this.#heading(
      `Random reads, writes, flushes and discards for ${seconds} s, every byte compared (seed ${seed})`,
    )
    const progress = startProgress(this.#terminal, '  working', seconds * 1000)
    this.#held = []
    let note = ''
    try {
      const verified = guest.next('verified')
      const resized = this.#resize(guest, control, image)
      // Awaited below; it may fail before.
      resized.then(
        (text) => {
          note = text
        },
        () => {},
      )
      guest.onEvent('tally', (event) => {
        const tally = event as unknown as Tally
        progress.update(tally.elapsedMs, [tallyText(tally), note].filter(Boolean).join(', '))
      })
      const result = await this.#orFailed(verified)
      progress.update(
        seconds * 1000,
        [tallyText(result as unknown as Tally), note].filter(Boolean).join(', '),
      )
      await resized
      return result
    } finally {
      progress.stop()
      const held = this.#held
      this.#held = undefined
      if (held.length > 0) this.#terminal.line('  the resize, as xenstore saw it:')
      for (const line of held) this.#terminal.line(`  ${line}`)
    }
  }

  /** Grows the disk while it is in use; resolves when the guest has seen it. */
  async #resize(guest: Child, control: string, image: DemoImage): Promise<string> {
    const dueMs = this.#options.seconds * 1000 * GROW_AT
    // The workload does not end before the guest has seen it, on a machine that is too busy for us, too.
    await this.#orFailed(guest.until('tally', (event) => Number(event.elapsedMs) > dueMs))
    const seen = guest.next('resized')
    const client = await ControlClient.connect(control)
    try {
      const sizeBytes = grownBytes(image)
      const resized = (await client.call({ verb: 'resize', vbd: VBD, sizeBytes })) as Resized
      const event = await this.#orFailed(seen)
      if (event.sizeBytes !== resized.sizeBytes) {
        throw new VbdError(
          'ERR_VBD_PROTOCOL',
          `the guest sees ${event.sizeBytes} bytes, not ${sizeBytes}`,
        )
      }
      this.#terminal.result({ event: 'resized', ...resized })
      return `grown to ${formatSize(resized.sizeBytes)}`
    } finally {
      client.close()
    }
  }

  async #statistics(control: string): Promise<VbdStats> {
    const client = await ControlClient.connect(control)
    try {
      const stats = (await client.call({ verb: 'stats', vbd: VBD })) as VbdStats
      this.#heading('Statistics of the backend')
      this.#terminal.result({ event: 'stats', stats }, showStats(stats))
      return stats
    } finally {
      client.close()
    }
  }

  /** Everyone goes home in order; whoever does not go well has something to say. */
  async #end(): Promise<void> {
    this.#heading('The end: the guest closes its disk, the backend lets go of it, the mock stops')
    for (const child of [...this.#children].reverse()) {
      const code = await child.stop('orderly')
      if (code !== 0)
        throw new VbdError(
          'ERR_VBD_STATE',
          `the ${child.name} ended with exit code ${code}: ${child.complaint}`,
        )
    }
    this.#stopping = true
    this.#children.length = 0
  }

  async #check(image: DemoImage): Promise<void> {
    this.#heading('The image')
    if (!(await sameBytes(image, this.#signal))) {
      throw new VbdError(
        'ERR_VBD_IO',
        'the image is not what it was, although each write to it held its own bytes',
      )
    }
    this.#say('same', {}, '  every byte of the image is what it was, after all those writes to it')
    if (!image.isExt) {
      this.#terminal.line('  it holds no ext2, ext3 or ext4 filesystem: e2fsck is left out')
      return
    }
    const { code, output } = await checkFilesystem(image.served, this.#signal)
    this.#terminal.line('  $ e2fsck -fn disk.img')
    for (const line of output.trim().split('\n'))
      this.#terminal.line(`  ${line.replaceAll(`${this.#folder}/`, '')}`)
    this.#terminal.result({ event: 'e2fsck', code })
    if (code !== 0)
      throw new VbdError('ERR_VBD_IO', `e2fsck found errors in the image: exit code ${code}`)
  }

  #result(verified: ChildEvent, stats: VbdStats): void {
    const seconds = (performance.now() - this.#startedMs) / 1000
    const tally = verified as unknown as Tally & { verified: number; sizeBytes: number }
    const whole = tally.verified === tally.sizeBytes ? 'the whole disk' : formatSize(tally.verified)
    const errors =
      stats.read.errors + stats.write.errors + stats.flush.errors + stats.discard.errors
    const text =
      `Good: ${tallyText(tally)}, then ${whole} read back; ` +
      `no wrong byte, ${errors} errors, ${seconds.toFixed(1)} s`
    this.#terminal.line()
    const { verified: verifiedBytes, reads, writes, flushes, discards } = tally
    this.#say(
      'result',
      { ok: true, verifiedBytes, reads, writes, flushes, discards, errors, seconds },
      text,
    )
  }

  /** What we wait for, or the end of any process that should be running. */
  #orFailed<T>(wanted: Promise<T>): Promise<T> {
    return Promise.race([wanted, ...this.#children.map((child) => child.failed())])
  }

  #heading(text: string): void {
    this.#terminal.line()
    this.#terminal.line(this.#terminal.style('bold', text))
  }

  #say(event: string, fields: Record<string, unknown>, human: string): void {
    this.#terminal.event(event, fields, human)
  }
}

function grownBytes(image: DemoImage): number {
  return image.imageBytes + SCRATCH_BYTES + GROW_BYTES
}

function tallyText({ reads, writes, flushes, discards }: Tally): string {
  return `${reads} reads, ${writes} writes, ${flushes} flushes, ${discards} discards`
}

function short(arg: string): string {
  return arg.startsWith('/') ? basename(arg) : arg.replace(/^mock:.*\//, 'mock:')
}
