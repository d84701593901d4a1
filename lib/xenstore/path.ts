/** Xenstore paths: which are valid, and how they lie to one another. Pure. */

/** The C daemon's `path-max`, counted after `/local/domain/N/`. */
export const PATH_MAX = 2048
/** The protocol's bound on any absolute path (XENSTORE_ABS_PATH_MAX). */
export const ABSOLUTE_PATH_MAX = 3072

const CHARACTERS = /^[A-Za-z0-9\-/_@]+$/
const LOCAL_PREFIX = /^\/local\/domain\/\d{1,5}\//

/** `/local/domain/N`: where the relative paths of domain N begin. */
export function domainPath(domid: number): string {
  return `/local/domain/${domid}`
}

/** Names an event (`@introduceDomain`, `@releaseDomain`) and no node. */
export function isSpecial(path: string): boolean {
  return path.startsWith('@')
}

/** An absolute path of a node that the daemon accepts: no empty part, no final slash, not too long. */
export function isValidPath(path: string): boolean {
  if (path === '/') return true
  if (!path.startsWith('/') || path.endsWith('/') || path.includes('//')) return false
  const prefix = LOCAL_PREFIX.exec(path)?.[0].length ?? 0
  if (path.length > prefix + PATH_MAX || path.length >= ABSOLUTE_PATH_MAX) return false
  return CHARACTERS.test(path)
}

/** The path as seen from the root: what does not start at it starts at the caller's own domain. */
export function absolutePath(path: string, domid: number): string {
  return path.startsWith('/') ? path : `${domainPath(domid)}/${path}`
}

/** The parent of any path but `/`. */
export function parentOf(path: string): string {
  const slash = path.lastIndexOf('/')
  return slash <= 0 ? '/' : path.slice(0, slash)
}

/** The last part of any path but `/`. */
export function nameOf(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1)
}

/** The path of a child by its name; the inverse of `parentOf` and `nameOf`. */
export function childOf(path: string, name: string): string {
  return path === '/' ? `/${name}` : `${path}/${name}`
}

/** Whether `path` is `ancestor` or lies below it. */
export function isAtOrUnder(path: string, ancestor: string): boolean {
  if (ancestor === '/') return path.startsWith('/')
  return (
    path.startsWith(ancestor) && (path.length === ancestor.length || path[ancestor.length] === '/')
  )
}

/** The deepest path that holds both; `fallback` when there is none (specials, relative paths without a common part). */
export function commonAncestor(a: string, b: string, fallback: string): string {
  if (a === b) return a
  const left = a.split('/')
  const right = b.split('/')
  let same = 0
  while (same < left.length && left[same] === right[same]) same++
  const common = left.slice(0, same).join('/')
  if (common !== '') return common
  return a.startsWith('/') && b.startsWith('/') ? '/' : fallback
}
