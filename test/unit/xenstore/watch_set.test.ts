/** The client's watches: at most one pending call each, whatever comes. */
import { describe, expect, it } from 'vitest'
import { WatchSet } from '../../../lib/xenstore/watch_set.js'

const turn = () => new Promise(setImmediate)

describe('watch set', () => {
  it('makes one call of all that comes before it runs, with the path that holds it all', async () => {
    const set = new WatchSet()
    const calls: string[] = []
    const { token } = set.add('/a', (path) => calls.push(path))
    for (let i = 0; i < 10_000; i++) set.deliver(`/a/b/${i}`, token)
    expect(calls).toEqual([])
    await turn()
    expect(calls).toEqual(['/a/b'])
    set.deliver('/a/b/1', token)
    await turn()
    expect(calls).toEqual(['/a/b', '/a/b/1'])
  })

  it('lets an event during the call make another call', async () => {
    const set = new WatchSet()
    const calls: string[] = []
    const { token } = set.add('/a', (path) => {
      calls.push(path)
      if (calls.length < 3) set.deliver(`/a/${calls.length}`, token)
    })
    set.deliver('/a', token)
    await turn()
    await turn()
    await turn()
    expect(calls).toEqual(['/a', '/a/1', '/a/2'])
  })

  it('drops events of unknown tokens, and the call that waits when a watch closes', async () => {
    const set = new WatchSet()
    const calls: string[] = []
    const entry = set.add('/a', (path) => calls.push(path))
    set.deliver('/a', 'stale')
    set.deliver('/a', entry.token)
    set.remove(entry)
    set.deliver('/a', entry.token)
    await turn()
    expect(calls).toEqual([])
  })

  it('registers again only what a daemon has accepted', () => {
    const set = new WatchSet()
    const accepted = set.add('/a', () => {})
    const asked = set.add('/b', () => {})
    set.confirm(accepted)
    expect(set.confirmed().map(({ path }) => path)).toEqual(['/a'])
    expect(accepted.token).not.toBe(asked.token)
    expect(accepted.payload).toBe(`/a\0${accepted.token}\0`)
  })

  it('refuses a path that would say something else on the wire', () => {
    const set = new WatchSet()
    expect(() => set.add('/a\0b', () => {})).toThrow(expect.objectContaining({ errno: 'EINVAL' }))
    expect(() => set.add('', () => {})).toThrow(expect.objectContaining({ errno: 'EINVAL' }))
  })
})
