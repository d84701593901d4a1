/**
 * The thread of a script disk: loads its module, opens the disk, serves its channel, and ends when it is told to. An
 * exception that nobody catches ends it, as it would end a program; its requests fail then.
 */

import { fileURLToPath } from 'node:url'
import { parentPort, workerData } from 'node:worker_threads'
import { definitionOf } from '../../disk/define.js'
import { loadExport, nothing } from '../../disk/load.js'
import { openDefinition } from '../../disk/open_definition.js'
import type { DiskDefinition } from '../../disk/script.js'
import { toVbdError } from '../../errors.js'
import { loadAddon } from '../load_addon.js'
import { hostHere, type ScriptHost } from './host.js'
import { type FromWorker, type ToWorker, toWire, type WorkerData } from './wire.js'

const { module, options } = workerData as WorkerData

function say(message: FromWorker): void {
  parentPort!.postMessage(message)
}

/** What the module's default export gives. */
async function load(): Promise<DiskDefinition<unknown>> {
  const exported = await loadExport(module, options)
  const definition = definitionOf(exported) ?? exported
  if (typeof definition === 'object' && definition !== null && 'read' in definition) {
    return definition as DiskDefinition<unknown>
  }
  throw nothing(fileURLToPath(module))
}

async function perform(host: ScriptHost, call: ToWorker): Promise<void> {
  if (call.type === 'attach') await host.attach(call.channel)
  else if (call.type === 'resize') await host.resize(call.sizeBytes)
  else await host.close()
}

async function answer(host: ScriptHost, call: ToWorker): Promise<void> {
  try {
    await perform(host, call)
    say({ type: 'done', id: call.id })
  } catch (thrown) {
    say({ type: 'done', id: call.id, error: toWire(toVbdError(thrown)) })
  }
}

try {
  const host = hostHere(await openDefinition(await load()), loadAddon(), (error, vbd) =>
    say({ type: 'error', error: toWire(error), vbd }),
  )
  parentPort!.on('message', (call: ToWorker) => void answer(host, call))
  say({ type: 'opened', shape: host.shape })
} catch (thrown) {
  say({ type: 'failed', error: toWire(toVbdError(thrown)) })
}
