/** The demo from outside: good with either image, gone without a trace, whatever ends it. */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { mkdir, truncate, writeFile } from 'node:fs/promises'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { jsonLines, Running, Scene } from './cli_process.js'

let scene: Scene

beforeEach(async () => {
  scene = await Scene.make()
  await mkdir(scene.path('tmp'))
})

afterEach(() => scene.close())

/** The demo with a temporary directory of its own, to see what it leaves. */
function demo(...args: string[]): Running {
  return new Running(['demo', '--seconds', '1', ...args], { TMPDIR: scene.path('tmp') })
}

/** Processes that name our folder in their arguments, and files in it. */
function leftBehind(): string[] {
  const processes = readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'latin1').replaceAll('\0', ' ')
      } catch {
        return ''
      }
    })
    .filter((command) => command.includes(scene.path('tmp')))
  return [...processes, ...readdirSync(scene.path('tmp'))]
}

it('serves, resizes, checks and cleans up', async () => {
  const { code, out, err } = await demo().ended
  expect(err).toBe('')
  expect(code).toBe(0)
  for (const words of [
    'InitWait',
    'Negotiated',
    'grown to 64MiB',
    'e2fsck -fn',
    'Good: ',
    'persistent grants',
  ]) {
    expect(out).toContain(words)
  }
  expect(leftBehind()).toEqual([])
})

it('says all of it as JSON, too', async () => {
  const { code, out } = await demo('--json', '--transfer', 'copy').ended
  expect(code).toBe(0)
  const lines = jsonLines(out)
  expect(lines.find(({ event }) => event === 'negotiated')).toMatchObject({
    backend: { transfer: 'copy' },
  })
  expect(lines.at(-1)).toMatchObject({
    event: 'result',
    ok: true,
    errors: 0,
    verifiedBytes: 64 * 1024 * 1024,
  })
})

it('only reads the image that it is given', async () => {
  const image = scene.path('mine.img')
  execFileSync('mke2fs', ['-q', '-t', 'ext4', image, '8M'], {
    env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` },
  })
  const hash = () => createHash('sha256').update(readFileSync(image)).digest('hex')
  const before = hash()
  const { code, out } = await demo('--image', image).ended
  expect(code).toBe(0)
  expect(out).toContain('Good: ')
  expect(hash()).toBe(before)
})

it('refuses an image whose filesystem is damaged, and takes one without', async () => {
  const damaged = scene.path('damaged.img')
  execFileSync('mke2fs', ['-q', '-t', 'ext4', damaged, '8M'], {
    env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` },
  })
  const bytes = readFileSync(damaged)
  bytes.fill(0xff, 4096, 16_384)
  await writeFile(damaged, bytes)
  const refused = await demo('--image', damaged).ended
  expect(refused.code).toBe(2)
  expect(refused.err).toContain('has errors before the demo begins')

  const plain = scene.path('plain.img')
  await writeFile(plain, Buffer.alloc(1024 * 1024, 7))
  const taken = await demo('--image', plain).ended
  expect(taken.code).toBe(0)
  expect(taken.out).toContain('e2fsck is left out')
  expect(leftBehind()).toEqual([])
})

it.each(['no.img', 'tmp'])('refuses %s in one line with exit code 2', async (name) => {
  const { code, err } = await demo('--image', scene.path(name)).ended
  expect(code).toBe(2)
  expect(err.trimEnd().split('\n')).toHaveLength(2)
})

it('refuses an image of an odd length', async () => {
  const odd = scene.path('odd.img')
  await writeFile(odd, '')
  await truncate(odd, 1000)
  expect((await demo('--image', odd).ended).code).toBe(2)
})

it.each([/vbdkit mock/, /vbdkit serve/, /vbdkit demo-guest/, /Negotiated/, /working {2}[1-9]0 %/])(
  'leaves nothing behind when it is interrupted at %s',
  async (moment) => {
    const running = demo()
    await running.says(moment)
    const { code, err } = await running.kill('SIGINT')
    expect(code).toBe(130)
    expect(err).toBe('')
    expect(leftBehind()).toEqual([])
  },
)

it.each(['mock', 'backend', 'guest'])(
  'fails, says so and cleans up when the %s is killed',
  async (name) => {
    const running = demo('--json')
    await running.says(/"tally"|"progress"/)
    const pid = jsonLines(running.out.slice(0, running.out.lastIndexOf('\n'))).find(
      (line) => line.event === 'process' && line.name === name,
    )?.pid
    process.kill(Number(pid), 'SIGKILL')
    const { code, err } = await running.ended
    expect(code).toBe(1)
    expect(err).toContain('ended early')
    expect(leftBehind()).toEqual([])
  },
)
