/** The state machine: every situation there is, one after the other. */
import { describe, expect, it } from 'vitest'
import {
  decide,
  isLegalWrite,
  parseState,
  type Situation,
  type Step,
  stateName,
  XenbusState,
} from '../../../lib/xenbus/state.js'

const S = XenbusState
const STATES = Object.values(XenbusState)
const DISKS = ['pending', 'ready', 'failed', 'refused'] as const
const RINGS = ['none', 'attached', 'broken'] as const
const INTENTS = ['serve', 'stop', 'abandon'] as const

function* situations(): Generator<Situation> {
  for (const own of [undefined, ...STATES])
    for (const front of STATES)
      for (const online of [false, true])
        for (const disk of DISKS)
          for (const ring of RINGS)
            for (const intent of INTENTS)
              for (const adoptable of [false, true])
                yield { own, front, online, disk, ring, intent, adoptable }
}

const all = [...situations()]

/** The situations for which something that must hold does not. */
function failing(holds: (situation: Situation) => boolean): Situation[] {
  return all.filter((situation) => !holds(situation))
}

/** The state that a step writes. */
function target(step: Step): XenbusState | undefined {
  const states: Partial<Record<Step, XenbusState>> = {
    advertise: S.InitWait,
    publish: S.Connected,
    closing: S.Closing,
    closed: S.Closed,
  }
  return states[step]
}

const base: Situation = {
  own: S.InitWait,
  front: S.Initialising,
  online: true,
  disk: 'ready',
  ring: 'none',
  intent: 'serve',
}

describe('parseState', () => {
  it.each([
    ['0', 0],
    ['4', 4],
    ['8', 8],
    [undefined, 0],
    ['', 0],
    ['9', 0],
    ['04', 0],
    ['4 ', 0],
    ['+4', 0],
    ['6abc', 0],
    ['4\0', 0],
    ['٤', 0],
    ['-', 0],
  ])('%j is %d', (text, state) => expect(parseState(text)).toBe(state))

  it('names are those of xenbus.h', () => {
    expect(STATES.map((state) => stateName(state))).toEqual(Object.keys(XenbusState))
  })
})

describe('decide, over all situations', () => {
  it('there are as many as there should be, and each is answered', () => {
    expect(all.length).toBe(10 * 9 * 2 * 4 * 3 * 3 * 2)
    expect(failing((situation) => decide(situation).steps.length <= 2)).toEqual([])
  })

  it('writes only what is legal, never state 3, and nothing into a directory that is gone', () => {
    const legal = (own: XenbusState | undefined, step: Step) => {
      const to = target(step)
      return to === undefined || (own !== undefined && isLegalWrite(own, to))
    }
    expect(failing((s) => decide(s).steps.every((step) => legal(s.own, step)))).toEqual([])
    expect(STATES.filter((state) => isLegalWrite(state, S.Initialised))).toEqual([])
  })

  it('writes Closed, begins again or forgets only when nothing is held', () => {
    const parting: Step[] = ['closed', 'advertise', 'drop']
    expect(
      failing((situation) => {
        const { steps } = decide(situation)
        const parts = steps.some((step) => parting.includes(step))
        return !parts || situation.ring === 'none' || steps[0] === 'disconnect'
      }),
    ).toEqual([])
  })

  it('connects only with a disk, a ready frontend and no ring', () => {
    expect(
      failing(
        ({ own, disk, ring, front, ...rest }) =>
          !decide({ own, disk, ring, front, ...rest }).steps.includes('connect') ||
          (own === S.InitWait &&
            disk === 'ready' &&
            ring === 'none' &&
            (front === S.Initialised || front === S.Connected)),
      ),
    ).toEqual([])
  })

  it('goes on with the rings of an earlier process only with a disk, a ready frontend and no ring', () => {
    expect(
      failing(
        (situation) =>
          !decide(situation).steps.includes('adopt') ||
          (situation.own === S.Connected &&
            situation.adoptable === true &&
            situation.disk === 'ready' &&
            situation.ring === 'none' &&
            situation.online &&
            situation.intent === 'serve' &&
            (situation.front === S.Initialised || situation.front === S.Connected)),
      ),
    ).toEqual([])
  })

  it('gives no ring to a frontend whose disk was refused', () => {
    const rings: Step[] = ['connect', 'adopt']
    expect(
      failing((s) => s.disk !== 'refused' || !decide(s).steps.some((step) => rings.includes(step))),
    ).toEqual([])
  })

  it('announces Connected only for a ring that serves', () => {
    expect(failing((s) => !decide(s).steps.includes('publish') || s.ring === 'attached')).toEqual(
      [],
    )
  })

  it('comes to rest: with nothing changing outside, a few steps lead to none', () => {
    expect(failing((situation) => rest(situation) !== undefined)).toEqual([])
  })

  it('parting ends with nothing held: at once, or when the frontend has closed', () => {
    expect(
      failing((situation) => {
        const gone = situation.front === S.Closed || situation.front === S.Unknown
        const parts = situation.intent === 'abandon' || (situation.intent === 'stop' && gone)
        return !parts || rest(situation)?.ring === 'none'
      }),
    ).toEqual([])
  })

  it('lets go of a frontend that closed or is gone before anything else', () => {
    expect(
      failing((situation) => {
        const gone = situation.front === S.Closed || situation.front === S.Unknown
        return !gone || situation.ring === 'none' || decide(situation).steps[0] === 'disconnect'
      }),
    ).toEqual([])
  })
})

/** Where the steps lead when nothing changes outside; undefined: nowhere. */
function rest(situation: Situation): Situation | undefined {
  let now = situation
  for (let turn = 0; turn < 6; turn++) {
    const { steps } = decide(now)
    if (steps.length === 0) return now
    for (const step of steps) now = after(now, step)
    if (steps.includes('drop')) return now
  }
  return undefined
}

/** What a step does when it succeeds. */
function after(situation: Situation, step: Step): Situation {
  const own = target(step)
  if (step === 'disconnect') return { ...situation, ring: 'none' }
  if (step === 'connect' || step === 'adopt') return { ...situation, ring: 'attached' }
  if (step === 'drop') return { ...situation, own: undefined }
  return { ...situation, own: own! }
}

describe('decide, as the field has it', () => {
  it.each<[string, Partial<Situation>, Step[]]>([
    ['the toolstack made it', { own: S.Initialising }, ['advertise']],
    ['no disk yet', { own: S.Initialising, disk: 'pending' }, []],
    ['it gets no disk: told in InitWait', { own: S.Initialising, disk: 'refused' }, ['advertise']],
    ['it gets no disk: waiting for the toolstack', { disk: 'refused' }, []],
    ['it gets no disk, and insists', { disk: 'refused', front: S.Initialised }, ['closing']],
    ['it gets no disk, and is detached', { disk: 'refused', online: false }, ['closed']],
    ['the disk cannot be opened', { own: S.Initialising, disk: 'failed' }, ['closing']],
    ['somebody wrote 3 for us', { own: S.Initialised }, ['advertise']],
    ['waiting for the frontend', {}, []],
    ['Linux is ready', { front: S.Initialised }, ['connect']],
    ['mini-os is ready', { front: S.Connected }, ['connect']],
    ['connected in the engine', { front: S.Initialised, ring: 'attached' }, ['publish']],
    [
      'broken before it was announced',
      { front: S.Initialised, ring: 'broken' },
      ['disconnect', 'closing'],
    ],
    ['Windows begins with a close', { front: S.Closing }, ['closing']],
    ['serving', { own: S.Connected, front: S.Connected, ring: 'attached' }, []],
    ['the frontend closes', { own: S.Connected, front: S.Closing, ring: 'attached' }, ['closing']],
    [
      'GRUB closes',
      { own: S.Connected, front: S.Closed, ring: 'attached' },
      ['disconnect', 'closed'],
    ],
    [
      'its directory is gone',
      { own: S.Connected, front: S.Unknown, ring: 'attached' },
      ['disconnect', 'closed'],
    ],
    [
      'the ring broke',
      { own: S.Connected, front: S.Connected, ring: 'broken' },
      ['disconnect', 'closing'],
    ],
    ['a backend died before us', { own: S.Connected, front: S.Connected }, ['closing']],
    [
      'a backend left its rings to us',
      { own: S.Connected, front: S.Connected, adoptable: true },
      ['adopt'],
    ],
    [
      'it left them to us, and the frontend has closed',
      { own: S.Connected, front: S.Closed, adoptable: true },
      ['closed'],
    ],
    ['detach in use', { own: S.Closing, front: S.Connected, ring: 'attached', online: false }, []],
    [
      'detach of what never connected',
      { own: S.Closing, front: S.Initialised, online: false },
      ['closed'],
    ],
    ['detach of an inactive frontend', { own: S.Closing, online: false }, ['closed']],
    ['refused, and it insists', { own: S.Closing, front: S.Initialised }, []],
    ['it closed', { own: S.Closing, front: S.Closed, ring: 'attached' }, ['disconnect', 'closed']],
    ['it begins again', { own: S.Closed }, ['advertise']],
    ['it does not wait for InitWait', { own: S.Closed, front: S.Initialised }, ['advertise']],
    ['it begins again after detach', { own: S.Closed, online: false }, []],
    [
      'we stop while it is connected',
      { own: S.Connected, front: S.Connected, ring: 'attached', intent: 'stop' },
      ['closing'],
    ],
    ['we stop before it is', { intent: 'stop' }, ['closed']],
    ['we stop before we began', { own: S.Initialising, intent: 'stop' }, []],
    [
      'time is over',
      { own: S.Closing, front: S.Connected, ring: 'attached', intent: 'abandon' },
      ['disconnect', 'closed'],
    ],
    [
      'the ring broke while closing',
      { own: S.Closing, front: S.Connected, ring: 'broken' },
      ['disconnect'],
    ],
    ['our directory is gone', { own: undefined, ring: 'attached' }, ['disconnect', 'drop']],
    [
      'state 7',
      { own: S.Connected, front: S.Reconfiguring, ring: 'attached' },
      ['disconnect', 'closing'],
    ],
  ])('%s', (_what, changes, steps) => {
    expect(decide({ ...base, ...changes }).steps).toEqual(steps)
  })
})
