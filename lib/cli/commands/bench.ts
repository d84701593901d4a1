/** `vbdkit bench`: measures the backend against the limits of the machine and against its peers. */
import { resolve } from 'node:path'
import { runBench } from '../../bench/bench.js'
import { writeReport } from '../../bench/output.js'
import { GROUPS, type Group } from '../../bench/report.js'
import { reportText } from '../../bench/text.js'
import { VbdError } from '../../errors.js'
import { wholeOption } from '../options.js'
import { action, addCommand, type Command, type Context, packageVersion } from '../program.js'
import { startProgress } from '../progress.js'
import { stoppable } from '../signals.js'

interface BenchCommandOptions {
  readonly quick?: true
  readonly only?: string
  readonly out: string
  readonly dir?: string
  readonly cpus?: string
  readonly rounds?: number
}

/** Adds the command. */
export function addBench(program: Command, context: Context): void {
  const { terminal } = context
  const command = addCommand(program, 'bench', {
    description:
      'Runs a backend and guests on a mock Xen, each on a processor of its own, in turn with what they are compared ' +
      'with: fio, memcpy, QEMU, nbdkit, the JavaScript engine. Prints a table and writes bench.json and bench.html, ' +
      `a page with plots that needs nothing else. Groups: ${GROUPS.join(', ')}. Everything is a ratio between ` +
      'rounds that follow each other on this machine; see docs/benchmarks.md.',
    examples: [
      [
        'vbdkit bench --quick',
        'all groups in short rounds, in about 90 seconds: a look, nothing to quote',
      ],
      ['vbdkit bench --out results', 'the whole, into results/bench.json and results/bench.html'],
      ['vbdkit bench --only ring,guests', 'two of the groups'],
      ['vbdkit bench --dir /mnt/nvme', 'with the test file on another disk'],
    ],
  })
  command
    .option('--quick', 'short rounds and fewer workloads')
    .option('--only <groups>', 'these groups, separated by commas')
    .option('--out <dir>', 'where bench.json and bench.html go', '.')
    .option('--dir <dir>', 'where the test file goes (default: /var/tmp)')
    .option('--cpus <guest,backend>', 'the two processors to use (default: the first two allowed)')
    .addOption(wholeOption('--rounds <n>', 'rounds of each figure', { min: 7, max: 1000 }))
  command.action(
    action(context, (options: BenchCommandOptions) => {
      const groups = groupsOf(options.only)
      const cpus = cpusOf(options.cpus)
      return stoppable(terminal, async (signal) => {
        const progress = startProgress(terminal, 'bench', groups.length)
        const report = await runBench({
          vbdkit: packageVersion(),
          quick: options.quick === true,
          groups,
          rounds: options.rounds,
          dir: options.dir,
          cpus,
          signal,
          onProgress: ({ group, done, note }) => progress.update(done, `${group}: ${note}`),
        }).finally(() => progress.stop())
        const written = writeReport(resolve(options.out), report)
        terminal.result(
          { ...report, written },
          `${reportText(report)}\n\nwritten: ${written.json}, ${written.html}`,
        )
        return 0
      })
    }),
  )
}

/** @throws ERR_VBD_ARGUMENT naming the groups that there are */
function groupsOf(only: string | undefined): Group[] {
  if (only === undefined) return [...GROUPS]
  const wanted = only.split(',').map((word) => word.trim())
  for (const word of wanted) {
    if ((GROUPS as readonly string[]).includes(word)) continue
    throw new VbdError('ERR_VBD_ARGUMENT', `--only: there is no group '${word}'`, {
      remedy: `the groups are: ${GROUPS.join(', ')}`,
    })
  }
  return GROUPS.filter((group) => wanted.includes(group))
}

/** @throws ERR_VBD_ARGUMENT for anything but two numbers */
function cpusOf(text: string | undefined): number[] | undefined {
  if (text === undefined) return undefined
  if (/^\d{1,4},\d{1,4}$/.test(text)) return text.split(',').map(Number)
  throw new VbdError('ERR_VBD_ARGUMENT', `--cpus: '${text}' are not two processors`, {
    remedy: 'name two, for example --cpus 2,3',
  })
}
