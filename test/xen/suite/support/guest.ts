/**
 * Guest: a PV domain that `xl` makes, with Debian's kernel and its own xen-blkfront. Scripts run in it through its
 * console (guest/init has the other end), one at a time.
 */
import { writeFileSync } from 'node:fs'
import { PATIENCE_MS, Program, patiently, run, sh } from './command.js'

export interface GuestOptions {
  /** As a disk line of xl's configuration has them. */
  readonly disks?: readonly string[]
  readonly vcpus?: number
  /** PV by default. */
  readonly type?: 'pv' | 'pvh'
  /** A boot loader that finds a kernel by itself, instead of Debian's kernel and our ramdisk. */
  readonly loader?: string
  /** How long it may take until it is up, milliseconds. */
  readonly patienceMs?: number
  /** The disk whose file system it goes on in, instead of staying in its ramdisk: /dev/xvda. */
  readonly root?: string
  /** More for its kernel's command line; a parameter of its block frontend as `xen_blkfront.NAME=VALUE`. */
  readonly extra?: string
  /** What xl does when it reboots. */
  readonly onReboot?: 'restart' | 'destroy'
}

export class Guest {
  readonly name: string
  readonly #patienceMs: number
  #domid: number
  #console: Program
  #up: Promise<unknown>
  #scripts = 0
  #previous: Promise<unknown> = Promise.resolve()

  /** `xl create`; resolves when xl is done, not when the guest is up. */
  static async create(name: string, options: GuestOptions = {}): Promise<Guest> {
    const path = `/tmp/${name}.cfg`
    writeFileSync(path, configuration(name, options))
    await run('xl', 'create', path)
    const domid = await domidOf(name)
    return new Guest(name, domid, await attach(domid), options.patienceMs ?? PATIENCE_MS)
  }

  private constructor(name: string, domid: number, console: Program, patienceMs: number) {
    this.name = name
    this.#patienceMs = patienceMs
    this.#domid = domid
    this.#console = console
    this.#up = this.#awaitUp()
  }

  get domid(): number {
    return this.#domid
  }

  /** All that its console has said since it was made or made again. */
  get console(): string {
    return this.#console.lines.join('\n')
  }

  /** A line of its console, from its beginning on, has this in it. */
  async says(text: string, timeoutMs = PATIENCE_MS): Promise<void> {
    const what = `${this.name} says '${text}'`
    await this.#console.line((line) => line.includes(text), what, 0, timeoutMs)
  }

  /** It has booted and takes scripts. */
  async up(): Promise<void> {
    await this.#up
  }

  /**
   * What the script printed.
   *
   * @throws when it exits with anything but 0, with all of that
   */
  async sh(script: string, timeoutMs = PATIENCE_MS): Promise<string> {
    const { status, output } = await this.status(script, timeoutMs)
    if (status !== 0) throw new Error(`in ${this.name}: exited ${status}: ${script}\n${output}`)
    return output
  }

  /** What the script exited with and printed. */
  status(script: string, timeoutMs = PATIENCE_MS): Promise<{ status: number; output: string }> {
    const result = this.#previous.then(() => this.#run(`set -e\n${script}`, timeoutMs))
    this.#previous = result.catch(() => {})
    return result
  }

  /** Its domain is gone from Xen's list. */
  async ended(): Promise<void> {
    await patiently(this.#console.ended, `${this.name} ends`, () => this.console)
    await noDomain(this.#domid)
  }

  async powerOff(): Promise<void> {
    await this.#tell('cd /; sync; mount -o remount,ro /; poweroff -f')
    await this.ended()
  }

  /** It reboots by itself, and xl makes it again, under a new number; resolves when it is up again. */
  async reboot(): Promise<void> {
    await this.#tell('reboot -f')
    await this.#rebooted()
  }

  /** As it can happen at any time: its pages are gone at once. What xl had to complain of. */
  async destroy(): Promise<string> {
    const said = await sh(`xl destroy ${this.name} 2>&1`)
    await this.ended()
    return said
  }

  async #rebooted(): Promise<void> {
    const before = this.#domid
    await patiently(this.#console.ended, `${this.name} reboots`, () => this.console)
    await noDomain(before)
    for (;;) {
      const domid = await domidOf(this.name).catch(() => before)
      if (domid !== before) {
        this.#domid = domid
        break
      }
      await domainsChange()
    }
    this.#console = await attach(this.#domid)
    this.#up = this.#awaitUp()
    await this.#up
  }

  /** For the end of a suite, however it went: destroyed, if it is still there. */
  async gone(): Promise<void> {
    if (await domidOf(this.name).catch(() => undefined)) await this.destroy()
  }

  /** Says what has no answer. */
  async #tell(script: string): Promise<void> {
    await this.#up
    this.#console.write(`0 ${Buffer.from(script).toString('base64')}\n`)
  }

  #awaitUp(): Promise<unknown> {
    const up = this.#console.line(
      (line) => line === 'guest: up',
      `${this.name} is up`,
      0,
      this.#patienceMs,
    )
    up.catch(() => {}) // for whoever asks
    return up
  }

  async #run(script: string, timeoutMs: number): Promise<{ status: number; output: string }> {
    await this.#up
    const number = ++this.#scripts
    const from = this.#console.lines.length
    this.#console.write(`${number} ${Buffer.from(script).toString('base64')}\n`)
    const answer = new RegExp(`^(.*)guest: ${number} exited (\\d+)$`)
    const { line, at } = await this.#console.line(
      (text) => answer.test(text),
      `${this.name} runs: ${script}`,
      from,
      timeoutMs,
    )
    const [, unfinished, status] = answer.exec(line) ?? []
    const output = [...this.#console.lines.slice(from, at), unfinished ?? ''].join('\n')
    return { status: Number(status), output: output.trim() }
  }
}

/** `xl console`, but that it reads what is no terminal. xenconsoled makes the other end, in its own time. */
async function attach(domid: number): Promise<Program> {
  await sh(`until xenstore-read /local/domain/${domid}/console/tty 2>&-; do sleep 0.2; done`)
  return new Program('xenconsole', '--interactive', '--type', 'pv', String(domid))
}

/** A watch, and a look every so often: polling xl would take the one processor from the backend. */
async function domainsChange(): Promise<void> {
  await run('timeout', '3', 'xenstore-watch', '-n', '2', '@releaseDomain').catch(() => {})
}

async function domidOf(name: string): Promise<number> {
  return Number(await run('xl', 'domid', name))
}

/** Resolves when Xen has let go of the domain's last page. */
async function noDomain(domid: number): Promise<void> {
  const until = Date.now() + PATIENCE_MS
  for (;;) {
    const list = await run('xl', 'list')
    if (!new RegExp(`^.*\\s${domid}\\s+\\d+\\s`, 'm').test(list)) return
    if (Date.now() > until) throw new Error(`domain ${domid} does not go:\n${list}`)
    await domainsChange()
  }
}

function configuration(name: string, options: GuestOptions): string {
  const { disks = [], vcpus = 1, type = 'pv', onReboot = 'destroy' } = options
  return [
    `name = "${name}"`,
    `type = "${type}"`,
    'memory = 320',
    `vcpus = ${vcpus}`,
    ...kernel(options),
    'on_poweroff = "destroy"',
    `on_reboot = "${onReboot}"`,
    'on_crash = "destroy"',
    `disk = [ ${disks.map((disk) => `"${disk}"`).join(', ')} ]`,
    '',
  ].join('\n')
}

function kernel({ loader, root, extra = '' }: GuestOptions): string[] {
  if (loader !== undefined) return [`kernel = "${loader}"`]
  const boot = root === undefined ? '' : ` root=${root}`
  return [
    'kernel = "/boot/vmlinux"',
    'ramdisk = "/boot/guest-ramdisk"',
    `extra = "console=hvc0 quiet panic=1 mitigations=off${boot} ${extra}"`,
  ]
}
