/**
 * Disks in files on the command line: what `vbdkit init` writes is checked by tsc and served as it is, TypeScript runs
 * in a folder without any package, and real programs work on the guest's disk.
 */
import { execFile } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { mkdir, symlink, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Scene } from './cli_process.js'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const program = promisify(execFile)

let scene: Scene
beforeEach(async () => {
  scene = await Scene.make()
})
afterEach(() => scene.close())

/** Serves a disk file to a guest, whose disk is an NBD export then. */
async function exported(...args: string[]) {
  await scene.mock()
  const server = await scene.serve('1:xvda', ...args)
  const socket = scene.path('nbd.sock')
  const guest = await scene.guest('1:xvda', '--nbd', socket)
  await guest.says(/exported as/)
  return { server, guest, nbd: `nbd+unix:///?socket=${socket}` }
}

describe('vbdkit init', () => {
  it('writes a disk that is served at once, and that tsc has nothing against', async () => {
    const folder = scene.path('lab')
    const init = await scene.run('init', folder)
    expect(init.code, init.err).toBe(0)
    expect(init.out).toContain('vbdkit serve 1:xvda')
    expect(readdirSync(folder).sort()).toEqual(['disk.ts', 'package.json', 'tsconfig.json'])

    const { guest, server, nbd } = await exported(`${folder}/disk.ts`, 'size=16MiB')
    expect(server.out).toContain('serving script(ram), 16MiB')
    const commands = [
      'write -P 0x5a 4096 1M',
      'read -P 0x5a 4096 1M',
      'flush',
      'discard 0 1M',
      'read -P 0 0 1M',
    ]
    await program('qemu-io', ['-f', 'raw', nbd, ...commands.flatMap((one) => ['-c', one])])
    expect((await guest.kill('SIGINT')).code).toBe(130)
    expect((await server.kill('SIGTERM')).code).toBe(0)

    // As after `npm install`.
    await mkdir(`${folder}/node_modules/@types`, { recursive: true })
    await symlink(ROOT, `${folder}/node_modules/vbdkit`)
    await symlink(`${ROOT}/node_modules/@types/node`, `${folder}/node_modules/@types/node`)
    const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc')
    await program(process.execPath, [tsc, '-p', folder])
  })

  it('leaves what is there', async () => {
    await writeFile(scene.path('package.json'), '{}')
    const first = await scene.run('init', '--json', scene.folder)
    expect(JSON.parse(first.out)).toMatchObject({
      written: ['disk.ts', 'tsconfig.json'],
      kept: ['package.json'],
    })
    const again = await scene.run('init', scene.folder)
    expect(again.code).toBe(2)
    expect(again.err).toContain('disk.ts is there already')
    expect((await scene.run('init', scene.path('package.json/x'))).code).toBe(2)
  })
})

describe('TypeScript', () => {
  it('runs where no package is: imports of other files, types, enums, and vbdkit itself', async () => {
    await mkdir(scene.path('parts'))
    await writeFile(scene.path('parts/index.ts'), `export * from './text.js'`)
    await writeFile(
      scene.path('parts/text.ts'),
      `export enum Greeting { Short = 'hello' }\nexport interface Unused { x: number }`,
    )
    await writeFile(
      scene.path('greeter.mts'),
      `import { defineDisk, DiskDefinition } from 'vbdkit'
       import { Greeting, Unused } from './parts'

       const definition: DiskDefinition = {
         name: 'greeter', size: '1MiB',
         read(buf: Buffer, offset) {
           if (offset > 0) throw new Error('only at the front')
           buf.write(Greeting.Short)
         },
       }
       export default definition`,
    )
    const { nbd, server } = await exported(scene.path('greeter.mts'))
    const { stdout } = await program('qemu-io', ['-r', '-f', 'raw', nbd, '-c', 'read -v 0 16'])
    expect(stdout).toContain('hello')
    await program('qemu-io', ['-r', '-f', 'raw', nbd, '-c', 'read 4096 512']).catch(() => {})
    expect((await server.kill('SIGTERM')).err).toContain('only at the front')
  })

  it('runs on a thread of its own with --own-thread', async () => {
    await writeFile(
      scene.path('apart.ts'),
      `import { isMainThread } from 'node:worker_threads'
       export default ({ word }: { word: string }) => ({
         name: 'apart', size: 4096,
         read(buf: Buffer) { buf.write(word + ' ' + isMainThread) },
       })`,
    )
    const { nbd } = await exported(scene.path('apart.ts'), '--own-thread', 'word=thread')
    const { stdout } = await program('qemu-io', ['-r', '-f', 'raw', nbd, '-c', 'read -v 0 16'])
    expect(stdout).toContain('thread.false')
  })

  it('that cannot be served is told in one line', async () => {
    const complaint = async (name: string, text: string | undefined, ...args: string[]) => {
      const path = scene.path(`${name}.ts`)
      if (text !== undefined) await writeFile(path, text)
      const { code, err } = await scene.run('serve', '--xen', scene.xen, '1:xvda', path, ...args)
      expect(code, err).toBe(2)
      return err.split('\n')[0]
    }
    const bad = `export default { name: 'x', size: 1, read() {} }`
    expect(
      await Promise.all([
        complaint('none', undefined),
        complaint('import', `import './nothing.js'`),
        complaint('mistake', '\n\nconst a: = 1'),
        complaint('number', 'export default 7'),
        complaint('size', bad),
        complaint('word', bad, 'big'),
      ]),
    ).toEqual([
      expect.stringContaining('none.ts does not exist'),
      expect.stringContaining('import.ts cannot be loaded: Cannot find module'),
      expect.stringContaining('mistake.ts:3:10: Unexpected token'),
      expect.stringContaining('number.ts exports no disk'),
      expect.stringContaining('cannot have 1 bytes'),
      expect.stringContaining("'big' is no option"),
    ])
  })
})
