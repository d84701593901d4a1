/** Smaller parts of the command line: the log, the drivers, the demo's telling of a handshake, its random numbers. */
import { chmodSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Handshake } from '../../../lib/cli/demo/handshake.js'
import { Random } from '../../../lib/cli/demo/random.js'
import { diskOf } from '../../../lib/cli/drivers.js'
import { openLog } from '../../../lib/cli/log.js'

let folder: string

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'vbdkit-parts-'))
})

afterEach(() => rmSync(folder, { recursive: true }))

describe('the log', () => {
  it('appends lines of JSON, from the level that was asked for', async () => {
    const path = join(folder, 'log')
    for (const text of ['first', 'second']) {
      const log = await openLog(path, 'warn')
      log.logger.info('not this')
      log.logger.warn({ vbd: '1:xvda' }, text)
      await log.close()
    }
    const lines = readFileSync(path, 'utf8')
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line))
    expect(lines.map(({ msg, vbd }) => [msg, vbd])).toEqual([
      ['first', '1:xvda'],
      ['second', '1:xvda'],
    ])
  })

  it('says when it cannot be opened', async () => {
    const path = join(folder, 'none', 'log')
    await expect(openLog(path, 'info')).rejects.toMatchObject({ code: 'ERR_VBD_ARGUMENT', path })
  })

  it('swallows everything where none was asked for', async () => {
    const log = await openLog(undefined, 'debug')
    log.logger.error('nobody')
    await log.close()
  })
})

describe('a driver', () => {
  it('becomes the disk that it describes', async () => {
    expect((await diskOf('memory', ['1MiB'], {})).spec).toMatchObject({
      driver: 'memory',
      sizeBytes: 1 << 20,
    })
    expect((await diskOf('null', ['1TiB'], { sectorSize: '4096' })).spec).toMatchObject({
      driver: 'null',
      sectorSize: 4096,
    })
    const path = join(folder, 'disk.img')
    writeFileSync(path, '')
    truncateSync(path, 4096)
    const disk = await diskOf('file', [path], { direct: 'off', io: 'sync', writeThrough: true })
    expect(disk.spec).toMatchObject({
      driver: 'file',
      path,
      direct: false,
      io: 'sync',
      writeThrough: true,
    })
    expect((await diskOf('file', [path], { direct: 'auto' })).spec).toMatchObject({
      direct: 'auto',
    })
  })

  it('refuses a file that nobody may write to, unless it is only read', async () => {
    const path = join(folder, 'disk.img')
    writeFileSync(path, Buffer.alloc(4096))
    chmodSync(path, 0o444)
    await expect(diskOf('file', [path], {})).rejects.toThrow(/is a read-only file/)
    expect((await diskOf('file', [path], { readOnly: true })).spec).toMatchObject({
      readOnly: true,
    })
  })

  it('takes exactly one argument', async () => {
    await expect(diskOf('null', [], {})).rejects.toThrow(/null needs a size/)
    await expect(diskOf('null', ['1G', '2G'], {})).rejects.toThrow(/takes one argument, not 2/)
    await expect(diskOf('floppy', ['a'], {})).rejects.toThrow(/there is no driver 'floppy'/)
  })
})

describe('the telling of a handshake', () => {
  const backend = '/local/domain/0/backend/vbd/1/51712'
  const change = (path: string, value: string | null) => ({ event: 'xenstore', path, value })

  it('has a line for each new value, and for each state', () => {
    const handshake = new Handshake(1, 51712)
    const lines = [
      change(`${backend}/state`, '2'),
      change(`${backend}/sectors`, '2048'),
      change(`${backend}/sectors`, '2048'),
      change('/local/domain/1/device/vbd/51712/state', '3'),
      change(`${backend}/sectors`, '4096'),
      change(`${backend}/state`, '2'),
    ].map((event) => handshake.line(event))
    expect(lines).toEqual([
      '  backend   state = 2  InitWait',
      '  backend   sectors = 2048',
      undefined,
      '  frontend  state = 3  Initialised',
      '  backend   sectors = 4096',
      '  backend   state = 2  InitWait',
    ])
  })

  it('says nothing about others, removals, or what is no event', () => {
    const handshake = new Handshake(1, 51712)
    for (const event of [
      change('/local/domain/0/backend/vbd/2/51712/state', '2'),
      change(backend, ''),
      change(`${backend}/state`, null),
      { event: 'xenstore' },
    ]) {
      expect(handshake.line(event)).toBeUndefined()
    }
  })
})

describe('random numbers', () => {
  it('repeat with their seed, and stay within their limit', () => {
    fc.assert(
      fc.property(
        fc.integer(),
        fc.integer({ min: 1, max: 2 ** 32 }),
        fc.nat(999),
        (seed, limit, length) => {
          const [a, b] = [new Random(seed), new Random(seed)]
          const number = a.below(limit)
          expect(number).toBeGreaterThanOrEqual(0)
          expect(number).toBeLessThan(limit)
          expect(Number.isInteger(number)).toBe(true)
          expect(b.below(limit)).toBe(number)
          const bytes = a.bytes(length)
          expect(bytes).toHaveLength(length)
          expect(b.bytes(length).equals(bytes)).toBe(true)
        },
      ),
    )
  })
})
