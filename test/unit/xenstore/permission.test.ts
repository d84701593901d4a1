/** Permissions: their text, and who may do what. */
import { describe, expect, it } from 'vitest'
import { accessOf, formatPermission, parsePermission } from '../../../lib/xenstore/permission.js'
import type { Permission } from '../../../lib/xenstore/xenstore.js'

const list = (text: string): Permission[] => text.split(' ').map(parsePermission)

/** `rwo` for what the domain may do: read, write, own. */
function may(domid: number, text: string, target?: number): string {
  const access = accessOf({ domid, target }, list(text))
  return `${access.read ? 'r' : '-'}${access.write ? 'w' : '-'}${access.owner ? 'o' : '-'}`
}

describe('permissions', () => {
  it('are a letter and a domain', () => {
    for (const text of ['n0', 'r7', 'w12', 'b65535']) {
      expect(formatPermission(parsePermission(text))).toBe(text)
    }
    for (const text of ['', 'n', 'x5', '5', 'r-1', 'r1 ', 'r01', 'rr1', 'r123456']) {
      expect(() => parsePermission(text), text).toThrow(
        expect.objectContaining({ errno: 'EINVAL' }),
      )
    }
  })

  it.each([
    [0, 'n7', 'rwo'],
    [7, 'n7', 'rwo'],
    [8, 'n7', '---'],
    [8, 'r7', 'r--'],
    [8, 'w7', '-w-'],
    [8, 'b7', 'rw-'],
    [8, 'n7 r8', 'r--'],
    [8, 'b7 n8', '---'],
    [8, 'n7 r8 b8', 'r--'],
    [9, 'n7 b8', '---'],
  ])('let domain %i with %s do %s', (domid, text, expected) => {
    expect(may(domid, text)).toBe(expected)
  })

  it('give a device model the rights of its guest', () => {
    expect(may(9, 'n7', 7)).toBe('rwo')
    expect(may(9, 'n5 r7', 7)).toBe('r--')
  })

  it('leave out entries of the dead', () => {
    const [owner, entry] = list('n0 b7')
    const dead = new Set([entry!])
    expect(accessOf({ domid: 7 }, [owner!, entry!], dead).read).toBe(false)
  })
})
