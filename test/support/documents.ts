/** What documents show: their programs, and a folder in which those resolve the package by its own name. */
import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** Of the repository. */
export const ROOT = fileURLToPath(new URL('../..', import.meta.url))

/** A document of the repository, by its path there. */
export function readDocument(path: string): string {
  return readFileSync(join(ROOT, path), 'utf8')
}

/** The TypeScript blocks of a document, in order. */
export function programsOf(markdown: string): string[] {
  return [...markdown.matchAll(/```ts\n([\s\S]*?)```/g)].map((match) => match[1] ?? '')
}

/** Made where it is not; of this process alone. The caller removes it. */
export function folderInPackage(name: string): string {
  const folder = join(ROOT, '.cache', `${name}-${process.pid}`)
  mkdirSync(folder, { recursive: true })
  return folder
}
