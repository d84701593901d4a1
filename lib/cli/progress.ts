/**
 * Progress: a bar on a terminal, a plain line every tenth elsewhere, an event every tenth with --json.
 */
import { Presets, SingleBar } from 'cli-progress'
import type { Terminal } from './terminal.js'

export interface Progress {
  /** `done` of the total; `note` is a few words shown behind the bar. */
  update(done: number, note: string): void
  stop(): void
}

/** Starts showing progress towards `total` (a positive number of `unit`). */
export function startProgress(terminal: Terminal, label: string, total: number): Progress {
  return terminal.interactive ? bar(label, total) : lines(terminal, label, total)
}

function bar(label: string, total: number): Progress {
  const single = new SingleBar(
    {
      format: `${label} {bar} {percentage}% | {note}`,
      hideCursor: true,
      clearOnComplete: false,
      gracefulExit: false,
      barsize: 20,
      stream: process.stdout,
    },
    Presets.shades_classic,
  )
  single.start(total, 0, { note: '' })
  return {
    update: (done, note) => single.update(Math.min(done, total), { note }),
    stop: () => single.stop(),
  }
}

function lines(terminal: Terminal, label: string, total: number): Progress {
  let shown = -1
  return {
    update(done, note) {
      const tenth = Math.min(10, Math.floor((done / total) * 10))
      if (tenth <= shown) return
      shown = tenth
      const percent = tenth * 10
      terminal.event(
        'progress',
        { label, percent, note },
        `${label} ${`${percent}`.padStart(3)} %  ${note}`,
      )
    },
    stop() {},
  }
}
