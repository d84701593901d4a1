/**
 * report.mjs COMPARE.JSON [DOCUMENT]: writes what the suite `compare` measured into the document, between its markers;
 * docs/real-xen.md by default.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const BEGIN = '<!-- compare: written by `npm run test:xen -- compare` -->'
const END = '<!-- /compare -->'

/**
 * What both domains cost for each request, in thousands of instructions, one row for each contender.
 *
 * @param {{contender: string, title: string, dom0: number, guest: number, apart: number}[]} results
 */
export function table(results) {
  const titles = unique(results.map(({ title }) => title))
  const contenders = unique(results.map(({ contender }) => contender))
  const find = (contender, title) =>
    results.find((result) => result.contender === contender && result.title === title)
  const rows = contenders.map((contender) => {
    const cells = titles.map((title) => cell(find(contender, title), find(contenders[0], title)))
    return `| ${contender} | ${cells.join(' | ')} |`
  })
  const apart = Math.max(...results.map((result) => result.apart))
  return [
    `| thousand instructions for each request | ${titles.join(' | ')} |`,
    `|---|${titles.map(() => '---:|').join('')}`,
    ...rows,
    '',
    'Each cell: dom0, its ratio to the first row, and what the guest needs besides. ' +
      `The second best round lies at most ${(apart * 100).toFixed(1)} % from the best.`,
  ].join('\n')
}

/** The document with the text between its markers. */
export function insert(document, text) {
  const begin = document.indexOf(BEGIN)
  const end = document.indexOf(END)
  if (begin < 0 || end < begin) throw new Error(`the document has no place for it: ${BEGIN} ... ${END}`)
  return `${document.slice(0, begin + BEGIN.length)}\n${text}\n${document.slice(end)}`
}

function cell(result, reference) {
  if (!result) return 'not measured'
  const ratio = reference ? (result.dom0 / reference.dom0).toFixed(2) : '-'
  return `**${thousands(result.dom0)}** (${ratio}) + ${thousands(result.guest)}`
}

function thousands(instructions) {
  return (instructions / 1000).toFixed(1)
}

function unique(values) {
  return [...new Set(values)]
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [from, to = fileURLToPath(new URL('../../docs/real-xen.md', import.meta.url))] =
    process.argv.slice(2)
  writeFileSync(to, insert(readFileSync(to, 'utf8'), table(JSON.parse(readFileSync(from, 'utf8')))))
}
