/** The README's programs, as they stand there: they compile, run, and do what is said. */
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync, readSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import ts from 'typescript'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { folderInPackage, programsOf, readDocument } from '../support/documents.js'
import { ENGINE } from '../support/engines.js'
import { Scene } from './cli_process.js'

const FOLDER = folderInPackage('readme')
const README = readDocument('README.md')
const programs = programsOf(README)

let scene: Scene

beforeEach(async () => {
  scene = await Scene.make()
  folderInPackage('readme')
})

afterEach(async () => {
  await scene.close()
  rmSync(FOLDER, { recursive: true, force: true })
})

/** Starts a program of the README on our mock, our image and the engine under test. */
function start(name: string, source: string) {
  const here = source
    .replace('Backend.open({', `$& engine: '${ENGINE}',`)
    .replaceAll('/tmp/xen', scene.path('xen'))
    .replaceAll('disk.img', scene.path('disk.img'))
  const { outputText, diagnostics } = ts.transpileModule(here, {
    compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext },
    reportDiagnostics: true,
  })
  expect(diagnostics).toEqual([])
  const path = join(FOLDER, `${name}.mjs`)
  writeFileSync(path, outputText)
  const child = spawn(process.execPath, [path], { stdio: ['ignore', 'pipe', 'pipe'] })
  const said = { text: '' }
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (chunk) => {
      said.text += chunk
    })
  }
  return { child, said, ended: once(child, 'close').then(([code]) => code as number | null) }
}

it('serves, resizes, tunes and watches, while a guest writes and reads', async () => {
  expect(programs).toHaveLength(4)
  const [backendProgram = '', , , guestProgram = ''] = programs
  writeFileSync(scene.path('disk.img'), '')
  truncateSync(scene.path('disk.img'), 1024 * 1024)
  await scene.mock()
  // It goes on for ever in the README; here until the first line of statistics.
  const loop = /console\.log\(stats\.read\.iops.*\)/
  expect(backendProgram).toMatch(loop)
  const backend = start(
    'backend',
    backendProgram.replace(loop, (line) => `${line}\n  break`),
  )
  const guest = start('guest', guestProgram)
  try {
    expect(await guest.ended, guest.said.text).toBe(0)
    expect(guest.said.text).toMatch(/<Buffer( 2a){50}/)
    expect(await backend.ended, backend.said.text).toBe(0)
    expect(backend.said.text).toMatch(/^x86_64-abi 2\n.*\d+ \d+ \d+\n$/)
    const written = Buffer.alloc(4096)
    const image = openSync(scene.path('disk.img'), 'r')
    readSync(image, written, 0, 4096, 4096)
    closeSync(image)
    expect(written.equals(Buffer.alloc(4096, 0x2a))).toBe(true)
  } finally {
    for (const { child } of [backend, guest]) child.kill('SIGKILL')
  }
})

it('has a disk of a few functions, which is served as it is', async () => {
  const disk = programs[1]!
  expect(disk).toContain('defineDisk')
  writeFileSync(scene.path('clock.ts'), disk)
  await scene.mock()
  await scene.serve('1:xvdb', scene.path('clock.ts'))
  const socket = scene.path('nbd.sock')
  await (await scene.guest('1:xvdb', '--nbd', socket)).says(/exported as/)
  const args = ['-r', '-f', 'raw', `nbd+unix:///?socket=${socket}`, '-c', 'read -v 0 32']
  const { stdout } = await promisify(execFile)('qemu-io', args)
  expect(stdout).toContain(`${new Date().getUTCFullYear()}.`)
})

it('has a filter of one function, and says of it what it says there', async () => {
  const [said = ''] = /^1:xvdc\n[^`]*/m.exec(README) ?? []
  writeFileSync(scene.path('disk.img'), '')
  truncateSync(scene.path('disk.img'), 1024 * 1024)
  await scene.mock()
  const program = start('filter', programs[2]!)
  expect(await program.ended, program.said.text).toBe(0)
  expect(program.said.text).toBe(said.replace(/(engine +)native/, `$1${ENGINE}`))
})
