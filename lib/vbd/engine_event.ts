/**
 * What an engine's event means: for operators, and for the frontend's connection. Pure.
 */
import type { EngineEvent } from '../engine/engine.js'
import { VbdError } from '../errors.js'
import type { DeviceError } from '../xenbus/device.js'

const EIO = 5
const EPROTO = 71

/** `reason`: why the connection has to end; absent when it goes on. */
export function meaningOf(
  event: EngineEvent,
  vbd: string,
  onFlushFailure: 'hold' | 'close',
): { error: VbdError; reason?: DeviceError } {
  if (event.type === 'ring-corrupt') {
    const text = `ring ${event.queue} is corrupt: ${event.message}`
    const error = new VbdError('ERR_VBD_PROTOCOL', text, { vbd })
    return { error, reason: { errno: EPROTO, text } }
  }
  const text = `a flush failed: ${event.message}`
  const remedy = 'check the disk, then detach it from the guest and serve it again'
  const error = new VbdError('ERR_VBD_IO', text, { vbd, remedy })
  return onFlushFailure === 'hold' ? { error } : { error, reason: { errno: EIO, text } }
}
