/**
 * The xenbus state machine of a block backend, as one pure and total function: what both sides' `state` keys say, and
 * what our disk and rings are doing, to the steps that come next. No I/O, no memory: whoever calls it re-reads the
 * store after every step and asks again, so a missed or repeated watch event changes nothing (only the target state
 * counts).
 *
 * Sources: xen/include/public/io/xenbus.h, the diagram in blkif.h, Linux `xenbus.c frontend_changed`, QEMU `xen-bus.c
 * xen_device_backend_changed`. Peculiarities served: GRUB closes with 6 and no 5; mini-os, U-Boot and OVMF go to 4
 * without 3; Windows begins with a close; a frontend that reopens goes to 1 and waits for our 2.
 */

export const XenbusState = {
  /** Also: no such key, an unreadable one, and anything that is not one digit 0..8. */
  Unknown: 0,
  Initialising: 1,
  InitWait: 2,
  Initialised: 3,
  Connected: 4,
  Closing: 5,
  Closed: 6,
  Reconfiguring: 7,
  Reconfigured: 8,
} as const

export type XenbusState = (typeof XenbusState)[keyof typeof XenbusState]

const NAMES = [
  'Unknown',
  'Initialising',
  'InitWait',
  'Initialised',
  'Connected',
  'Closing',
  'Closed',
  'Reconfiguring',
  'Reconfigured',
] as const

export type XenbusStateName = (typeof NAMES)[number]

/** The name of a state as xenbus.h has it, without its prefix. */
export function stateName(state: XenbusState): XenbusStateName {
  return NAMES[state]
}

/** Strict: exactly one digit 0..8, no sign, space, zero or NUL about it; everything else is Unknown. */
export function parseState(value: string | undefined): XenbusState {
  if (value === undefined || value.length !== 1) return XenbusState.Unknown
  const digit = value.charCodeAt(0) - 48
  return digit >= 0 && digit <= 8 ? (digit as XenbusState) : XenbusState.Unknown
}

/** What we hold of the frontend's rings. `broken`: still attached, but not to be served any more. */
export type RingSituation = 'none' | 'attached' | 'broken'

/**
 * `pending`: nobody has chosen a disk yet, or it is being opened. `refused`: there will be none, and the toolstack
 * learns why in InitWait, where it runs its hotplug script: before that it only waits, and reads nothing.
 */
export type DiskSituation = 'pending' | 'ready' | 'failed' | 'refused'

/** What we want: to serve; to part once the frontend has closed; to part now. */
export type Intent = 'serve' | 'stop' | 'abandon'

export interface Situation {
  /** Our `state` key. undefined: our directory is gone. */
  readonly own: XenbusState | undefined
  readonly front: XenbusState
  /** The toolstack's `online` key: false once the device shall go when it is Closed. */
  readonly online: boolean
  readonly disk: DiskSituation
  readonly ring: RingSituation
  readonly intent: Intent
  /** With Connected and no ring: an earlier process may have left rings that can be gone on with. */
  readonly adoptable?: boolean
}

/**
 * One step.
 * - `disconnect`: have the engine let go of every guest page and event channel
 * - `drop`: forget the device; nothing may be written any more
 * - `advertise`: publish every feature, and InitWait with them
 * - `connect`: negotiate, and have the engine take the rings
 * - `adopt`: have the engine go on with the rings that an earlier process served
 * - `publish`: write the connect-time keys and Connected in one transaction
 * - `closing`, `closed`: write that state
 */
export type Step =
  | 'disconnect'
  | 'drop'
  | 'advertise'
  | 'connect'
  | 'adopt'
  | 'publish'
  | 'closing'
  | 'closed'

export interface Decision {
  /** In order; the rest is void when one fails. Empty: wait for a change. */
  readonly steps: readonly Step[]
  /** Why, where it is not the frontend's plain wish; for people. */
  readonly reason?: string
}

const WAIT: Decision = { steps: [] }

/** How a frontend state counts for a block device. */
type FrontClass =
  /** Not using a ring, and could begin one: 1, and the odd 2. */
  | 'fresh'
  /** Its rings are published: 3 or 4. */
  | 'ready'
  | 'closing'
  /** Closed, vanished, unreadable or garbage: it holds nothing against us. */
  | 'closed'
  /** 7 and 8 mean nothing to a block device. */
  | 'foreign'

const FRONT_CLASSES: readonly FrontClass[] = [
  'closed',
  'fresh',
  'fresh',
  'ready',
  'ready',
  'closing',
  'closed',
  'foreign',
  'foreign',
]

/** The next steps. Total over every situation; never asks for a state that `isLegalWrite` forbids. */
export function decide(situation: Situation): Decision {
  const { own, ring, intent } = situation
  if (own === undefined) return withoutRing(situation, ['drop'])
  if (intent === 'abandon') return own === XenbusState.Closed ? idle(situation) : close(situation)
  switch (own) {
    case XenbusState.InitWait:
      return decideInitWait(situation)
    case XenbusState.Connected:
      return ring === 'none' ? decideOrphan(situation) : decideConnected(situation)
    case XenbusState.Closing:
      return decideClosing(situation)
    case XenbusState.Closed:
      return decideClosed(situation)
    default:
      return decideInitialising(situation)
  }
}

/**
 * 1 as the toolstack made it, and whatever else somebody wrote (0, 3, 7, 8, garbage): we start from the beginning. A
 * ring that is still held belongs to a directory that was replaced under us.
 */
function decideInitialising(situation: Situation): Decision {
  const { online, disk, intent } = situation
  if (intent === 'stop') return idle(situation)
  if (!online) return close(situation)
  if (disk === 'failed') return withoutRing(situation, ['closing'])
  return disk === 'pending' ? idle(situation) : withoutRing(situation, ['advertise'])
}

function decideInitWait(situation: Situation): Decision {
  const { front, online, disk, ring, intent } = situation
  if (intent === 'stop' || !online) return close(situation)
  if (disk === 'failed') return withoutRing(situation, ['closing'])
  if (ring === 'broken') return { steps: ['disconnect', 'closing'] }
  switch (FRONT_CLASSES[front]) {
    case 'fresh':
      // A ring that was taken and never announced, left by a frontend that has begun again.
      return idle(situation)
    case 'ready':
      if (ring === 'attached') return { steps: ['publish'] }
      if (disk === 'refused') return { steps: ['closing'] }
      return disk === 'ready' ? { steps: ['connect'] } : WAIT
    case 'closing':
      return withoutRing(situation, ['closing'])
    case 'foreign':
      return { ...withoutRing(situation, ['closing']), reason: foreign(front) }
    default:
      return close(situation)
  }
}

function decideConnected(situation: Situation): Decision {
  const { front, ring, intent } = situation
  switch (FRONT_CLASSES[front]) {
    case 'ready':
      if (ring === 'broken') return { steps: ['disconnect', 'closing'] }
      return intent === 'stop' ? { steps: ['closing'] } : WAIT
    case 'closing':
      return { steps: ['closing'] }
    case 'foreign':
      return { steps: ['disconnect', 'closing'], reason: foreign(front) }
    default:
      // Closed or gone; or begun again, and its Closed came and went between two of our readings.
      return close(situation)
  }
}

/**
 * Connected, but we hold nothing: an earlier process served this frontend. If it left in good order, or with nothing
 * under way, we go on where it ended. Else requests that it consumed and never answered are lost, and their slots may
 * hold responses by now: the frontend has to begin again.
 */
function decideOrphan(situation: Situation): Decision {
  const { online, disk, intent, adoptable = false } = situation
  const kind = FRONT_CLASSES[situation.front]
  if (kind === 'fresh' || kind === 'closed') return close(situation)
  if (kind === 'ready' && adoptable && online && intent === 'serve') {
    if (disk === 'pending') return WAIT
    if (disk === 'ready') return { steps: ['adopt'] }
  }
  return {
    steps: ['closing'],
    reason: 'an earlier backend died while it served this frontend, which has to reconnect',
  }
}

function decideClosing(situation: Situation): Decision {
  const { front, online, ring, intent } = situation
  if (ring === 'broken') return { steps: ['disconnect'] }
  const kind = FRONT_CLASSES[front]
  // Asked to close by the toolstack or by us, a frontend may still have work to finish: it is served until then.
  if (kind === 'closing') return WAIT
  if (kind === 'ready' || kind === 'foreign') {
    const nobodyWaits = ring === 'none' && (!online || intent === 'stop')
    return nobodyWaits ? close(situation) : WAIT
  }
  return close(situation)
}

function decideClosed(situation: Situation): Decision {
  const { front, online, disk, ring, intent } = situation
  if (ring !== 'none') return { steps: ['disconnect'] }
  if (!online || intent !== 'serve' || disk !== 'ready') return WAIT
  // 1: it begins again. 3 and 4: it has not waited for our InitWait (NetBSD does not); 2 comes first all the same.
  const begins = front === XenbusState.Initialising || FRONT_CLASSES[front] === 'ready'
  return begins ? { steps: ['advertise'] } : WAIT
}

/** Closed is written only when nothing is held any more. */
function close(situation: Situation): Decision {
  return withoutRing(situation, ['closed'])
}

function idle(situation: Situation): Decision {
  return withoutRing(situation, [])
}

function withoutRing({ ring }: Situation, steps: readonly Step[]): Decision {
  return { steps: ring === 'none' ? steps : ['disconnect', ...steps] }
}

function foreign(front: XenbusState): string {
  return `the frontend is in state ${front} (${stateName(front)}), which no block device has`
}

/** Whether we may write `to` where our key says `from`. Rewriting Connected is how a resize is announced. */
export function isLegalWrite(from: XenbusState, to: XenbusState): boolean {
  switch (to) {
    case XenbusState.InitWait:
      return (
        from !== XenbusState.Connected &&
        from !== XenbusState.Closing &&
        from !== XenbusState.InitWait
      )
    case XenbusState.Connected:
      return from === XenbusState.InitWait || from === XenbusState.Connected
    case XenbusState.Closing:
      return from !== XenbusState.Closing && from !== XenbusState.Closed
    case XenbusState.Closed:
      return from !== XenbusState.Closed
    default:
      return false
  }
}
