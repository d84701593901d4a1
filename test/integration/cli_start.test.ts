/**
 * What a command loads to begin with: its own part, and none of what serves, measures or moves data where it does none of
 * that. A command that an administrator's script runs often has to be there at once.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, it } from 'vitest'
import { Running } from './cli_process.js'

const folder = mkdtempSync(join(tmpdir(), 'vbdkit-start-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** Writes the address of every module that is loaded into the file MODULES. */
const hook = `
  import { appendFileSync } from 'node:fs'
  export async function load(url, context, next) {
    appendFileSync(process.env.MODULES, url + '\\n')
    return next(url, context)
  }`
const register = `
  import { register } from 'node:module'
  register('data:text/javascript,' + encodeURIComponent(${JSON.stringify(hook)}))`
const RECORD = `--import=data:text/javascript,${encodeURIComponent(register)}`

/** Files of dist/lib, and names of packages. */
async function loadedBy(...args: string[]): Promise<string[]> {
  const path = join(folder, 'modules')
  writeFileSync(path, '')
  const { code } = await new Running(args, { NODE_OPTIONS: RECORD, MODULES: path }).ended
  expect(code).toBe(0)
  const urls = readFileSync(path, 'utf8').trimEnd().split('\n')
  const names = urls
    .filter((url) => url.startsWith('file:'))
    .map((url) => /(?:dist\/lib|node_modules)\/(.*)$/.exec(url)?.[1] ?? url)
  return [...new Set(names)].sort()
}

const below = (...folders: string[]) => new RegExp(`^(${folders.join('|')})\\b`)
/** What serves disks. */
const SERVING = below('backend', 'platform', 'control', 'vbd/vbd', 'disk', 'engine/native')
/** What only some commands want, and what is large. */
const SPECIAL = below('bench', 'testing', 'cli/demo', 'engine/js', 'pino', 'cli-progress', '@swc')

it.each(['attach', 'detach'])('vbdkit %s loads xenstore and little else', async (command) => {
  const loaded = await loadedBy(command, '--help')
  expect(loaded).toContain('cli/commands/attach.js')
  expect(loaded).toContain('xenstore/client.js')
  expect(loaded.filter((name) => SERVING.test(name) || SPECIAL.test(name))).toEqual([])
  expect(loaded.filter((name) => /^(?!commander)/.test(name)).length).toBeLessThan(50)
})

it.each(['xl-script', 'unit'])(
  'vbdkit %s does not load the xenstore client either',
  async (command) => {
    const loaded = await loadedBy(command, '--help')
    const heavy = (name: string) =>
      SERVING.test(name) || SPECIAL.test(name) || name === 'xenstore/client.js'
    expect(loaded.filter(heavy)).toEqual([])
  },
)

it.each(['daemon', 'serve'])('vbdkit %s loads what serves, and nothing else', async (command) => {
  const loaded = await loadedBy(command, '--help')
  expect(loaded).toContain('backend.js')
  expect(loaded.filter((name) => SPECIAL.test(name))).toEqual([])
  expect(loaded.filter((name) => name.startsWith('cli/commands/'))).toEqual([
    `cli/commands/${command}.js`,
  ])
})

it('the list of commands loads none of them', async () => {
  const loaded = await loadedBy('--help')
  expect(loaded.filter((name) => name.includes('/commands/') || SPECIAL.test(name))).toEqual([])
  expect(loaded.length).toBeLessThan(20)
})
