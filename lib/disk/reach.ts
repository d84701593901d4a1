/**
 * Reaching a disk's files. What looks at them further on does so in the JavaScript thread, which serves everybody: a
 * file on a server that is away would hold up all of it, for as long as the server is.
 */
import { stat } from 'node:fs/promises'
import { type DiskSpec, pathsOf } from './spec.js'

/** Resolves when every file of the disk has been looked at, with whatever outcome; not before its server is back. */
export async function reach(spec: DiskSpec): Promise<void> {
  await Promise.allSettled(pathsOf(spec).map((path) => stat(path)))
}
