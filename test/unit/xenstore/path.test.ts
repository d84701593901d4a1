/** Paths: validity, and their algebra. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  absolutePath,
  childOf,
  commonAncestor,
  isAtOrUnder,
  isValidPath,
  nameOf,
  parentOf,
} from '../../../lib/xenstore/path.js'

const anyName = fc.stringMatching(/^[A-Za-z0-9_@-]{1,8}$/)
const anyPath = fc
  .array(anyName, { minLength: 1, maxLength: 6 })
  .map((names) => `/${names.join('/')}`)

describe('paths', () => {
  it('are absolute, without empty parts, of few characters', () => {
    for (const path of ['/', '/a', '/a/b-c_d@e', '/local/domain/0/backend/vbd/1/51712']) {
      expect(isValidPath(path), path).toBe(true)
    }
    for (const path of [
      '',
      'a',
      '/a/',
      '//',
      '/a//b',
      '/a b',
      '/a:b',
      '/a.b',
      '/é',
      '@x',
      '/a\0',
    ]) {
      expect(isValidPath(path), path).toBe(false)
    }
  })

  it('are no longer than 2048 after the domain', () => {
    expect(isValidPath(`/${'a'.repeat(2047)}`)).toBe(true)
    expect(isValidPath(`/${'a'.repeat(2048)}`)).toBe(false)
    expect(isValidPath(`/local/domain/12/${'a'.repeat(2048)}`)).toBe(true)
    expect(isValidPath(`/local/domain/12/${'a'.repeat(2049)}`)).toBe(false)
  })

  it('begin at the own domain where they do not begin at the root', () => {
    expect(absolutePath('data/x', 7)).toBe('/local/domain/7/data/x')
    expect(absolutePath('/data/x', 7)).toBe('/data/x')
  })

  it('are a parent and a name', () => {
    fc.assert(
      fc.property(anyPath, (path) => {
        expect(childOf(parentOf(path), nameOf(path))).toBe(path)
        expect(isAtOrUnder(path, parentOf(path))).toBe(true)
        expect(isAtOrUnder(path, path)).toBe(true)
        expect(isAtOrUnder(`${path}x`, path)).toBe(false)
      }),
    )
    expect(parentOf('/a')).toBe('/')
  })

  it('have a common ancestor, which is the deepest', () => {
    expect(commonAncestor('/a/b/c', '/a/b/d', '/a')).toBe('/a/b')
    expect(commonAncestor('/a/b', '/a/b/d', '/a')).toBe('/a/b')
    expect(commonAncestor('/a/bc', '/a/bd', '/a')).toBe('/a')
    expect(commonAncestor('/a', '/b', '/')).toBe('/')
    expect(commonAncestor('@x', '@x', '@x')).toBe('@x')
    expect(commonAncestor('rel/a', 'rel/b', 'rel')).toBe('rel')
    expect(commonAncestor('rel', 'other', 'w')).toBe('w')
    fc.assert(
      fc.property(anyPath, anyPath, anyPath, (a, b, c) => {
        const common = commonAncestor(`${a}${b}`, `${a}${c}`, a)
        expect(isAtOrUnder(common, a)).toBe(true)
        expect(isAtOrUnder(`${a}${b}`, common)).toBe(true)
        expect(isAtOrUnder(`${a}${c}`, common)).toBe(true)
      }),
    )
  })
})
