/**
 * Which devices are the daemon's own. A kind of backend directories may be shared: `vbd` belongs to whoever answers
 * there, blkback for most disks, and `vbd3` to tapback. There only devices that name our hotplug script are ours. Of
 * every other kind that is configured, all are. Pure.
 */
import { VbdError } from '../errors.js'
import { SERVE_MARK } from '../xenbus/toolstack.js'

/** The name of the hotplug script that a disk line gives: `script=block-vbdkit`. */
export const SCRIPT_NAME = 'block-vbdkit'

/** The kind that `vbdkit attach` uses, which is nobody else's. */
export const OWN_KIND = 'vbdkit'

/** Kinds that other backends answer as well. */
const SHARED_KINDS: readonly string[] = ['vbd', 'vbd3']

export interface KindClaim {
  readonly kind: string
  /** Every device of it is ours, whatever its script. */
  readonly all: boolean
}

export const DEFAULT_CLAIMS: readonly KindClaim[] = ['vbd', 'vbd3', OWN_KIND].map(parseKind)

/**
 * `vbd`, or `vbd:all` for every device of a kind that is shared elsewhere.
 *
 * @throws ERR_VBD_ARGUMENT
 */
export function parseKind(text: string): KindClaim {
  const match = /^([a-z0-9_]{1,32})(:all)?$/.exec(text)
  if (match === null) {
    throw new VbdError('ERR_VBD_ARGUMENT', `'${text}' is no kind of backend`, {
      remedy: 'write vbd, vbd3, vbdkit or another, or vbd3:all for all of a kind',
    })
  }
  const kind = match[1]!
  return { kind, all: match[2] !== undefined || !SHARED_KINDS.includes(kind) }
}

export interface ClaimKeys {
  readonly kind: string
  readonly script: string | undefined
  readonly createdBy: string | undefined
}

/** Whether this device is ours to serve. */
export function isOurs(claims: readonly KindClaim[], keys: ClaimKeys): boolean {
  if (keys.createdBy === SERVE_MARK) return false
  const claim = claims.find(({ kind }) => kind === keys.kind)
  return claim !== undefined && (claim.all || isOurScript(keys.script))
}

function isOurScript(script: string | undefined): boolean {
  return script !== undefined && script.slice(script.lastIndexOf('/') + 1) === SCRIPT_NAME
}
