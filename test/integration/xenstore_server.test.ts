/**
 * The in-memory server under the hands of others: Debian's own test programs and tools, which know nothing of this project.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { XenstoreServer } from '../../lib/xenstore/server.js'
import { storeSocketPath } from '../../lib/xenstore/socket_file.js'
import { whyNoDaemons, xenstoreTool } from '../xenstored/daemon.js'

const missing = await whyNoDaemons()

describe.skipIf(missing !== undefined)(
  `xenstore server under Debian's tools${missing ? ` (${missing})` : ''}`,
  () => {
    let dir: string
    let server: XenstoreServer

    beforeEach(async () => {
      dir = mkdtempSync(join(tmpdir(), 'vbdkit-tools-'))
      server = await XenstoreServer.listen(dir)
    })
    afterEach(async () => {
      await server.close()
      rmSync(dir, { recursive: true })
    })

    const tool = (name: string, ...args: string[]) =>
      xenstoreTool(storeSocketPath(dir), name, ...args).done
    const output = async (name: string, ...args: string[]) => {
      const { code, stdout, stderr } = await tool(name, ...args)
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
      return stdout
    }

    it('passes all twelve of test-xenstore', async () => {
      const { code, stdout, stderr } = await tool('test-xenstore')
      const tests = [...`${stdout}${stderr}`.matchAll(/^(\S.*?)\s*:\s/gm)].length
      expect({ code, stdout, stderr }).toMatchObject({ code: 0 })
      expect(`${stdout}${stderr}`).not.toMatch(/fail|error/i)
      expect(tests).toBe(12)
    })

    it('passes test-xenstore with tests chosen at random for two seconds', async () => {
      const { code, stdout, stderr } = await tool('test-xenstore', '-r', '2')
      expect({ code, stdout, stderr }).toMatchObject({ code: 0 })
    })

    it('writes, reads, lists and removes', async () => {
      await output('xenstore-write', '/a/b', 'hello', '/a/c', 'there')
      expect(await output('xenstore-read', '/a/b', '/a/c')).toBe('hello\nthere\n')
      expect(await output('xenstore-read', '-p', '/a/b')).toBe('/a/b: hello\n')
      expect(await output('xenstore-list', '/a')).toBe('b\nc\n')
      expect((await tool('xenstore-exists', '/a/b')).code).toBe(0)
      expect((await tool('xenstore-exists', '/a/z')).code).not.toBe(0)
      await output('xenstore-rm', '/a/b')
      expect((await tool('xenstore-exists', '/a/b')).code).not.toBe(0)
      await output('xenstore-rm', '-t', '/a/c')
      expect((await tool('xenstore-exists', '/a')).code).not.toBe(0)
      const refused = await tool('xenstore-read', '/a/b')
      expect(refused.code).not.toBe(0)
      expect(refused.stderr).toContain("couldn't read path /a/b")
    })

    it('shows permissions and changes them', async () => {
      server.store.addDomain(3)
      await output('xenstore-write', '/p/q', 'v')
      await output('xenstore-chmod', '-r', '/p', 'n3', 'r0', 'b7')
      expect(await output('xenstore-ls', '-fp', '/p')).toMatch(/^\/p\/q = "v" +\(n3,r0,b7\)\n$/)
      expect(await output('xenstore-ls', '/p')).toBe('q = "v"\n')
    })

    it('lists a directory that no single answer can hold', async () => {
      const names = Array.from({ length: 700 }, (_, i) => `${i}`.padStart(8, '0'))
      for (const name of names) server.store.write({ domid: 0 }, `/long/${name}`, '')
      expect(await output('xenstore-list', '/long')).toBe(`${names.join('\n')}\n`)
    })

    it('tells xenstore-watch of changes', async () => {
      const { child, done } = xenstoreTool(storeSocketPath(dir), 'xenstore-watch', '-n', '3', '/w')
      // Its first line says that the watch stands.
      await new Promise((resolve) => child.stdout!.once('data', resolve))
      await output('xenstore-write', '/w/x', '1')
      await output('xenstore-write', '/w/y', '2')
      const { code, stdout } = await done
      expect({ code, stdout }).toEqual({ code: 0, stdout: '/w\n/w/x\n/w/y\n' })
    })

    it('gives a domain its own view through its own socket', async () => {
      await server.addDomain(5)
      server.store.write({ domid: 0 }, '/local/domain/5', '')
      server.store.setPermissions({ domid: 0 }, '/local/domain/5', [{ access: 'n', domid: 5 }])
      server.store.write({ domid: 0 }, '/secret', 'x')
      const guest = (name: string, ...args: string[]) =>
        xenstoreTool(storeSocketPath(dir, 5), name, ...args).done
      expect((await guest('xenstore-write', 'data/mine', 'v')).code).toBe(0)
      expect((await guest('xenstore-read', '/local/domain/5/data/mine')).stdout).toBe('v\n')
      expect((await guest('xenstore-read', '/secret')).code).not.toBe(0)
      expect((await guest('xenstore-write', '/other', 'v')).code).not.toBe(0)
    })
  },
)
