/** `vbdkit doctor`: what this machine lacks for serving disks, and what to do. */
import { join } from 'node:path'
import { DEFAULT_CLAIMS, SCRIPT_NAME } from '../../daemon/claims.js'
import { SCRIPT_FOLDER } from '../../daemon/hotplug_script.js'
import { type Check, type DoctorXen, diagnose, verdict } from '../../host/doctor.js'
import { type Facts, gatherFacts } from '../../host/facts.js'
import { action, addCommand, type Command, type Context } from '../program.js'
import type { Terminal } from '../terminal.js'
import { xenOption } from '../xen_option.js'

interface DoctorOptions {
  readonly xen: string
  readonly kind?: readonly string[]
}

const STYLES = { pass: 'green', warn: 'yellow', fail: 'red' } as const

/** Adds the command. */
export function addDoctor(program: Command, context: Context): void {
  const { terminal } = context
  const command = addCommand(program, 'doctor', {
    description:
      'Looks at Xen, the kernel, the libraries and devices, xenstore, limits, and other backends that would fight ' +
      'over our disks; a line each, passed, doubtful (warn) or failed, with what to do. Changes nothing. Where there ' +
      'is no Xen it looks at what the mock needs. Exits with 1 when a check failed.',
    examples: [
      ['vbdkit doctor', 'for this Xen host, or for the mock where there is none'],
      ['vbdkit doctor --xen host', 'fails where there is no Xen'],
      ['vbdkit doctor --kind vbdkit', 'beside xen-blkback, on a kind of its own'],
      ['vbdkit doctor --json', 'for a program'],
    ],
  })
  command
    .addOption(xenOption('what it shall serve on: auto, host, mock or mock:DIR'))
    .option(
      '--kind <name>',
      'kind of backend that it shall serve, again for more (default: vbd, vbd3, vbdkit)',
      (text: string, before: readonly string[] = []) => [...before, text],
    )
  command.action(
    action(context, async ({ xen, kind }: DoctorOptions) => {
      const facts = await gatherFacts({
        kinds: kind ?? DEFAULT_CLAIMS.map((claim) => claim.kind),
        scriptPath: join(SCRIPT_FOLDER, SCRIPT_NAME),
      })
      const where = whichXen(xen, facts)
      const checks = diagnose(facts, where)
      const status = verdict(checks)
      terminal.result({ xen: where, status, checks }, show(terminal, where, checks))
      return status === 'fail' ? 1 : 0
    }),
  )
}

function whichXen(xen: string, facts: Facts): DoctorXen {
  if (xen === 'auto') return facts.xen === undefined ? 'mock' : 'host'
  return xen === 'host' ? 'host' : 'mock'
}

function show(terminal: Terminal, xen: DoctorXen, checks: readonly Check[]): string {
  const lines = checks.flatMap(({ status, message, remedy }) => [
    `${terminal.style(STYLES[status], status)}  ${message}`,
    ...(remedy === undefined ? [] : [`      ${terminal.style('dim', remedy)}`]),
  ])
  const count = (status: Check['status']) =>
    checks.filter((check) => check.status === status).length
  const what = xen === 'host' ? 'this Xen' : 'the mock Xen'
  const ends = {
    pass: `ready to serve disks on ${what}`,
    warn: `can serve disks on ${what}; ${count('warn')} doubtful`,
    fail: `cannot serve disks on ${what}: ${count('fail')} failed`,
  }
  return [...lines, '', ends[verdict(checks)]].join('\n')
}
