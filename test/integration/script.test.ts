/**
 * Disks in TypeScript, served to guests through real rings: what the functions are given, what becomes of what they
 * answer, throw, or never answer, and what guests are offered.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, it, onTestFinished, vi } from 'vitest'
import { defineDisk } from '../../lib/disk/define.js'
import type { Disk } from '../../lib/disk/disk.js'
import { type DiskDefinition, DiskError, type RequestIo } from '../../lib/disk/script.js'
import type { VbdError } from '../../lib/errors.js'
import type { VbdOptions } from '../../lib/vbd/options.js'
import { World } from '../support/product_world.js'

const KIB = 1024
const MIB = 1024 * KIB

/** Passes in the end, on a busy machine too. */
const eventually = (check: () => unknown) => vi.waitFor(check, { timeout: 15_000, interval: 10 })

let place: World
beforeAll(async () => {
  place = await World.open()
})
afterAll(() => place.close())

/** A guest with this disk, and what its vbd said of errors. */
async function attach(described: Disk, options: VbdOptions = {}) {
  const guest = await place.guest()
  const vbd = await place.backend.serve(`${guest.domid}:xvda`, described, options)
  const errors: VbdError[] = []
  vbd.on('error', ({ error }) => void errors.push(error))
  const disk = await guest.disk('xvda', { closeTimeoutMs: 500 })
  onTestFinished(async () => {
    await guest.close()
    await vbd.close({ timeoutMs: 500 })
  })
  return { guest, vbd, disk, id: vbd.id, said: () => errors.map(({ message }) => message), errors }
}

/** A disk in memory, with whatever differs. */
function ram<State = undefined>(
  changes: Partial<DiskDefinition<State>> = {},
): DiskDefinition<State> {
  const data = Buffer.alloc(4 * MIB)
  return {
    name: 'ram',
    size: data.length,
    read(buf, offset) {
      data.copy(buf, 0, offset, offset + buf.length)
    },
    write(buf, offset) {
      buf.copy(data, offset)
    },
    flush() {},
    discard(offset, length) {
      data.fill(0, offset, offset + length)
    },
    ...changes,
  }
}

/** Something that a test settles. */
function gate() {
  let open = () => {}
  const opened = new Promise<void>((resolve) => {
    open = resolve
  })
  return { open, opened }
}

describe('requests', () => {
  it('are what the guest asked for, with everything there is to know of them', async () => {
    const seen: unknown[] = []
    const note = (what: string, ...rest: unknown[]) => void seen.push([what, ...rest])
    const { disk, id } = await attach(
      defineDisk({
        ...ram<{ opened: boolean }>(),
        open: () => ({ opened: true }),
        read(buf, offset, { vbd, fua, state }) {
          note('read', buf.length, offset, vbd, fua, state)
        },
        write(buf, offset, { fua }) {
          note('write', buf.toString('latin1', 0, 3), offset, fua)
        },
        flush: ({ vbd }) => note('flush', vbd),
        discard: (offset, length) => note('discard', offset, length),
      }),
    )
    await disk.write(4096, Buffer.from('abc'.padEnd(1024, '.')))
    await disk.read(512, 1536)
    await disk.flush()
    await disk.discard(8192, 65536)
    expect(seen).toEqual([
      ['write', 'abc', 4096, false],
      ['read', 1536, 512, id, false, { opened: true }],
      ['flush', id],
      ['discard', 8192, 65536],
    ])
  })

  it('longer than a buffer come in pieces, and what a function leaves out is zeroes', async () => {
    const lengths: number[] = []
    const { disk } = await attach(
      defineDisk({
        ...ram(),
        size: '8MiB',
        write(buf) {
          lengths.push(buf.length)
        },
        read(buf) {
          buf[0] = 1
        },
      }),
      { indirectSegments: 1024 },
    )
    await disk.write(0, Buffer.alloc(3 * MIB, 0xaa))
    expect(lengths.reduce((sum, length) => sum + length)).toBe(3 * MIB)
    expect(Math.max(...lengths)).toBeLessThanOrEqual(MIB)
    const page = await disk.read(0, 4096)
    expect([...new Set(page)].sort()).toEqual([0, 1])
  })

  it.each([1, 3])('at a time are as many as concurrency allows: %i', async (concurrency) => {
    let running = 0
    let most = 0
    const full = gate()
    const { disk } = await attach(
      defineDisk({
        ...ram(),
        concurrency,
        async read() {
          most = Math.max(most, ++running)
          if (running === concurrency) full.open()
          await full.opened
          await delay(2)
          running--
        },
      }),
    )
    await Promise.all(Array.from({ length: 12 }, (_, i) => disk.read(i * 4096, 4096)))
    expect(most).toBe(concurrency)
  })

  it('of several guests share one open disk, and are told apart', async () => {
    let opened = 0
    const seen = new Set<string>()
    const shared = defineDisk({
      ...ram<void>(),
      open() {
        opened++
      },
      read(_buf, _offset, { vbd }) {
        seen.add(vbd)
      },
    })
    const guests = [await attach(shared), await attach(shared)]
    for (const { disk } of guests) await disk.read(0, 512)
    expect(opened).toBe(1)
    expect([...seen]).toEqual(guests.map(({ id }) => id))
  })
})

describe('what is not there is not offered', () => {
  it('write: the disk is read-only', async () => {
    const { disk, vbd } = await attach(defineDisk({ name: 'clock', size: '1MiB', read() {} }))
    expect(vbd.disk).toMatchObject({ readOnly: true, canFlush: false, canDiscard: false })
    await expect(disk.write(0, Buffer.alloc(512))).rejects.toThrow()
  })

  it('flush: writes are asked to be durable instead; with it they are made so', async () => {
    const seen: string[] = []
    const durable: DiskDefinition = {
      ...ram(),
      write: (_buf, _offset, { fua }) => void seen.push(`write ${fua}`),
      flush: () => void seen.push('flush'),
    }
    const { flush: _flush, ...volatile } = durable
    const without = await attach(defineDisk(volatile))
    expect(without.vbd.disk).toMatchObject({ canFlush: false, canDiscard: true })
    await without.disk.write(0, Buffer.alloc(512))
    expect(seen.splice(0)).toEqual(['write true'])
    const unoffered = await attach(defineDisk(durable), { flush: false })
    await unoffered.disk.write(0, Buffer.alloc(512))
    expect(seen).toEqual(['write true', 'flush'])
  })

  it('resize: it keeps its size; with it guests are told', async () => {
    const fixed = await attach(defineDisk(ram()))
    await expect(fixed.vbd.resize('8MiB')).rejects.toMatchObject({ code: 'ERR_VBD_UNSUPPORTED' })
    const sizes: number[] = []
    const growing = await attach(
      defineDisk({ ...ram(), read() {}, resize: (size) => void sizes.push(size) }),
    )
    await growing.vbd.resize('8MiB')
    expect(sizes).toEqual([8 * MIB])
    await eventually(async () =>
      expect(await growing.disk.read(8 * MIB - 512, 512)).toHaveLength(512),
    )
  })

  it('the right to write, although there is write', async () => {
    const { vbd } = await attach(defineDisk(ram()), { readOnly: true })
    expect(vbd.disk).toMatchObject({ readOnly: true, canFlush: false, canDiscard: false })
  })
})

describe('what goes wrong', () => {
  it.each(['EIO', 'ENOSPC', 'EOPNOTSUPP'] as const)(
    'DiskError %s fails the request alone',
    async (code) => {
      const { disk, said } = await attach(
        defineDisk({
          ...ram(),
          write(_buf, offset) {
            if (offset === 0) throw new DiskError(code)
          },
          async discard() {
            throw new DiskError(code)
          },
        }),
      )
      await expect(disk.write(0, Buffer.alloc(512))).rejects.toThrow('ERROR')
      await disk.write(512, Buffer.alloc(512))
      await expect(disk.discard(0, 4096)).rejects.toThrow(
        code === 'EOPNOTSUPP' ? 'EOPNOTSUPP' : 'ERROR',
      )
      expect(said()).toEqual([])
    },
  )

  it('anything else thrown is EIO, and an error of that vbd with what caused it', async () => {
    const { disk, said, errors } = await attach(
      defineDisk({
        ...ram(),
        read(_buf, offset) {
          throw new TypeError(`boom at ${offset}`)
        },
        write: () => Promise.reject('no error at all'),
      }),
    )
    await expect(disk.read(1024, 512)).rejects.toThrow('ERROR')
    await expect(disk.write(0, Buffer.alloc(512))).rejects.toThrow('ERROR')
    expect(said()).toEqual([
      'the disk ram failed a read of 512 bytes at 1024: boom at 1024',
      'the disk ram failed a write of 512 bytes at 0: no error at all',
    ])
    expect(errors[0]!.cause).toBeInstanceOf(TypeError)
  })

  it('a read that returns its bytes instead of filling the buffer is told what to do', async () => {
    const returns = { ...ram(), read: (() => Buffer.alloc(512)) as never }
    const { disk, said } = await attach(defineDisk(returns))
    await expect(disk.read(0, 512)).rejects.toThrow('ERROR')
    expect(said()[0]).toContain('fill the buffer')
  })

  it('a flush that fails is never answered, as with every disk', async () => {
    const { disk, said } = await attach(
      defineDisk({
        ...ram(),
        async flush() {
          throw new DiskError('EIO')
        },
      }),
    )
    const flushed = disk.flush()
    flushed.catch(() => {})
    await eventually(() => expect(said().join()).toContain('a flush failed'))
    await expect(disk.write(0, Buffer.alloc(512))).rejects.toThrow('ERROR')
    await expect(Promise.race([flushed, delay(20, 'unanswered')])).resolves.toBe('unanswered')
  })

  it('what is not answered by its deadline fails, the vbd says so, and the signal fires', async () => {
    const aborted: string[] = []
    const late = gate()
    let kept: { buf: Buffer; io: RequestIo } | undefined
    const { disk, said, id } = await attach(
      defineDisk({
        ...ram(),
        // For the reads that are answered, too, on a machine that has much else to do.
        deadline: '1s',
        concurrency: 2,
        async read(buf, offset, io) {
          if (offset !== 0) return
          kept = { buf, io }
          io.signal.addEventListener('abort', () => aborted.push(io.vbd))
          await late.opened
        },
      }),
    )
    await expect(disk.read(0, 4096)).rejects.toThrow('ERROR')
    const overdue = 'the disk ram did not answer a read of 4096 bytes at 0 within 1s'
    await eventually(() => expect(said()).toEqual([overdue]))
    await eventually(() => expect(aborted).toEqual([id]))
    expect(kept!.io.signal.aborted).toBe(true)
    // Its buffer is still its own: nothing of it comes to anybody.
    for (let i = 0; i < 20; i++) {
      kept!.buf.fill(0xee)
      const page = await disk.read(4096, 4096)
      expect(page.every((byte) => byte === 0)).toBe(true)
    }
    late.open()
    await delay(1)
    await Promise.all([disk.read(4096, 4096), disk.read(8192, 4096)])
    expect(said()).toHaveLength(1)
  })

  it('a slow disk slows nobody else', async () => {
    const never = gate()
    const stuck = await attach(defineDisk({ ...ram(), name: 'slow', read: () => never.opened }))
    const quick = await attach(defineDisk(ram()))
    let answered = false
    const reading = stuck.disk.read(0, 512).then(() => {
      answered = true
    })
    for (let i = 0; i < 50; i++) await quick.disk.read(i * 512, 512)
    expect(answered).toBe(false)
    never.open()
    await reading
  })
})

describe('its life', () => {
  it('open, size, requests, close: in this order and once each', async () => {
    const life: string[] = []
    const guest = await place.guest()
    const vbd = await place.backend.serve(
      `${guest.domid}:xvda`,
      defineDisk({
        name: 'lived',
        async open({ signal }) {
          life.push('open')
          signal.addEventListener('abort', () => life.push('aborted'))
          return { bytes: MIB }
        },
        size({ bytes }) {
          life.push('size')
          return bytes
        },
        read: () => void life.push('read'),
        close: ({ bytes }) => void life.push(`close ${bytes}`),
      }),
    )
    await (await guest.disk('xvda')).read(0, 512)
    await guest.close()
    await vbd.close({ timeoutMs: 500 })
    expect(life).toEqual(['open', 'size', 'read', 'aborted', `close ${MIB}`])
  })

  it.each([
    [
      'open throws',
      { open: () => Promise.reject(new Error('no such server')) },
      'could not be opened: no such server',
    ],
    ['a size that is no disk’s', { size: () => 1000 }, 'cannot have 1000 bytes'],
    [
      'a size that nobody knows',
      { size: () => Promise.reject(new Error('HTTP 404')) },
      'does not tell its size: HTTP 404',
    ],
  ])('%s: the disk is not served, and closed', async (_, changes, message) => {
    const close = vi.fn()
    const disk = defineDisk({ ...ram<unknown>(), ...(changes as object), close })
    await expect(place.backend.serve('99:xvda', disk)).rejects.toThrow(message)
    expect(close).toHaveBeenCalledTimes('open' in changes ? 0 : 1)
  })

  it('a close that fails is told, and everything else is closed', async () => {
    const disk = defineDisk({ ...ram(), close: () => Promise.reject(new Error('stuck')) })
    const vbd = await place.backend.serve('99:xvda', disk)
    await expect(vbd.close()).rejects.toThrow('the disk ram could not be closed: stuck')
  })
})
