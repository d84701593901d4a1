/**
 * The command line: builds the commands, runs the one that was asked for, and turns what it throws into one line and an
 * exit code. bin/vbdkit.js calls `run`; tests call `main`.
 */
import { Command, CommanderError } from 'commander'
import { exitAtOnce } from '../engine/load_addon.js'
import { toVbdError } from '../errors.js'
import { addCommands } from './commands.js'
import { type Context, EXIT_CODES, fromCommander, packageVersion } from './program.js'
import { Terminal } from './terminal.js'

/** After this long nothing that a finished command left behind may hold the process. */
const LINGER_MS = 2000

/** Runs one command line, without the names of node and the script; resolves to the exit code. Never rejects. */
export async function main(argv: readonly string[], terminal = new Terminal()): Promise<number> {
  terminal.json = argv.includes('--json')
  let exit = 0
  const context: Context = {
    terminal,
    setExit(code) {
      exit = code
    },
  }
  try {
    await buildProgram(context).parseAsync(asOption(argv), { from: 'user' })
    return exit
  } catch (thrown) {
    if (thrown instanceof CommanderError) return thrown.exitCode === 0 ? 0 : 2
    const error = toVbdError(thrown)
    terminal.error(error)
    return error.exitCode
  }
}

/** `help COMMAND` is `COMMAND --help`: Commander would show what is known of a command that is not loaded. */
function asOption(argv: readonly string[]): readonly string[] {
  const [help, command, ...more] = argv
  return help === 'help' && command !== undefined ? [command, '--help', ...more] : argv
}

/** The process: exits with main's code once everything is written and closed. */
export async function run(): Promise<void> {
  for (const stream of [process.stdout, process.stderr]) {
    // Whoever read us is gone (`vbdkit stats | head`): nothing is left to say.
    stream.on('error', (error: NodeJS.ErrnoException) =>
      process.exit(error.code === 'EPIPE' ? 0 : 1),
    )
  }
  const code = await main(process.argv.slice(2))
  process.exitCode = code
  setTimeout(() => exitAtOnce(code), LINGER_MS).unref()
}

function buildProgram(context: Context): Command {
  const { terminal } = context
  const program = new Command('vbdkit')
  program
    .description('Serves virtual disks to Xen guests from userspace.')
    .version(packageVersion(), '-V, --version', 'print the version')
    .configureOutput({
      writeOut: (text) => terminal.out.write(text),
      writeErr: (text) => terminal.err.write(text),
      // Errors are thrown, and printed once, by main.
      outputError: () => {},
      getOutHelpWidth: () => Math.min(terminal.columns, 110),
      getErrHelpWidth: () => Math.min(terminal.columns, 110),
    })
    .exitOverride((error) => {
      throw fromCommander(error, 'vbdkit')
    })
    .addHelpText(
      'after',
      '\nDOM:VDEV names a disk of a guest: the number of the domain, and a device as xl takes it\n' +
        `(1:xvda, 7:51712, 3:d0p1).\n\n${EXIT_CODES}`,
    )
  addCommands(program, context)
  return program
}
