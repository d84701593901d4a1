import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import type { Heartbeat } from '../../../lib/engine/engine.js'
import { notifyServiceManager } from '../../../lib/engine/host.js'
import { Service } from '../../../lib/host/service.js'

vi.mock('../../../lib/engine/host.js', () => ({ notifyServiceManager: vi.fn(() => true) }))

const told = () => vi.mocked(notifyServiceManager).mock.calls.map(([text]) => text)
const WATCHED = { NOTIFY_SOCKET: '/run/x', WATCHDOG_USEC: '10000000' }

let reactors: Heartbeat[]
let changes: string[]
function service(env: NodeJS.ProcessEnv): Service {
  const onChange = (message: string) => void changes.push(message)
  return new Service({ heartbeats: () => reactors, onChange, env, pid: 7 })
}
/** All of them turn, but those named. */
function turn(...hanging: number[]): void {
  reactors = reactors.map((each) =>
    hanging.includes(each.id) ? each : { ...each, beats: each.beats + 1 },
  )
}

beforeEach(() => {
  vi.useFakeTimers()
  vi.mocked(notifyServiceManager).mockClear()
  changes = []
  reactors = [0, 1].map((id) => ({ id, name: `r-${id}`, beats: 5, inGuestCall: false }))
})
afterEach(() => vi.useRealTimers())

describe('a service', () => {
  it('says that it is ready, how it is, and that it stops', () => {
    const told7 = service({ NOTIFY_SOCKET: '/run/x' })
    told7.ready('serving 2 disks')
    told7.status('evil\nREADY=0')
    told7.stopping()
    vi.advanceTimersByTime(60_000)
    expect(told()).toEqual([
      'READY=1\nSTATUS=serving 2 disks',
      'STATUS=evil READY=0',
      'STOPPING=1\nSTATUS=stopping',
    ])
  })

  it.each([
    [{}, undefined],
    [{ WATCHDOG_USEC: '0' }, undefined],
    [{ WATCHDOG_USEC: 'soon' }, undefined],
    [{ WATCHDOG_USEC: '3000000' }, 3000],
    [{ WATCHDOG_USEC: '3000000', WATCHDOG_PID: '7' }, 3000],
    [{ WATCHDOG_USEC: '3000000', WATCHDOG_PID: '8' }, undefined], // meant for our parent
  ])('knows whether it is watched: %j', (env, expected) => {
    expect(service(env).watchdogMs).toBe(expected)
  })

  it('feeds the watchdog four times a period while every reactor turns', () => {
    const watched = service(WATCHED)
    watched.ready('x')
    for (let i = 0; i < 8; i++) {
      turn()
      vi.advanceTimersByTime(2500)
    }
    expect(told().filter((text) => text === 'WATCHDOG=1')).toHaveLength(9)
    watched.stopping()
    vi.advanceTimersByTime(60_000)
    expect(told().at(-1)).toMatch(/^STOPPING/)
    expect(changes).toEqual([])
  })

  it('stops feeding for one that hangs, says so once, and goes on when it turns', () => {
    service(WATCHED).ready('x')
    vi.mocked(notifyServiceManager).mockClear()
    for (let i = 0; i < 3; i++) {
      turn(1)
      vi.advanceTimersByTime(2500)
    }
    const hung = 'r-1 does not turn: the watchdog is not fed'
    expect(told()).toEqual([`STATUS=${hung}`])
    turn()
    vi.advanceTimersByTime(2500)
    expect(told().slice(1)).toEqual(['WATCHDOG=1', 'STATUS=every reactor turns again'])
    expect(changes).toEqual([hung, 'every reactor turns again'])
  })

  it('takes one that its guest holds up for alive, and forgets one that has ended', () => {
    service(WATCHED).ready('x')
    vi.mocked(notifyServiceManager).mockClear()
    reactors = reactors.map((each) => ({ ...each, inGuestCall: each.id === 1 }))
    turn(1)
    vi.advanceTimersByTime(2500)
    reactors = [] // all guests are gone
    vi.advanceTimersByTime(2500)
    reactors = [{ id: 2, name: 'r-2', beats: 5, inGuestCall: false }]
    vi.advanceTimersByTime(2500)
    expect(told()).toEqual(['WATCHDOG=1', 'WATCHDOG=1', 'WATCHDOG=1'])
    expect(changes).toEqual([])
  })
})
