/**
 * Program: the shape that every command has. A command parses, calls into the library, prints through the Terminal and
 * returns its exit code; what it throws is printed in main.ts. Help, misspellings and exit codes
 * are the same everywhere.
 */
import { createRequire } from 'node:module'
import type { Command, CommanderError } from 'commander'
import { VbdError } from '../errors.js'
import type { Terminal } from './terminal.js'

/** What commands get from main. */
export interface Context {
  readonly terminal: Terminal
  /** The exit code of the command that ran. */
  setExit(code: number): void
}

export interface CommandText {
  /** What it does, a few sentences. */
  readonly description: string
  /** Command lines, each with what it does. */
  readonly examples: readonly (readonly [string, string])[]
}

/** The command of that name (commands.ts has them), with what all of them have: --json, examples, exit codes. */
export function addCommand(program: Command, name: string, text: CommandText): Command {
  const command = commandOf(program, name)
    .description(text.description)
    .option('--json', 'print JSON: one document, or a line for each thing that happens')
    .exitOverride((error) => {
      throw fromCommander(error, `vbdkit ${command.name()}`)
    })
  const width = Math.max(...text.examples.map(([line]) => line.length))
  const examples = text.examples.map(([line, what]) => `  ${line.padEnd(width)}   ${what}`)
  command.addHelpText('after', `\nExamples:\n${examples.join('\n')}\n\n${EXIT_CODES}`)
  return command
}

/** The command of that name. */
export function commandOf(program: Command, name: string): Command {
  const command = program.commands.find((each) => each.name() === name)
  if (command === undefined) throw new VbdError('ERR_VBD_INTERNAL', `no command is called ${name}`)
  return command
}

/** The version of this package. */
export function packageVersion(): string {
  const require = createRequire(import.meta.url)
  return (require('vbdkit/package.json') as { version: string }).version
}

/** What every exit code means, for the help. */
export const EXIT_CODES = `Exit codes:
  0    done; or stopped by SIGTERM in good order
  1    it failed: the disk, the store, the guest or vbdkit itself
  2    it cannot be done as asked: check the command line, the image, the sockets
  130  interrupted with Ctrl-C`

/** Runs `body` as the command's action. */
export function action<A extends unknown[]>(
  context: Context,
  body: (...args: A) => Promise<number>,
): (...args: A) => Promise<void> {
  return async (...args) => context.setExit(await body(...args))
}

/** Commander's complaint as ours: the first line, and as remedy its guess or where the help is. */
export function fromCommander(error: CommanderError, command: string): Error {
  if (error.exitCode === 0 || error.code === 'commander.help') return error
  const [first = '', ...more] = error.message.replace(/^error: /, '').split('\n')
  const guess = /^\(Did you mean (.*)\?\)$/.exec(more.join(' '))?.[1]
  const remedy = guess === undefined ? `see ${command} --help` : `did you mean ${guess}?`
  return new VbdError('ERR_VBD_ARGUMENT', first, { remedy })
}

export type { Command, CommanderError }
