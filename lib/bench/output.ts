/** Writing a report: bench.json, and bench.html beside it. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { VbdError } from '../errors.js'
import { reportHtml } from './html.js'
import type { Report } from './report.js'

/**
 * Writes both files into `folder`, which is made where there is none.
 *
 * @returns their paths
 * @throws ERR_VBD_BACKING when they cannot be written
 */
export function writeReport(folder: string, report: Report): { json: string; html: string } {
  const written = { json: join(folder, 'bench.json'), html: join(folder, 'bench.html') }
  try {
    mkdirSync(folder, { recursive: true })
    writeFileSync(written.json, `${JSON.stringify(report, undefined, 2)}\n`)
    writeFileSync(written.html, reportHtml(report))
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    throw new VbdError('ERR_VBD_BACKING', `the report cannot be written (${code})`, {
      path: folder,
      remedy: 'name a folder that can be written with --out',
      cause,
    })
  }
  return written
}
