/** The scenarios that other implementations of xenstore are tested with, told in this store's own words. */
import fc from 'fast-check'
import { beforeEach, describe, expect, it } from 'vitest'
import { PRIVILEGED, parsePermission } from '../../../lib/xenstore/permission.js'
import { Store } from '../../../lib/xenstore/store.js'
import type { Transaction } from '../../../lib/xenstore/tree.js'
import type { WatchOwner } from '../../../lib/xenstore/watch_table.js'

const errno = (name: string) => expect.objectContaining({ errno: name })
const list = (text: string) => text.split(' ').map(parsePermission)

/** A client that remembers what its watches told it. */
class Listener implements WatchOwner {
  readonly domid: number
  readonly heard: string[] = []

  constructor(store: Store, domid: number) {
    this.domid = domid
    store.join(this)
  }

  onWatch(path: string, token: string): void {
    this.heard.push(`${path} ${token}`)
  }

  take(): string[] {
    return this.heard.splice(0)
  }
}

let store: Store
beforeEach(() => {
  store = new Store()
})

const write = (path: string, value = '', tx?: Transaction) =>
  store.write(PRIVILEGED, path, value, tx)
const read = (path: string, tx?: Transaction) => store.read(PRIVILEGED, path, tx)
const exists = (path: string) => {
  try {
    read(path)
    return true
  } catch {
    return false
  }
}

/** A guest with a directory of its own. */
function guest(domid: number): Listener {
  store.addDomain(domid)
  store.introduce(domid)
  write(`/local/domain/${domid}`)
  store.setPermissions(PRIVILEGED, `/local/domain/${domid}`, list(`n${domid}`))
  return new Listener(store, domid)
}

describe('nodes', () => {
  it('come with the parents they lack, and go with their children', () => {
    write('/a/b/c', 'v')
    expect(read('/a/b')).toBe('')
    expect(store.list(PRIVILEGED, '/a').children).toEqual(['b'])
    store.remove(PRIVILEGED, '/a')
    for (const path of ['/a', '/a/b', '/a/b/c']) expect(exists(path), path).toBe(false)
    expect(store.size).toBe(3)
  })

  it('keep the order of their creation', () => {
    for (const name of ['z', 'a', 'm']) write(`/d/${name}`)
    write('/d/a', 'again')
    expect(store.list(PRIVILEGED, '/d').children).toEqual(['z', 'a', 'm'])
    store.remove(PRIVILEGED, '/d/z')
    write('/d/z')
    expect(store.list(PRIVILEGED, '/d').children).toEqual(['a', 'm', 'z'])
  })

  it('have another generation after each change, their directory when a child comes or goes', () => {
    write('/d/a')
    const generation = (path: string) => store.list(PRIVILEGED, path).generation
    const before = generation('/d')
    write('/d/a', 'x')
    expect(generation('/d')).toBe(before)
    write('/d/b')
    const more = generation('/d')
    expect(more).not.toBe(before)
    store.remove(PRIVILEGED, '/d/b')
    expect(generation('/d')).not.toBe(more)
  })

  it('may be missing when removed, but not their parents', () => {
    write('/a')
    store.remove(PRIVILEGED, '/a/none')
    expect(() => store.remove(PRIVILEGED, '/none/none')).toThrow(errno('ENOENT'))
    expect(() => store.remove(PRIVILEGED, '/')).toThrow(errno('EINVAL'))
  })

  it('have names that no object has by nature', () => {
    for (const name of ['__proto__', 'constructor', 'toString']) {
      write(`/odd/${name}`, name)
      expect(read(`/odd/${name}`)).toBe(name)
    }
    expect(store.list(PRIVILEGED, '/odd').children).toHaveLength(3)
  })
})

describe('permissions', () => {
  it('pass from parent to child, and the maker becomes the owner', () => {
    guest(5)
    write('/dir')
    store.setPermissions(PRIVILEGED, '/dir', list('n0 b5'))
    store.write({ domid: 5 }, '/dir/x', 'v')
    expect(store.permissions(PRIVILEGED, '/dir/x')).toEqual(list('n5 b5'))
    write('/local/domain/5/by-zero')
    expect(store.permissions(PRIVILEGED, '/local/domain/5/by-zero')).toEqual(list('n5'))
  })

  it('hide what may not be read, there or not', () => {
    guest(5)
    write('/secret/a')
    for (const path of ['/secret', '/secret/a', '/secret/none', '/none']) {
      expect(() => store.read({ domid: 5 }, path), path).toThrow(errno('EACCES'))
      expect(() => store.write({ domid: 5 }, path, ''), path).toThrow(errno('EACCES'))
    }
    store.setPermissions(PRIVILEGED, '/secret', list('r0'))
    expect(() => store.read({ domid: 5 }, '/secret/none')).toThrow(errno('ENOENT'))
    expect(() => store.read({ domid: 5 }, '/secret/a')).toThrow(errno('EACCES'))
  })

  it('are changed by their owner, who cannot give the node away', () => {
    const other = guest(6)
    guest(5)
    store.write({ domid: 5 }, 'mine', 'v')
    store.setPermissions({ domid: 5 }, 'mine', list('n5 r6'))
    expect(store.read(other, '/local/domain/5/mine')).toBe('v')
    expect(() => store.setPermissions({ domid: 5 }, 'mine', list('n6'))).toThrow(errno('EPERM'))
    expect(() => store.setPermissions(other, '/local/domain/5/mine', list('n6'))).toThrow(
      errno('EACCES'),
    )
    expect(() => store.setPermissions(PRIVILEGED, '/local/domain/5/mine', list('n77'))).toThrow(
      errno('ENOENT'),
    )
  })

  it('do not pass from a dead domain to the next with its number', () => {
    guest(5)
    write('/shared', 'v')
    store.setPermissions(PRIVILEGED, '/shared', list('n0 r5'))
    store.write({ domid: 5 }, 'left/behind', 'v')
    expect(store.read({ domid: 5 }, '/shared')).toBe('v')
    store.removeDomain(5)
    expect(exists('/local/domain/5')).toBe(false)
    guest(5)
    expect(() => store.read({ domid: 5 }, '/shared')).toThrow(errno('EACCES'))
    store.setPermissions(PRIVILEGED, '/shared', list('n0 r5'))
    expect(store.read({ domid: 5 }, '/shared')).toBe('v')
  })

  it('count for the target of a device model, too', () => {
    guest(5)
    guest(6)
    write('/local/domain/5/x', 'v')
    store.setTarget(6, 5)
    expect(store.targetOf(6)).toBe(5)
    const model = { domid: 6, target: store.targetOf(6) }
    expect(store.read(model, '/local/domain/5/x')).toBe('v')
    expect(() => store.read({ domid: 6 }, '/local/domain/5/x')).toThrow(errno('EACCES'))
  })
})

describe('transactions', () => {
  it('leave nothing when aborted', () => {
    write('/a', 'before')
    const tx = store.begin()
    write('/a', 'inside', tx)
    write('/b/c', '', tx)
    expect(read('/a', tx)).toBe('inside')
    expect(read('/a')).toBe('before')
    expect(exists('/b')).toBe(false)
  })

  it('see what was there when first looked at, and their own writes', () => {
    const tx = store.begin()
    write('/new', 'inside', tx)
    expect(() => store.read(PRIVILEGED, '/new')).toThrow(errno('ENOENT'))
    expect(read('/new', tx)).toBe('inside')
    expect(tx.commit()).toBe(true)
    expect(read('/new')).toBe('inside')
  })

  it.each<[string, (tx: Transaction) => void, () => void]>([
    ['a node read was written', (tx) => read('/a', tx), () => write('/a', 'x')],
    [
      'a node read was written with the same value',
      (tx) => read('/a', tx),
      () => write('/a', 'old'),
    ],
    ['a node written was written', (tx) => write('/a', 'in', tx), () => write('/a', 'x')],
    ['a node read was removed', (tx) => read('/a', tx), () => store.remove(PRIVILEGED, '/a')],
    [
      'a node removed and made again',
      (tx) => read('/a', tx),
      () => {
        store.remove(PRIVILEGED, '/a')
        write('/a', 'old')
      },
    ],
    [
      'a node looked for in vain was made',
      (tx) => {
        expect(() => read('/none', tx)).toThrow()
      },
      () => write('/none'),
    ],
    [
      'a sibling was made beside a new node',
      (tx) => write('/dir/new', '', tx),
      () => write('/dir/other'),
    ],
    [
      'permissions changed',
      (tx) => read('/a', tx),
      () => store.setPermissions(PRIVILEGED, '/a', list('r0')),
    ],
  ])('fail when %s meanwhile', (_name, inside, outside) => {
    write('/a', 'old')
    write('/dir')
    const tx = store.begin()
    inside(tx)
    outside()
    const before = store.size
    expect(tx.commit()).toBe(false)
    expect(store.size).toBe(before)
  })

  it('succeed when something else changed', () => {
    write('/a', 'old')
    write('/dir/x')
    const tx = store.begin()
    write('/a', 'in', tx)
    write('/dir/x', 'out')
    write('/other')
    expect(tx.commit()).toBe(true)
    expect(read('/a')).toBe('in')
  })

  it('tell the watches once per node, at the commit, and of the topmost of what is removed', () => {
    const listener = new Listener(store, 0)
    write('/t/a/b')
    store.watch(listener, '/t', 'w')
    const tx = store.begin()
    write('/t/new', '1', tx)
    write('/t/new', '2', tx)
    store.remove(PRIVILEGED, '/t/a', tx)
    expect(listener.take()).toEqual([])
    expect(tx.commit()).toBe(true)
    expect(listener.take()).toEqual(['/t/new w', '/t/a w'])
    const aborted = store.begin()
    write('/t/x', '', aborted)
    expect(listener.take()).toEqual([])
  })

  it('may bring back what they removed', () => {
    write('/t/a/b', 'old')
    const tx = store.begin()
    store.remove(PRIVILEGED, '/t/a', tx)
    expect(() => read('/t/a/b', tx)).toThrow(errno('ENOENT'))
    write('/t/a/b', 'new', tx)
    expect(tx.commit()).toBe(true)
    expect(read('/t/a/b')).toBe('new')
    expect(store.list(PRIVILEGED, '/t').children).toEqual(['a'])
  })

  it('are as one step: the same as their operations outside, when nobody interferes', () => {
    const paths = fc.constantFrom('/a', '/a/b', '/a/b/c', '/a/d', '/e', '/e/f')
    const operation = fc.oneof(
      fc.tuple(
        fc.constant('write' as const),
        paths,
        fc.string({ maxLength: 4, unit: 'binary-ascii' }),
      ),
      fc.tuple(fc.constant('rm' as const), paths, fc.constant('')),
      fc.tuple(fc.constant('mkdir' as const), paths, fc.constant('')),
    )
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 20 }), (operations) => {
        const direct = new Store()
        const through = new Store()
        const tx = through.begin()
        for (const [kind, path, value] of operations) {
          const outcomes = [
            attempt(() => apply(direct, kind, path, value)),
            attempt(() => apply(through, kind, path, value, tx)),
          ]
          expect(outcomes[1]).toBe(outcomes[0])
        }
        expect(tx.commit()).toBe(true)
        expect(dump(through)).toEqual(dump(direct))
      }),
    )
  })
})

function apply(
  on: Store,
  kind: 'write' | 'rm' | 'mkdir',
  path: string,
  value: string,
  tx?: Transaction,
) {
  if (kind === 'write') on.write(PRIVILEGED, path, value, tx)
  else if (kind === 'mkdir') on.mkdir(PRIVILEGED, path, tx)
  else on.remove(PRIVILEGED, path, tx)
}

function attempt(act: () => void): string {
  try {
    act()
    return 'ok'
  } catch (error) {
    return (error as { errno: string }).errno
  }
}

function dump(from: Store, path = '/'): Record<string, string> {
  const node = from.list(PRIVILEGED, path)
  const all: Record<string, string> = { [path]: node.value }
  for (const name of node.children) {
    Object.assign(all, dump(from, path === '/' ? `/${name}` : `${path}/${name}`))
  }
  return all
}

describe('watches', () => {
  it('hear of what happens at and below them, in their own words', () => {
    const one = new Listener(store, 0)
    store.watch(one, '/a', 'absolute')
    store.watch(one, 'rel', 'relative')
    write('/a')
    write('/a/b')
    write('/ab')
    write('/local/domain/0/rel/x')
    expect(one.take()).toEqual(['/a absolute', '/a/b absolute', 'rel/x relative'])
    store.unwatch(one, '/a', 'absolute')
    write('/a')
    expect(one.take()).toEqual([])
    expect(() => store.unwatch(one, '/a', 'absolute')).toThrow(errno('ENOENT'))
    expect(() => store.watch(one, 'rel', 'relative')).toThrow(errno('EEXIST'))
    // The same node in other words is the same watch.
    expect(() => store.watch(one, '/local/domain/0/rel', 'relative')).toThrow(errno('EEXIST'))
  })

  it('hear of the removal of an ancestor once, by their own name', () => {
    const one = new Listener(store, 0)
    write('/x/y/z/deep')
    store.watch(one, '/x/y/z', 'w')
    store.remove(PRIVILEGED, '/x')
    expect(one.take()).toEqual(['/x/y/z w'])
  })

  it('hear nothing of what their owner may not read', () => {
    const one = guest(5)
    store.watch(one, '/', 'w')
    write('/secret')
    expect(one.take()).toEqual([])
    store.setPermissions(PRIVILEGED, '/secret', list('n0 r5'))
    write('/secret', 'now')
    store.setPermissions(PRIVILEGED, '/secret', list('n0'))
    expect(one.take()).toEqual(['/secret w', '/secret w', '/secret w'])
    store.remove(PRIVILEGED, '/secret')
    expect(one.take()).toEqual([])
  })

  it('end with their client', () => {
    const one = new Listener(store, 0)
    store.watch(one, '/a', 'w')
    store.leave(one)
    write('/a')
    expect(one.take()).toEqual([])
  })
})

describe('domains', () => {
  it('are announced to domain 0, and to others only by leave', () => {
    const zero = new Listener(store, 0)
    const five = guest(5)
    for (const one of [zero, five]) {
      store.watch(one, '@introduceDomain', 'I')
      store.watch(one, '@releaseDomain', 'R')
    }
    guest(6)
    store.removeDomain(6)
    expect(zero.take()).toEqual(['@introduceDomain I', '@releaseDomain R'])
    expect(five.take()).toEqual([])
    store.setPermissions(PRIVILEGED, '@releaseDomain', list('n0 r5'))
    guest(6)
    store.removeDomain(6)
    expect(five.take()).toEqual(['@releaseDomain R'])
    expect(store.isIntroduced(6)).toBe(false)
    expect(() => store.setPermissions(five, '@releaseDomain', list('n0'))).toThrow(errno('EACCES'))
  })

  it('lose their nodes before they are told to be gone', () => {
    const zero = new Listener(store, 0)
    guest(6)
    store.watch(zero, '/', 'w')
    store.watch(zero, '@releaseDomain', 'R')
    store.removeDomain(6)
    expect(zero.take()).toEqual(['/local/domain/6 w', '@releaseDomain R'])
  })
})

describe('quotas', () => {
  it('bind guests only', () => {
    store = new Store({ nodes: 4, watches: 1, nodeSize: 100 })
    const one = guest(5)
    write('/local/domain/5/by/zero', 'x'.repeat(500))
    store.write(one, 'a', '')
    expect(() => store.write(one, 'b', '')).toThrow(errno('ENOSPC'))
    expect(exists('/local/domain/5/b')).toBe(false)
    store.remove(one, 'a')
    store.remove(one, 'by')
    store.write(one, 'b/c', '')
    expect(() => store.write(one, 'b/c', 'x'.repeat(68))).toThrow(errno('ENOSPC'))
    store.write(one, 'b/c', 'x'.repeat(67))
    store.watch(one, 'a', '1')
    store.watch(one, 'a', '2')
    expect(() => store.watch(one, 'a', '3')).toThrow(errno('E2BIG'))
    for (let i = 0; i < 20; i++) store.watch(new Listener(store, 0), '/', 'w')
  })

  it('leave nothing half made', () => {
    store = new Store({ nodes: 5 })
    const one = guest(5)
    const before = store.size
    expect(() => store.write(one, 'a/b/c/d/e/f', '')).toThrow(errno('ENOSPC'))
    expect(store.size).toBe(before)
    expect(store.list(one, '/local/domain/5').children).toEqual([])
  })

  it('bind what a transaction owns, too', () => {
    store = new Store({ nodes: 3 })
    const one = guest(5)
    const tx = store.begin()
    store.write(one, 'a', '', tx)
    store.write(one, 'b', '', tx)
    expect(() => store.write(one, 'c', '', tx)).toThrow(errno('ENOSPC'))
    store.remove(one, 'a', tx)
    store.write(one, 'c', '', tx)
    expect(tx.commit()).toBe(true)
    expect(() => store.write(one, 'd', '')).toThrow(errno('ENOSPC'))
  })
})
