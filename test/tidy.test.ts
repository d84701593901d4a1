/**
 * The rules of the house, checked by reading the sources: who may use whom, what only one place may know, and the form
 * that every file has. Each rule is a function from files to complaints, and each is first shown a sample it must refuse.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'
import { describe, expect, it } from 'vitest'

const ROOT = fileURLToPath(new URL('..', import.meta.url))

/** A text file; `path` is relative to the root, with forward slashes. */
interface Source {
  readonly path: string
  readonly text: string
}

type Rule = (files: readonly Source[]) => string[]

function read(folder: string, suffixes: readonly string[]): Source[] {
  const full = join(ROOT, folder)
  if (!existsSync(full)) return []
  return readdirSync(full, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && suffixes.some((suffix) => entry.name.endsWith(suffix)))
    .map((entry) => join(entry.parentPath, entry.name))
    .sort()
    .map((path) => ({ path: path.slice(ROOT.length), text: readFileSync(path, 'utf8') }))
}

function readOne(path: string): Source {
  return { path, text: readFileSync(join(ROOT, path), 'utf8') }
}

const native = read('native', ['.h', '.cc'])
const lib = read('lib', ['.ts'])
const tests = [
  ...read('test', ['.ts', '.cc', '.h', '.sh']),
  // Programs of the emulated machine, whose names are theirs there.
  ...read('test/xen/dom0', ['']),
  ...read('test/xen/guest', ['']),
]
const rest = [
  ...read('scripts', ['.sh', '.js', '.mjs']),
  ...read('bin', ['.js']),
  ...[
    'README.md',
    'ARCHITECTURE.md',
    'CHANGELOG.md',
    'package.json',
    'package-lock.json',
    'tsconfig.json',
  ]
    .filter((path) => existsSync(join(ROOT, path)))
    .map(readOne),
  ...['binding.gyp', 'CMakeLists.txt', '.npmrc', '.ci/run', '.gitignore', 'vitest.config.ts']
    .filter((path) => existsSync(join(ROOT, path)))
    .map(readOne),
]

/** The code of a C++ or TypeScript file without its comments; strings stay. Line numbers are kept. */
function withoutComments(text: string): string {
  return text.replace(
    /("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|\/\/[^\n]*|\/\*[\s\S]*?\*\//g,
    (all, string) => (string === undefined ? all.replace(/[^\n]/g, ' ') : all),
  )
}

function matches(source: Source, pattern: RegExp): { line: number; match: RegExpMatchArray }[] {
  const code = withoutComments(source.text)
  return [...code.matchAll(new RegExp(pattern.source, `${pattern.flags.replace('g', '')}g`))].map(
    (match) => ({ line: code.slice(0, match.index).split('\n').length, match }),
  )
}

// ---------------------------------------------------------------------------------------------------------------------
// Who may use whom: native

/** Folder → what its files may include besides their own folder: a folder, or one header. */
const NATIVE_LAYERS: Record<string, readonly string[]> = {
  base: [],
  xen: ['base'],
  blkif: ['base'],
  block: ['base'],
  stages: ['base', 'block'],
  memory: ['base', 'xen', 'blkif', 'block'],
  engine: ['base', 'xen', 'blkif', 'block', 'memory'],
  guest: ['base', 'blkif/wire.h', 'blkif/shared.h'],
  bench: ['base', 'xen', 'blkif', 'block', 'memory', 'guest'],
  node: ['base', 'xen', 'blkif', 'block', 'stages', 'memory', 'engine', 'guest'],
}

/** The headers of xen/ that are interfaces: all that anyone but node/ sees of it. */
const XEN_INTERFACES = ['xen/xen.h', 'xen/grant_table.h', 'xen/event_channel.h']

const nativeImports: Rule = (files) =>
  files.flatMap((file) => {
    const folder = file.path.split('/')[1] ?? ''
    const allowed = NATIVE_LAYERS[folder]
    if (allowed === undefined) return [`${file.path}: no such layer: ${folder}`]
    return matches(file, /#\s*include\s*"([^"]+)"/).flatMap(({ line, match }) => {
      const header = match[1] ?? ''
      const target = header.split('/')[0] ?? ''
      if (target === folder) return []
      const layered = allowed.includes(target) || allowed.includes(header)
      const interfaces = target !== 'xen' || folder === 'node' || XEN_INTERFACES.includes(header)
      return layered && interfaces
        ? []
        : [`${file.path}:${line}: ${folder}/ may not include ${header}`]
    })
  })

/** What only some files may name: in code, comments aside. */
const NATIVE_SECRETS: readonly { what: string; pattern: RegExp; where: RegExp }[] = [
  {
    what: "Xen's libraries and devices",
    pattern:
      /\b(xengnttab_|xenevtchn_|xenforeignmemory_|xentoollog_)|\/dev\/xen\/|<xen\/|<xen(gnttab|evtchn|ctrl)\.h>/,
    where: /^native\/xen\/host_/,
  },
  {
    what: 'liburing',
    pattern: /<liburing|\bio_uring_\w+\s*\(/,
    where: /^native\/(block|bench)\/uring/,
  },
  { what: 'Node-API', pattern: /<napi\.h>|<node_api\.h>|\bNapi::/, where: /^native\/node\// },
  {
    what: 'OpenSSL',
    pattern: /<openssl\/|\bEVP_|libcrypto/,
    where: /^native\/stages\/xts\.(cc|h)$/,
  },
  { what: 'libuv', pattern: /[<"]uv\.h[>"]/, where: /^$/ },
  { what: 'V8', pattern: /<(v8|node|nan)\.h>/, where: /^$/ },
]

const nativeSecrets: Rule = (files) =>
  files.flatMap((file) =>
    NATIVE_SECRETS.filter(({ where }) => !where.test(file.path)).flatMap(({ what, pattern }) =>
      matches(file, pattern).map(
        ({ line, match }) => `${file.path}:${line}: knows ${what}: ${match[0]}`,
      ),
    ),
  )

// ---------------------------------------------------------------------------------------------------------------------
// Who may use whom: lib

/** What every module may use, and nothing of which uses anything but its like. */
const BASE = ['errors', 'emitter', 'deadline', 'units']

/** Module of lib (a folder, or a file at its top) → the modules it may import, besides BASE. */
const LIB_LAYERS: Record<string, readonly string[]> = {
  ...Object.fromEntries(BASE.map((name, i) => [name, BASE.slice(0, i)])),
  xenstore: [],
  xenbus: ['xenstore'],
  disk: [],
  engine: ['disk'],
  mock: ['xenstore', 'engine'],
  host: ['xenstore', 'engine'],
  store: ['xenstore', 'engine', 'mock'],
  platform: ['xenstore', 'engine', 'mock', 'store'],
  vbd: ['xenstore', 'xenbus', 'disk', 'engine'],
  backend: ['xenstore', 'xenbus', 'disk', 'engine', 'mock', 'store', 'platform', 'vbd'],
  control: ['xenstore', 'disk', 'vbd', 'backend'],
  daemon: ['xenstore', 'xenbus', 'disk', 'vbd', 'backend'],
  testing: ['xenstore', 'xenbus', 'engine', 'mock'],
  bench: ['xenstore', 'disk', 'engine', 'mock', 'platform', 'vbd', 'backend', 'testing'],
  cli: [
    'host',
    'bench',
    'xenstore',
    'xenbus',
    'disk',
    'engine',
    'mock',
    'store',
    'platform',
    'vbd',
    'backend',
    'control',
    'daemon',
    'testing',
  ],
  typescript: ['disk'],
  index: ['disk', 'engine', 'mock', 'store', 'platform', 'vbd', 'backend', 'xenbus'],
}

/** Contracts: types alone, which those below the modules that fulfil them may name, too. */
const CONTRACTS = ['lib/engine/engine.ts', 'lib/engine/addon.ts']

/** Finer than whole modules: this file may not import those, whatever the table says. */
const LIB_NEVER: readonly { from: RegExp; to: RegExp; why: string }[] = [
  {
    from: /^lib\/(disk|engine\/js)\//,
    to: /^lib\/xen(store|bus)\//,
    why: 'disks and the JavaScript engine never see xenstore',
  },
  {
    from: /^lib\/(?!testing\/|cli\/|bench\/)/,
    to: /^lib\/testing\//,
    why: 'only the command line and the benchmark use testing/',
  },
  {
    from: /^lib\/(?!bench\/|cli\/)/,
    to: /^lib\/bench\//,
    why: 'only the command line uses bench/',
  },
]

interface Import {
  readonly line: number
  /** Relative to the root, or a package's name. */
  readonly target: string
  readonly typeOnly: boolean
}

function importsOf(file: Source): Import[] {
  const tree = ts.createSourceFile(file.path, file.text, ts.ScriptTarget.ES2022, true)
  const found: Import[] = []
  const add = (node: ts.Node, specifier: ts.Node | undefined, typeOnly: boolean) => {
    if (specifier === undefined || !ts.isStringLiteral(specifier)) return
    const name = specifier.text
    const target = name.startsWith('.')
      ? normalize(join(dirname(file.path), name)).replace(/\.js$/, '.ts')
      : name
    found.push({
      line: tree.getLineAndCharacterOfPosition(node.getStart()).line + 1,
      target,
      typeOnly,
    })
  }
  const visit = (node: ts.Node): void => {
    if (ts.isImportDeclaration(node)) {
      add(
        node,
        node.moduleSpecifier,
        node.importClause?.phaseModifier === ts.SyntaxKind.TypeKeyword,
      )
    } else if (ts.isExportDeclaration(node)) {
      add(node, node.moduleSpecifier, node.isTypeOnly)
    } else if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword) {
      add(node, node.arguments[0], false)
    } else if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) {
      add(node, node.argument.literal, true)
    }
    ts.forEachChild(node, visit)
  }
  visit(tree)
  return found
}

/** `lib/vbd/stats.ts` → `vbd`, `lib/errors.ts` → `errors`. */
function moduleOf(path: string): string {
  return (path.split('/')[1] ?? '').replace(/\.ts$/, '')
}

const libImports: Rule = (files) =>
  files.flatMap((file) => {
    const from = moduleOf(file.path)
    const allowed = LIB_LAYERS[from]
    if (allowed === undefined) return [`${file.path}: no such module: ${from}`]
    return importsOf(file)
      .filter(({ target }) => target.startsWith('lib/'))
      .flatMap(({ line, target, typeOnly }) => {
        const at = `${file.path}:${line}: may not import ${target}`
        const never = LIB_NEVER.find((rule) => rule.from.test(file.path) && rule.to.test(target))
        if (never !== undefined) return [`${at}: ${never.why}`]
        if (typeOnly && CONTRACTS.includes(target)) return []
        const to = moduleOf(target)
        const below =
          to === from || allowed.includes(to) || (BASE.includes(to) && !BASE.includes(from))
        return below ? [] : [`${at}: ${from} is not above ${to}`]
      })
  })

/** A layer table without cycles: every module's users are above it. */
const layersAreAcyclic = (layers: Record<string, readonly string[]>): string[] => {
  const complaints: string[] = []
  const visit = (name: string, trail: readonly string[]): void => {
    if (trail.includes(name)) complaints.push([...trail, name].join(' → '))
    else for (const next of layers[name.split('/')[0] ?? ''] ?? []) visit(next, [...trail, name])
  }
  for (const name of Object.keys(layers)) visit(name, [])
  return complaints
}

/** Packages, and the one part of lib that may use each; node: modules are free. */
const PACKAGES: Record<string, RegExp> = {
  commander: /^lib\/cli\//,
  'cli-progress': /^lib\/cli\//,
  pino: /^lib\/cli\//,
  zod: /^lib\/(cli|control)\/|^lib\/vbd\/trace_file\.ts/,
  '@swc/wasm-typescript': /^lib\/disk\/typescript_hooks\.ts$/,
  'node-gyp-build': /^lib\/engine\/load_addon\.ts$/,
}

const packages: Rule = (files) =>
  files.flatMap((file) =>
    importsOf(file)
      .filter(({ target }) => !target.startsWith('lib/') && !target.startsWith('node:'))
      .filter(({ target }) => !PACKAGES[target]?.test(file.path))
      .map(({ line, target }) => `${file.path}:${line}: may not use the package ${target}`),
  )

/** Only engine/load_addon.ts loads the addon: no other file names a .node file, or the loader. */
const addonLoader: Rule = (files) =>
  files
    .filter(({ path }) => path !== 'lib/engine/load_addon.ts')
    .flatMap((file) =>
      matches(file, /process\.dlopen|node-gyp-build|\.node['"`]/).map(
        ({ line }) => `${file.path}:${line}: only lib/engine/load_addon.ts loads the addon`,
      ),
    )

// ---------------------------------------------------------------------------------------------------------------------
// Form

const MAX_LINES = 450
const MAX_COLUMNS = 120

const size: Rule = (files) =>
  files.flatMap(({ path, text }) => {
    const lines = text.replace(/\n$/, '').split('\n')
    const long = lines.flatMap((line, i) =>
      line.length > MAX_COLUMNS
        ? [`${path}:${i + 1}: ${line.length} columns, at most ${MAX_COLUMNS}`]
        : [],
    )
    return lines.length > MAX_LINES
      ? [`${path}: ${lines.length} lines, at most ${MAX_LINES}`, ...long]
      : long
  })

/** A .cc file is described by the header of its name, where it has one. */
const header: Rule = (files) =>
  files
    .filter(({ text }) => !/^(#![^\n]*\n)?(\/\/ \S|\/\*\*)/.test(text))
    .filter(
      ({ path }) =>
        !path.endsWith('.cc') || !files.some((other) => other.path === path.replace(/\.cc$/, '.h')),
    )
    .map(({ path }) => `${path}: no header comment`)

/** Every exported function and class says what it is for; the file's own header comment may have said it of its class. */
const docstrings: Rule = (files) =>
  files.flatMap((file) => {
    const tree = ts.createSourceFile(file.path, file.text, ts.ScriptTarget.ES2022, true)
    return tree.statements.flatMap((statement) => {
      const exported =
        ts.canHaveModifiers(statement) &&
        ts.getModifiers(statement)?.some((m) => m.kind === ts.SyntaxKind.ExportKeyword)
      if (!exported || ts.getJSDocCommentsAndTags(statement).length > 0) return []
      const names =
        ts.isFunctionDeclaration(statement) || ts.isClassDeclaration(statement)
          ? [statement.name?.text ?? 'default']
          : ts.isVariableStatement(statement)
            ? statement.declarationList.declarations
                .filter(
                  ({ initializer: i }) =>
                    i && (ts.isArrowFunction(i) || ts.isFunctionExpression(i)),
                )
                .map(({ name }) => name.getText())
            : []
      const line = tree.getLineAndCharacterOfPosition(statement.getStart()).line + 1
      // An overload's documentation stands on its first signature.
      const documented = (name: string) =>
        tree.statements.some(
          (other) =>
            ts.isFunctionDeclaration(other) &&
            other.name?.text === name &&
            ts.getJSDocCommentsAndTags(other).length > 0,
        )
      const described = (name: string) =>
        ts.isClassDeclaration(statement) && new RegExp(`\\b${name}\\b`).test(headerOf(file.text))
      return names
        .filter((name) => !documented(name) && !described(name))
        .map((name) => `${file.path}:${line}: ${name} has no docstring`)
    })
  })

/** The comment that a file begins with. */
function headerOf(text: string): string {
  return /^\s*\/\*\*[\s\S]*?\*\//.exec(text)?.[0] ?? ''
}

/** Nothing of the machine or the place where it was written. Pieced together, so that this file does not match itself. */
const BANNED: readonly RegExp[] = [
  new RegExp(['(^|[\\s"\'`(=])/(wo', 'rk|ro', 'ot|ho', 'me)/\\w'].join('')),
  new RegExp(
    ['regis', 'try\\.(npm|yarn)|npm', '\\.pkg|artif', 'actory|ver', 'daccio'].join(''),
    'i',
  ),
  new RegExp(['\\biss', 'ue #?\\d|\\bTO', 'DO\\b|\\bFIX', 'ME\\b|\\bX', 'XX\\b'].join('')),
]

const banned: Rule = (files) =>
  files.flatMap(({ path, text }) =>
    text
      .split('\n')
      .flatMap((line, i) =>
        BANNED.filter((word) => word.test(line)).map(
          (word) => `${path}:${i + 1}: ${word.exec(line)?.[0]?.trim()}`,
        ),
      ),
  )

/** The lock file holds no addresses: anyone's registry serves. */
const lockFile: Rule = (files) =>
  files.flatMap(({ path, text }) =>
    Object.entries<Record<string, unknown>>(JSON.parse(text).packages).flatMap(([name, entry]) =>
      'resolved' in entry ? [`${path}: ${name} says where it was resolved`] : [],
    ),
  )

/** What is on disk is what is built: `listed` against the .cc files among `files`. */
function sourceList(files: readonly Source[], listed: readonly string[]): string[] {
  const onDisk = files.map(({ path }) => path).filter((path) => path.endsWith('.cc'))
  return [
    ...onDisk
      .filter((path) => !listed.includes(path))
      .map((path) => `${path}: not in native/sources.gypi`),
    ...listed
      .filter((path) => !onDisk.includes(path))
      .map((path) => `${path}: listed, but not there`),
    ...listed
      .filter((path, i) => listed.indexOf(path) !== i)
      .map((path) => `${path}: listed twice`),
  ]
}

// ---------------------------------------------------------------------------------------------------------------------

/** One rule with files it must refuse, each alone, and one it must accept. */
function check(
  name: string,
  rule: Rule,
  files: readonly Source[],
  bad: readonly Source[],
  good: Source,
): void {
  describe(name, () => {
    it.each(bad)('refuses a bad $path', (sample) => {
      expect(rule([sample])).not.toEqual([])
    })
    it('accepts a good sample', () => {
      expect(rule([good])).toEqual([])
    })
    it('holds', () => {
      expect(files.length).toBeGreaterThan(0)
      expect(rule(files)).toEqual([])
    })
  })
}

const sample = (path: string, text: string): Source => ({ path, text })

check(
  'native layers include only what is below them',
  nativeImports,
  native,
  [
    sample('native/base/x.h', '#include "blkif/ring.h"'),
    sample('native/blkif/x.cc', '#include "xen/xen.h"'),
    sample('native/block/x.cc', '#include "blkif/wire.h"'),
    sample('native/memory/x.cc', '#include "engine/queue.h"'),
    sample('native/memory/y.cc', '#include "xen/mock_client.h"'),
    sample('native/guest/x.cc', '#include "blkif/ring.h"'),
    sample('native/engine/z.cc', '#include "stages/open_disk.h"'),
    sample('native/other/x.cc', ''),
  ],
  sample(
    'native/memory/x.cc',
    '#include "memory/y.h"\n#include "xen/grant_table.h"\n// #include "node/addon.h"\n',
  ),
)
check(
  'only one place in native knows each outside thing',
  nativeSecrets,
  native,
  [
    sample('native/xen/mock_broker.cc', 'xengnttab_open(nullptr, 0);'),
    sample('native/engine/reactor.cc', 'open("/dev/xen/gntdev", O_RDWR);'),
    sample('native/engine/x.cc', '#include <liburing.h>'),
    sample('native/block/sync_device.cc', 'io_uring_queue_init(1, &r, 0);'),
    sample('native/engine/y.h', '#include <napi.h>'),
    sample('native/node/x.cc', '#include <uv.h>'),
    sample('native/stages/encrypt.cc', '#include <openssl/evp.h>'),
  ],
  sample(
    'native/block/uring.cc',
    '#include <liburing.h>\n// napi.h and xengnttab_open are only words here\n',
  ),
)
check(
  'lib modules import only what is below them',
  libImports,
  lib,
  [
    sample('lib/errors.ts', "import { x } from './units.js'"),
    sample('lib/xenstore/client.ts', "import { x } from '../xenbus/device.js'"),
    sample('lib/disk/plan.ts', "import type { Xenstore } from '../xenstore/xenstore.js'"),
    sample('lib/engine/js/ring.ts', "const x = await import('../../xenstore/client.js')"),
    sample('lib/vbd/vbd.ts', "export { x } from '../backend.js'"),
    sample('lib/backend.ts', "import { MockFrontend } from './testing/index.js'"),
    sample('lib/control/server.ts', "let x: import('../cli/main.js').X"),
    sample('lib/elsewhere/x.ts', ''),
  ],
  sample(
    'lib/vbd/vbd.ts',
    "import { a } from './stats.js'\nimport { b } from '../engine/engine.js'\nimport 'node:fs'",
  ),
)
check(
  'each package has one user',
  packages,
  lib,
  [
    sample('lib/vbd/vbd.ts', "import { Command } from 'commander'"),
    sample('lib/cli/main.ts', "import x from 'left-pad'"),
    sample('lib/backend.ts', "import load from 'node-gyp-build'"),
  ],
  sample('lib/cli/main.ts', "import { Command } from 'commander'\nimport 'node:fs'"),
)
check(
  'only engine/load_addon.ts loads the addon',
  addonLoader,
  lib,
  [
    sample('lib/mock/mock_host.ts', "require('../../build/Release/vbdkit.node')"),
    sample('lib/cli/main.ts', "import load from 'node-gyp-build'"),
  ],
  sample('lib/engine/load_addon.ts', "import load from 'node-gyp-build'"),
)
check(
  `files are at most ${MAX_LINES} lines of ${MAX_COLUMNS} columns`,
  size,
  [...native, ...lib],
  [
    sample('native/long.cc', 'x\n'.repeat(MAX_LINES + 1)),
    sample('lib/wide.ts', 'x'.repeat(MAX_COLUMNS + 1)),
  ],
  sample('lib/x.ts', `${'x'.repeat(MAX_COLUMNS)}\n`.repeat(MAX_LINES)),
)
check(
  'every file starts with a comment that says what it is',
  header,
  [...native, ...lib],
  [sample('native/x.cc', '#pragma once\n// late'), sample('lib/x.ts', "import './y.js'\n")],
  sample('lib/x.ts', '#!/usr/bin/env node\n/** x: what it is. */\n'),
)
check(
  'every exported function and class has a docstring',
  docstrings,
  lib,
  [
    sample('lib/a.ts', '/** Header. */\nimport "node:fs"\nexport function f() {}'),
    sample('lib/b.ts', 'import "node:fs"\nexport class C {}'),
    sample('lib/c.ts', 'import "node:fs"\nexport const f = async () => 1'),
  ],
  sample(
    'lib/d.ts',
    '/** Header. */\n/** Does it. */\nexport function f(x: 1): void\nexport function f(x: number) {}\nfunction g() {}\nexport const n = 1',
  ),
)
check(
  'the text speaks of the project alone',
  banned,
  [...native, ...lib, ...tests, ...rest],
  [
    sample('lib/x.ts', ['open("/ro', 'ot/x")'].join('')),
    sample('package-lock.json', ['"resolved": "https://regis', 'try.npmjs.org/x"'].join('')),
    sample('README.md', ['see iss', 'ue 2'].join('')),
    sample('native/x.cc', ['// TO', 'DO: later'].join('')),
  ],
  sample('lib/x.ts', 'open("/var/lib/x.raw") // the rest of the work'),
)
check(
  'the lock file names no host',
  lockFile,
  [readOne('package-lock.json')],
  [
    sample(
      'package-lock.json',
      '{ "packages": { "node_modules/x": { "resolved": "https://example.org/x.tgz" } } }',
    ),
  ],
  sample('package-lock.json', '{ "packages": { "node_modules/x": { "version": "1.0.0" } } }'),
)

/** Integration tests run on either engine, but for those that scripts/test.sh names. */
function engineOfTests(files: readonly Source[], without: readonly string[]): string[] {
  const byEngine = /from '(\.\.\/support\/(product_world|engines)|\.\/cli_process)\.js'/
  const nameOf = ({ path }: Source) => /^test\/integration\/(\w+)\.test\.ts$/.exec(path)?.[1] ?? ''
  const named = files.filter((file) => nameOf(file) !== '')
  return [
    ...named
      .filter((file) => !without.includes(nameOf(file)) && !byEngine.test(file.text))
      .map(({ path }) => `${path}: serves on no engine of test/support/engines.ts`),
    ...without
      .filter((name) => !named.some((file) => nameOf(file) === name))
      .map((name) => `scripts/test.sh names ${name}, which is not there`),
  ]
}

describe('integration tests run on either engine', () => {
  const list = /^WITHOUT_ENGINE=\(([^)]*)\)/m.exec(readOne('scripts/test.sh').text)?.[1] ?? ''
  it('refuses one that runs on none, and a name too many', () => {
    const one = sample('test/integration/a.test.ts', "import { B } from '../../lib/backend.js'")
    expect(engineOfTests([one], [])).toHaveLength(1)
    expect(engineOfTests([one], ['a', 'b'])).toHaveLength(1)
    const good = sample('test/integration/a.test.ts', "import { S } from './cli_process.js'")
    expect(engineOfTests([good], [])).toEqual([])
  })
  it('holds', () => {
    expect(list).toContain('xenstore_client')
    expect(engineOfTests(tests, list.trim().split(/\s+/))).toEqual([])
  })
})

describe('native/sources.gypi lists what is there', () => {
  const { core_sources, addon_sources, bench_sources } = JSON.parse(
    readOne('native/sources.gypi').text,
  ).variables as {
    core_sources: string[]
    bench_sources: string[]
    addon_sources: string[]
  }
  it('refuses a file too many, too few, and twice', () => {
    expect(sourceList([sample('native/a.cc', '')], [])).toHaveLength(1)
    expect(sourceList([], ['native/a.cc'])).toHaveLength(1)
    expect(sourceList([sample('native/a.cc', '')], ['native/a.cc', 'native/a.cc'])).toHaveLength(1)
  })
  it('holds', () => {
    expect(sourceList(native, [...core_sources, ...addon_sources, ...bench_sources])).toEqual([])
  })
  it('keeps the addon apart from the core', () => {
    expect(core_sources.filter((path) => path.startsWith('native/node/'))).toEqual([])
    expect(addon_sources.filter((path) => !path.startsWith('native/node/'))).toEqual([])
  })
})

describe('the tables themselves', () => {
  it('find a cycle', () => {
    expect(layersAreAcyclic({ a: ['b'], b: ['a'] })).not.toEqual([])
  })
  it('have none', () => {
    expect(layersAreAcyclic(NATIVE_LAYERS)).toEqual([])
    expect(layersAreAcyclic(LIB_LAYERS)).toEqual([])
  })
})
