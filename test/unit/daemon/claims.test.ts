import { describe, expect, it } from 'vitest'
import { DEFAULT_CLAIMS, isOurs, parseKind } from '../../../lib/daemon/claims.js'

const ours = '/etc/xen/scripts/block-vbdkit'

function claimed(kind: string, script?: string, createdBy?: string, claims = DEFAULT_CLAIMS) {
  return isOurs(claims, { kind, script, createdBy })
}

describe('claims', () => {
  it('of a shared kind, what names our script', () => {
    for (const kind of ['vbd', 'vbd3']) {
      expect(claimed(kind, ours)).toBe(true)
      expect(claimed(kind, '/usr/local/etc/xen/scripts/block-vbdkit')).toBe(true)
      expect(claimed(kind, '/etc/xen/scripts/block')).toBe(false)
      expect(claimed(kind, '/etc/xen/scripts/block-vbdkit/block')).toBe(false)
      expect(claimed(kind, '/etc/xen/scripts/my-block-vbdkit')).toBe(false)
      expect(claimed(kind, '')).toBe(false)
      expect(claimed(kind)).toBe(false)
    }
  })

  it('of a kind of our own, everything but what a serve made for itself', () => {
    expect(claimed('vbdkit')).toBe(true)
    expect(claimed('vbdkit', '/etc/xen/scripts/block')).toBe(true)
    expect(claimed('vbdkit', undefined, 'vbdkit')).toBe(false)
    expect(claimed('vbd', ours, 'vbdkit')).toBe(false)
  })

  it('of a kind that is not configured, nothing', () => {
    expect(claimed('qdisk', ours)).toBe(false)
    expect(claimed('vbd', ours, undefined, [parseKind('vbd3')])).toBe(false)
  })

  it('of a shared kind as a whole, when it is said', () => {
    expect(claimed('vbd3', undefined, undefined, [parseKind('vbd3:all')])).toBe(true)
    expect(claimed('qdisk', undefined, undefined, [parseKind('qdisk')])).toBe(true)
  })

  it.each(['', 'VBD', 'vbd:some', 'a/b', 'vbd,vbd3', 'x'.repeat(33)])('refuses kind %j', (text) => {
    expect(() => parseKind(text)).toThrow('no kind of backend')
  })
})
