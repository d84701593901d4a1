/**
 * Hooks of Node.js's module loader, with which programs in TypeScript run as they are: types are erased, `./x.js` is
 * found in `./x.ts`, and `vbdkit` is this very package wherever the program lies. No network, no configuration.
 *
 * Runs on the loader's own thread where Node.js has one (module.register), else on every thread that asked for it.
 * Neither types nor versions are checked: that is the editor's and tsc's.
 */
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { fileURLToPath, pathToFileURL } from 'node:url'

interface Resolved {
  readonly url: string
}
interface Loaded {
  readonly format: string
  readonly source?: string
  readonly shortCircuit?: boolean
}
type Next<T> = (specifier: string, context?: unknown) => T
type Maybe<T> = T | Promise<T>

const here = createRequire(import.meta.url)

/** Four megabytes: loaded when there is a program to transform. */
const swc = () => here('@swc/wasm-typescript') as typeof import('@swc/wasm-typescript')

/** What a specifier of a TypeScript program may stand for, besides itself: `./x.js` for `./x.ts`. */
const SUBSTITUTES: readonly [RegExp, readonly string[]][] = [
  [/\.js$/, ['.ts']],
  [/\.mjs$/, ['.mts']],
  [/\.cjs$/, ['.cts']],
  // Without an extension, as bundlers have it.
  [/(?<!\.[cm]?[jt]s|\.json|\.node)$/, ['.ts', '.js', '/index.ts']],
]

/** Finds modules. */
export function resolve(
  specifier: string,
  context: unknown,
  next: Next<Maybe<Resolved>>,
): Maybe<Resolved> {
  if (/^vbdkit(\/|$)/.test(specifier)) {
    return next(pathToFileURL(here.resolve(specifier)).href, context)
  }
  if (!/^(\.{0,2}\/|file:)/.test(specifier)) return next(specifier, context)
  const rule = SUBSTITUTES.find(([pattern]) => pattern.test(specifier))
  if (rule === undefined) return next(specifier, context)
  const [pattern, endings] = rule
  const others = endings.map((ending) => specifier.replace(pattern, ending))
  return firstOf([specifier, ...others], (one) => next(one, context))
}

/** The first that is found; the failure of the first where none is. Sync as long as `next` is. */
function firstOf<T>(candidates: readonly string[], find: (one: string) => Maybe<T>): Maybe<T> {
  const [one, ...others] = candidates
  const orElse = (thrown: unknown): Maybe<T> => {
    if (others.length === 0 || !isMissing(thrown)) throw thrown
    return other(thrown)
  }
  const other = (first: unknown): Maybe<T> => {
    const failed = (thrown: unknown): never => {
      throw isMissing(thrown) ? first : thrown
    }
    try {
      const found = firstOf(others, find)
      return found instanceof Promise ? found.catch(failed) : found
    } catch (thrown) {
      return failed(thrown)
    }
  }
  try {
    const found = find(one!)
    return found instanceof Promise ? found.catch(orElse) : found
  } catch (thrown) {
    return orElse(thrown)
  }
}

function isMissing(thrown: unknown): boolean {
  const { code } = (thrown ?? {}) as NodeJS.ErrnoException
  return code === 'ERR_MODULE_NOT_FOUND' || code === 'ERR_UNSUPPORTED_DIR_IMPORT'
}

/** Loads modules: TypeScript without its types. */
export function load(url: string, context: unknown, next: Next<Maybe<Loaded>>): Maybe<Loaded> {
  const match = /^file:.*\.([mc]?)ts$/.exec(url)
  if (match === null) return next(url, context)
  const format = match[1] === 'c' ? 'commonjs' : 'module'
  return { format, source: withoutTypes(url, format === 'module'), shortCircuit: true }
}

function withoutTypes(url: string, module: boolean): string {
  const filename = fileURLToPath(url)
  const text = readFileSync(filename, 'utf8')
  try {
    const { code, map } = swc().transformSync(text, {
      mode: 'transform',
      module,
      filename: url,
      sourceMap: true,
    })
    const inline = Buffer.from(map ?? '{}').toString('base64')
    return `${code}\n//# sourceMappingURL=data:application/json;base64,${inline}`
  } catch (thrown) {
    const { message, startLine, startColumn } = thrown as Record<string, unknown>
    const where = startLine === undefined ? '' : `:${startLine}:${Number(startColumn) + 1}`
    throw new SyntaxError(`${filename}${where}: ${message ?? thrown}`)
  }
}
