/** The watchdog of a real daemon: one of its threads is stopped where it is, and its service manager hears no more of it. */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { PATIENT } from '../support/patience.js'
import { Running, Scene } from './cli_process.js'

/** Looked at four times in it. */
const WATCHDOG_MS = 2000

let scene: Scene
let manager: ChildProcess
let daemon: Running
let told: string[]

const fed = () => told.filter((line) => line === 'WATCHDOG=1').length

beforeEach(async () => {
  scene = await Scene.make()
  const program = scene.path('service_manager')
  await promisify(execFile)('g++', ['-std=c++20', '-o', program, 'test/support/service_manager.cc'])
  manager = spawn(program, [scene.path('notify')], { stdio: ['pipe', 'pipe', 'inherit'] })
  told = []
  createInterface({ input: manager.stdout! }).on('line', (line) => told.push(line))
  await vi.waitFor(() => expect(told).toContain('listening'), PATIENT)
  await scene.mock()
  daemon = new Running(['daemon', '--xen', scene.xen, '--reactors', '2'], {
    NOTIFY_SOCKET: scene.path('notify'),
    WATCHDOG_USEC: String(WATCHDOG_MS * 1000),
  })
})

afterEach(async () => {
  manager.kill('SIGKILL')
  await daemon.kill('SIGKILL')
  await scene.close()
})

/** The threads of the daemon, by number. */
function threads(): Map<string, string> {
  const folder = `/proc/${daemon.child.pid}/task`
  return new Map(
    readdirSync(folder).map((tid) => [tid, readFileSync(`${folder}/${tid}/comm`, 'utf8').trim()]),
  )
}

it('is not fed while a reactor hangs, which one is said, and fed again when it turns again', async () => {
  await vi.waitFor(() => expect(fed()).toBeGreaterThan(1), PATIENT)
  expect(told.filter((line) => /READY=1/.test(line))).toEqual(['READY=1|STATUS=serving 0 disks'])
  const reactors = [...threads()].filter(([, name]) => /^vbdkit-\d+$/.test(name))
  expect(reactors.length).toBe(2)
  const [tid, name] = reactors[1]!

  manager.stdin!.write(`stop ${tid}\n`)
  await vi.waitFor(() => expect(told).toContain('stopped'), PATIENT)
  const hangs = `${name} does not turn: the watchdog is not fed`
  await vi.waitFor(() => expect(told).toContain(`STATUS=${hangs}`), PATIENT)
  await vi.waitFor(() => expect(daemon.err).toContain(`vbdkit: ${hangs}`), PATIENT)
  const before = fed()
  // Nothing is an event of nothing: systemd would have ended it by then.
  await sleep(WATCHDOG_MS)
  expect(fed()).toBe(before)

  manager.stdin!.write(`go ${tid}\n`)
  await vi.waitFor(() => expect(told).toContain('STATUS=every reactor turns again'), PATIENT)
  await vi.waitFor(() => expect(fed()).toBeGreaterThan(before), PATIENT)
  const ended = once(daemon.child, 'close')
  daemon.child.kill('SIGTERM')
  await ended
  await vi.waitFor(() => expect(told.at(-1)).toBe('STOPPING=1|STATUS=stopping'), PATIENT)
}, 60_000)
