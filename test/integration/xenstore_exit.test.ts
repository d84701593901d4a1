/**
 * A process that used the client, the server and the mock, and closed them, ends by itself: no socket, timer or thread is
 * left. Shown by a process of its own, for a test runner keeps itself alive.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
let out: string

beforeAll(() => {
  out = mkdtempSync(join(tmpdir(), 'vbdkit-exit-'))
  writeFileSync(join(out, 'package.json'), '{ "type": "module" }')
  const folders = ['lib/xenstore', 'lib/mock'].flatMap((folder) =>
    readdirSync(join(ROOT, folder)).map((name) => `${folder}/${name}`),
  )
  for (const path of [...folders, 'lib/errors.ts', 'test/support/fake_broker.ts']) compile(path)
})
afterAll(() => rmSync(out, { recursive: true }))

function compile(path: string): void {
  const options = {
    module: ts.ModuleKind.ESNext,
    target: ts.ScriptTarget.ES2022,
    verbatimModuleSyntax: true,
  }
  const { outputText } = ts.transpileModule(readFileSync(join(ROOT, path), 'utf8'), {
    compilerOptions: options,
  })
  const file = join(out, path.replace(/\.ts$/, '.js'))
  mkdirSync(dirname(file), { recursive: true })
  writeFileSync(file, outputText)
}

/** Runs a program; undefined when it had not ended by itself after 20 s. */
async function exitOf(program: string): Promise<{ code: number | undefined; said: string }> {
  writeFileSync(join(out, 'main.js'), `${IMPORTS}${program}`)
  const child = spawn(process.execPath, [join(out, 'main.js')], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, TMPDIR: out },
  })
  let said = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => (said += text))
  const timer = setTimeout(() => child.kill('SIGKILL'), 20_000)
  const [code] = await once(child, 'close')
  clearTimeout(timer)
  return { code: code ?? undefined, said }
}

const IMPORTS = `
import { connectXenstore } from './lib/xenstore/client.js'
import { MockHost } from './lib/mock/mock_host.js'
import { FakeBroker } from './test/support/fake_broker.js'
const host = await MockHost.start({ broker: (path, told) => new FakeBroker(path, told) })
await host.createDomain(3, 1)
const xs = await connectXenstore({ path: host.paths.xenstore })
const guest = await connectXenstore({ path: host.paths.guestXenstore(3) })
await xs.watch('/w', () => {})
await xs.transaction(async (tx) => tx.write('/w/x', '1'))
`

describe('a process', () => {
  it.each([
    ['after everything was closed', 'await xs.close(); await guest.close(); await host.close()'],
    [
      'when the clients close after the server',
      'await host.close(); await xs.close(); await guest.close()',
    ],
    [
      'when a client closes while it waits for the daemon',
      `await host.close()
       const waiting = xs.read('/w').catch(() => {})
       await xs.close(); await guest.close(); await waiting`,
    ],
    [
      'after nobody was found',
      `await xs.close(); await guest.close(); await host.close()
       await connectXenstore({ path: host.paths.xenstore }).catch(() => {})`,
    ],
  ])('ends by itself %s', async (_name, program) => {
    expect(await exitOf(`${program}\nconsole.log('closed')`)).toEqual({ code: 0, said: 'closed\n' })
  })

  it('stays while its client is open', async () => {
    const program = `await guest.close()
      setTimeout(() => { console.log('still here'); process.exit(3) }, 300).unref()`
    expect(await exitOf(program)).toEqual({ code: 3, said: 'still here\n' })
  })
})
