/** `vbdkit mock DIR`: a mock Xen in the foreground, for guests and backends in other processes. */
import { loadAddon } from '../../engine/load_addon.js'
import { MockHost } from '../../mock/mock_host.js'
import { PRIVILEGED } from '../../xenstore/permission.js'
import type { Store } from '../../xenstore/store.js'
import { XenstoreError } from '../../xenstore/xenstore.js'
import { action, addCommand, type Command, type Context } from '../program.js'
import { aborted, stoppable } from '../signals.js'
import { oneLine, type Terminal } from '../terminal.js'

interface MockOptions {
  readonly trace?: true
}

/** Adds the command. */
export function addMock(program: Command, context: Context): void {
  const { terminal } = context
  const command = addCommand(program, 'mock', {
    description:
      'Runs a mock Xen in the foreground: domains with memory, grant tables and event ' +
      'channels, and a xenstore with the ' +
      'real wire protocol. Guests and backends are other processes, which find it by --xen ' +
      'mock:DIR. It ends with Ctrl-C, ' +
      'and takes its guests with it.',
    examples: [
      ['vbdkit mock /tmp/xen', 'its sockets are in /tmp/xen, made when it is not there'],
      ['vbdkit mock /tmp/xen --trace', 'print each change of xenstore'],
    ],
  })
  command
    .argument('<DIR>', 'the directory of its sockets')
    .option('--trace', 'print every change of xenstore, in order')
    .action(
      action(context, (dir: string, options: MockOptions) =>
        stoppable(terminal, async (signal) => {
          const host = await MockHost.start({
            dir,
            broker: (...args) => loadAddon().startMockBroker(...args),
            onError: (error) => terminal.warn(error.message),
          })
          try {
            if (options.trace) trace(host.server.store, terminal)
            const { dir: path, xenstore, xen } = host.paths
            terminal.event(
              'ready',
              { dir: path, xenstore, xen },
              `mock Xen in ${path}: use --xen mock:${path}; Ctrl-C ends it`,
            )
            await aborted(signal)
          } finally {
            await host.close()
          }
          terminal.event('stopped', {}, 'mock Xen stopped')
          return 0
        }),
      ),
    )
}

/** Prints every change of the store as it happens: no other watch sees them all, because watches may coalesce. */
function trace(store: Store, terminal: Terminal): void {
  const owner = {
    ...PRIVILEGED,
    onWatch(path: string) {
      if (path.startsWith('@')) return
      const value = readValue(store, path)
      const text =
        value === undefined ? `${path} removed` : `${path} = ${value === '' ? '""' : value}`
      terminal.event(
        'xenstore',
        { path, value: value ?? null },
        terminal.style('dim', oneLine(text)),
      )
    },
  }
  store.join(owner)
  store.watch(owner, '/', 'trace')
}

/** undefined: removed. */
function readValue(store: Store, path: string): string | undefined {
  try {
    return store.read(PRIVILEGED, path)
  } catch (thrown) {
    if (thrown instanceof XenstoreError) return undefined
    throw thrown
  }
}
