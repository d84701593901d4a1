/**
 * Log: what a daemon's operator reads later: JSON lines with time and level, written by pino
 * without waiting for the disk. Where there is no log, pino is not even loaded.
 */
import { openSync } from 'node:fs'
import type { DestinationStream, LogFn } from 'pino'
import { VbdError } from '../errors.js'

export const LOG_LEVELS = ['debug', 'info', 'warn', 'error'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]

/** A log that writes to `path`, appending; close it to have everything written. */
export interface Log {
  readonly logger: Readonly<Record<LogLevel, LogFn>>
  close(): Promise<void>
}

const ignore = () => {}
const SILENT: Log = {
  logger: { debug: ignore, info: ignore, warn: ignore, error: ignore },
  close: async () => {},
}

/**
 * Opens the log; without a path it swallows everything.
 *
 * @throws ERR_VBD_ARGUMENT when the file cannot be opened
 */
export async function openLog(path: string | undefined, level: LogLevel): Promise<Log> {
  if (path === undefined) return SILENT
  const { destination, pino } = await import('pino')
  // Opened here: a destination that could not open its file cannot be let go of, and complains at the process's end.
  const file = destination({ fd: opened(path), sync: false })
  // A full disk must not end the service of guests.
  file.on('error', () => {})
  const logger = pino({ level, base: null }, file as DestinationStream)
  return {
    logger,
    close: () =>
      new Promise((resolve) => {
        file.once('close', () => resolve())
        file.end()
      }),
  }
}

function opened(path: string): number {
  try {
    return openSync(path, 'a')
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    throw new VbdError('ERR_VBD_ARGUMENT', `--log: cannot write to ${path} (${code ?? message})`, {
      path,
      cause,
      remedy: 'name a file that can be written',
    })
  }
}
