/**
 * What the library exports to make disks with, read from its sources: every function of lib/disk/ that lib/index.ts
 * passes on and that returns a Disk or a DiskFilter.
 */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'

const LIB = new URL('../../lib/', import.meta.url)

function parse(url: URL): ts.SourceFile {
  const path = fileURLToPath(url)
  return ts.createSourceFile(path, readFileSync(path, 'utf8'), ts.ScriptTarget.ES2022, true)
}

/** Their names. Throws for an exported function that does not say what it returns. */
export function exportedMakers(): string[] {
  return parse(new URL('index.ts', LIB)).statements.flatMap((statement) => {
    if (!ts.isExportDeclaration(statement) || statement.isTypeOnly) return []
    const { exportClause, moduleSpecifier } = statement
    const from = moduleSpecifier && ts.isStringLiteral(moduleSpecifier) ? moduleSpecifier.text : ''
    if (!from.startsWith('./disk/')) return []
    if (exportClause === undefined || !ts.isNamedExports(exportClause)) {
      throw new Error(`lib/index.ts passes on all of ${from}`)
    }
    const names = exportClause.elements.filter((one) => !one.isTypeOnly).map((one) => one.name.text)
    const module = parse(new URL(from.replace(/\.js$/, '.ts'), LIB))
    return names.filter((name) => makesDisks(module, name))
  })
}

function makesDisks(module: ts.SourceFile, name: string): boolean {
  return module.statements.some((statement) => {
    if (!ts.isFunctionDeclaration(statement) || statement.name?.text !== name) return false
    if (statement.type === undefined) throw new Error(`${name} does not say what it returns`)
    return ['Disk', 'DiskFilter'].includes(statement.type.getText())
  })
}
