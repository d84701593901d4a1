/** What the suite `compare` measured becomes a table of docs/real-xen.md, which has the place for it. */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'

const result = (contender: string, title: string, dom0: number) => ({
  contender,
  title,
  dom0,
  guest: 50_000,
  apart: dom0 / 1_000_000,
})

function report(results: object[], document: string): string {
  const folder = mkdtempSync(join(tmpdir(), 'vbdkit-report-'))
  const [json, markdown] = [join(folder, 'compare.json'), join(folder, 'page.md')]
  writeFileSync(json, JSON.stringify(results))
  writeFileSync(markdown, document)
  execFileSync('node', ['test/xen/report.mjs', json, markdown], { stdio: 'pipe' })
  return readFileSync(markdown, 'utf8')
}

const page = readFileSync('docs/real-xen.md', 'utf8')

test('each contender is compared with the first', () => {
  const text = report(
    [
      result('blkback', 'small', 10_000),
      result('ours', 'small', 12_500),
      result('ours', 'large', 80_000),
    ],
    page,
  )
  expect(text).toContain('| blkback | **10.0** (1.00) + 50.0 | not measured |')
  expect(text).toContain('| ours | **12.5** (1.25) + 50.0 | **80.0** (-) + 50.0 |')
  expect(text).toContain('at most 8.0 % from the best')
})

test('the rest of the page stays, however often it is written', () => {
  const once = report([result('blkback', 'small', 10_000)], page)
  const twice = report([result('blkback', 'small', 10_000)], once)
  expect(twice).toBe(once)
  const outside = (text: string) => text.replace(/<!-- compare: .*<!-- \/compare -->/s, '')
  expect(outside(once)).toBe(outside(page))
})

test('a page without a place for it is left alone', () => {
  expect(() => report([result('blkback', 'small', 10_000)], '# Another page\n')).toThrow(
    /no place for it/,
  )
})
