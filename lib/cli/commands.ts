/**
 * Every command by its name: the line that the list of commands has of it, and where the rest is, which is loaded when
 * the command is asked for: `vbdkit detach` does not wait for the benchmark, nor for what serves disks.
 */
import type { Command } from 'commander'
import type { Context } from './program.js'

interface Entry {
  /** One line for the list of commands; without one it is not in the list. */
  readonly summary?: string
  /** What adds to the command of that name all but its name and summary. */
  readonly load: () => Promise<(program: Command, context: Context) => void>
}

/** In the order of the list. */
const COMMANDS: Readonly<Record<string, Entry>> = {
  serve: {
    summary: 'serve a disk to a guest',
    load: async () => (await import('./commands/serve.js')).addServe,
  },
  daemon: {
    summary: 'serve every disk that xl attaches for us',
    load: async () => (await import('./commands/daemon.js')).addDaemon,
  },
  attach: {
    summary: 'give a running guest a disk, past its toolstack',
    load: async () => (await import('./commands/attach.js')).addAttach,
  },
  detach: {
    summary: 'take a disk away that `attach` gave',
    load: async () => (await import('./commands/attach.js')).addDetach,
  },
  guest: {
    summary: 'run a guest of the mock Xen, with its disk as NBD',
    load: async () => (await import('./commands/guest.js')).addGuest,
  },
  mock: {
    summary: 'run a mock Xen, no hypervisor needed',
    load: async () => (await import('./commands/mock.js')).addMock,
  },
  list: {
    summary: 'list the disks that are being served',
    load: async () => (await import('./commands/list.js')).addList,
  },
  stats: {
    summary: 'statistics of a disk that is being served',
    load: async () => (await import('./commands/stats.js')).addStats,
  },
  explain: {
    summary: 'say how a disk is served',
    load: async () => (await import('./commands/explain.js')).addExplain,
  },
  resize: {
    summary: 'change the size of a disk that is being served',
    load: async () => (await import('./commands/resize.js')).addResize,
  },
  tune: {
    summary: 'change settings of a disk that is being served',
    load: async () => (await import('./commands/tune.js')).addTune,
  },
  unit: {
    summary: 'print a systemd service for `vbdkit daemon`',
    load: async () => (await import('./commands/unit.js')).addUnit,
  },
  doctor: {
    summary: 'check what this machine needs for serving disks',
    load: async () => (await import('./commands/doctor.js')).addDoctor,
  },
  pause: {
    summary: "hold a guest's requests back",
    load: async () => (await import('./commands/pause.js')).addPause,
  },
  resume: {
    summary: "take a guest's requests up again",
    load: async () => (await import('./commands/pause.js')).addResume,
  },
  swap: {
    summary: 'put another disk in place of one that a guest uses',
    load: async () => (await import('./commands/swap.js')).addSwap,
  },
  snapshot: {
    summary: 'freeze what an overlay has as a layer',
    load: async () => (await import('./commands/overlay.js')).addSnapshot,
  },
  commit: {
    summary: 'write what an overlay has into the disk below it',
    load: async () => (await import('./commands/overlay.js')).addCommit,
  },
  reset: {
    summary: 'take an overlay back to its last snapshot',
    load: async () => (await import('./commands/overlay.js')).addReset,
  },
  trace: {
    summary: "show a guest's requests as they are answered",
    load: async () => (await import('./commands/trace.js')).addTrace,
  },
  replay: {
    summary: 'run a traced load against another disk or engine',
    load: async () => (await import('./commands/replay.js')).addReplay,
  },
  demo: {
    summary: 'serve a filesystem to a guest and check every byte, in three processes',
    load: async () => (await import('./commands/demo.js')).addDemo,
  },
  bench: {
    summary: 'measure the backend against limits and peers',
    load: async () => (await import('./commands/bench.js')).addBench,
  },
  'xl-script': {
    summary: 'install the hotplug script that xl runs for our disks',
    load: async () => (await import('./commands/xl_script.js')).addXlScript,
  },
  init: {
    summary: 'write a disk in TypeScript to begin with',
    load: async () => (await import('./commands/init.js')).addInit,
  },
  'demo-guest': { load: async () => (await import('./commands/demo.js')).addDemoGuest },
}

/** Adds every command by its name, and the rest of the one that is asked for when it is. */
export function addCommands(program: Command, context: Context): void {
  for (const [name, { summary }] of Object.entries(COMMANDS)) {
    program.command(name, { hidden: summary === undefined }).summary(summary ?? '')
  }
  program.hook('preSubcommand', async (_, command) => {
    const add = await COMMANDS[command.name()]?.load()
    add?.(program, context)
  })
}
