/** The guide's programs compile, and its first disk is made, served and looked at with the commands that stand there. */
import { execFile } from 'node:child_process'
import { rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import ts from 'typescript'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { folderInPackage, programsOf, ROOT, readDocument } from '../support/documents.js'
import { missingTools } from '../support/product_tools.js'
import { Scene } from './cli_process.js'

const GUIDE = readDocument('docs/guide.md')
const FOLDER = folderInPackage('guide')
const shell = promisify(execFile)

const programs = programsOf(GUIDE)

/** The commands below a heading. */
function commandsOf(heading: string): string[] {
  const chapter = GUIDE.split(/^## /m).find((text) => text.startsWith(heading))
  return [...(chapter ?? '').matchAll(/^\$ (.*)$/gm)].map((match) => match[1]!)
}

let scene: Scene

beforeEach(async () => {
  scene = await Scene.make()
  folderInPackage('guide')
})
afterEach(async () => {
  await scene.close()
  rmSync(FOLDER, { recursive: true, force: true })
})

/** What tsc says of these programs, in strict mode. */
function complaints(sources: readonly string[]): string[] {
  const paths = sources.map((source, i) => {
    const path = join(FOLDER, `program${i}.ts`)
    // A file without an import or export would be no module.
    writeFileSync(path, `${source}\nexport {}\n`)
    return path
  })
  const program = ts.createProgram(paths, {
    target: ts.ScriptTarget.ES2022,
    lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts'],
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    strict: true,
    noEmit: true,
    skipLibCheck: true,
    types: ['node'],
  })
  return ts
    .getPreEmitDiagnostics(program)
    .map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, ' '))
}

it('every program compiles', () => {
  expect(programs.length).toBeGreaterThan(8)
  expect(complaints(programs)).toEqual([])
})

it('a program that is wrong would be found', () => {
  expect(complaints([programs[0]!.replace("size: '1MiB'", 'size: true')])).toHaveLength(1)
})

it.skipIf(missingTools('qemu-io', 'nbdinfo') !== undefined)('the first disk is seen', async () => {
  writeFileSync(scene.path('hello.ts'), programs[0]!)
  const here = (text: string) =>
    text
      .replaceAll('/tmp/xen', scene.path('xen'))
      .replaceAll('/tmp/disk.sock', scene.path('disk.sock'))
      .replaceAll('./hello.ts', scene.path('hello.ts'))
  const said = [/mock Xen in/, /: serving /, /exported as/]
  const shown: string[] = []
  for (const command of commandsOf('Running it').map(here)) {
    const vbdkit = /^npx vbdkit (.*)$/.exec(command)
    const pattern = said.shift()
    if (vbdkit !== null && pattern !== undefined) {
      await scene.start(...vbdkit[1]!.split(' ')).says(pattern)
    } else {
      const line = command.replace(/^npx vbdkit/, `${process.execPath} ${ROOT}/bin/vbdkit.js`)
      shown.push((await shell('sh', ['-c', line])).stdout)
    }
  }
  expect(shown).toHaveLength(3)
  expect(shown[0]).toBe('1048576\n')
  expect(shown[1]).toMatch(/hello..guest/)
  expect(shown[2]).toContain('script(hello), 1MiB, read-only')
})
