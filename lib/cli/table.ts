/** Tables for people: aligned columns, numbers to the right. */

export interface Column {
  readonly title: string
  readonly right?: boolean
}

/** Rows under their titles, two spaces apart; no trailing blanks. */
export function table(columns: readonly Column[], rows: readonly (readonly string[])[]): string {
  const widths = columns.map((column, i) =>
    Math.max(column.title.length, ...rows.map((row) => (row[i] ?? '').length)),
  )
  const line = (cells: readonly string[]) =>
    columns
      .map((column, i) => {
        const cell = cells[i] ?? ''
        const width = widths[i] ?? 0
        return column.right ? cell.padStart(width) : cell.padEnd(width)
      })
      .join('  ')
      .trimEnd()
  return [line(columns.map(({ title }) => title)), ...rows.map(line)].join('\n')
}

/** `key   value` lines, the values below each other. */
export function pairs(entries: readonly (readonly [string, string])[], indent = ''): string {
  const width = Math.max(0, ...entries.map(([key]) => key.length))
  return entries
    .map(([key, value]) => `${indent}${key.padEnd(width)}  ${value}`.trimEnd())
    .join('\n')
}
