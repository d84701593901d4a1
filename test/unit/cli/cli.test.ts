/** The command line without any Xen: help, misspellings, ranges, exit codes, and the two ways of printing. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { main } from '../../../lib/cli/main.js'
import { startProgress } from '../../../lib/cli/progress.js'
import { aborted, stoppable } from '../../../lib/cli/signals.js'
import { pairs, table } from '../../../lib/cli/table.js'
import { oneLine, Terminal } from '../../../lib/cli/terminal.js'
import { controlSocket } from '../../../lib/control/path.js'
import type { Tuning } from '../../../lib/control/protocol.js'
import { ControlServer, type ControlTarget } from '../../../lib/control/server.js'

class Sink {
  text = ''
  write(text: string) {
    this.text += text
  }
}

async function vbdkit(...argv: string[]) {
  const out = new Sink()
  const err = new Sink()
  const code = await main(argv, new Terminal(out, err))
  return { code, out: out.text, err: err.text }
}

const COMMANDS = [
  ...[
    'serve',
    'daemon',
    'attach',
    'detach',
    'guest',
    'mock',
    'list',
    'stats',
    'explain',
    'resize',
    'tune',
    'unit',
  ],
  ...[
    'doctor',
    'pause',
    'resume',
    'swap',
    'snapshot',
    'commit',
    'reset',
    'trace',
    'replay',
    'demo',
    'bench',
    'xl-script',
    'init',
  ],
]

describe('help', () => {
  it('lists every command and the exit codes', async () => {
    const { code, out, err } = await vbdkit('--help')
    expect(code).toBe(0)
    expect(err).toBe('')
    const listed = [...out.matchAll(/^ {2}([a-z-]+) {2,}\w/gm)].map(([, name]) => name)
    expect(listed).toEqual(COMMANDS)
    expect(out).toContain('Exit codes:')
  })

  it.each(COMMANDS)(
    'of %s has examples, --json, exit codes, and no line too long',
    async (command) => {
      const { code, out } = await vbdkit(command, '--help')
      expect(code).toBe(0)
      for (const part of ['Examples:', '--json', 'Exit codes:', `vbdkit ${command}`])
        expect(out).toContain(part)
      for (const line of out.split('\n')) expect(line.length).toBeLessThanOrEqual(120)
    },
  )

  it('is the same with the word help', async () => {
    expect(await vbdkit('help', 'detach')).toEqual(await vbdkit('detach', '--help'))
    expect((await vbdkit('help')).out).toBe((await vbdkit('--help')).out)
  })

  it('says its version', async () => {
    expect((await vbdkit('--version')).out).toMatch(/^\d+\.\d+\.\d+\n$/)
  })

  it('is shown, with exit code 2, when no command was given', async () => {
    const { code, err } = await vbdkit()
    expect(code).toBe(2)
    expect(err).toContain('Usage: vbdkit')
  })
})

describe('a mistake on the command line', () => {
  it.each([
    [['serv'], /unknown command 'serv'/, /did you mean serve\?/],
    [
      ['serve', '1:xvda', 'null', '1G', '--tranfer', 'copy'],
      /unknown option '--tranfer'/,
      /did you mean --transfer\?/,
    ],
    [
      ['serve', '1:xvda', 'null', '1G', '--transfer', 'magic'],
      /--transfer: 'magic' is none of auto, /,
      undefined,
    ],
    [
      ['serve', '1:xvda', 'null', '1G', '--queues', '0'],
      /--queues: '0' is not a whole number from 1 to 64/,
      undefined,
    ],
    [
      ['serve', '1:xvda', 'null', '1G', '--queues', '1.5'],
      /--queues: '1.5' is not a whole number/,
      undefined,
    ],
    [['serve', '1:xvda', 'null', 'much'], /'much' is not a size/, /10GiB/],
    [['serve', '1:xvda', 'floppy', 'x'], /floppy/, /file PATH/],
    [['serve', '1:xvda', 'file'], /file needs/, /file PATH/],
    [['serve', 'xvda', 'null', '1G'], /'xvda' does not name a disk of a guest/, /1:xvda/],
    [['serve', '1:xvda'], /missing required argument/, /vbdkit serve --help/],
    [['serve', '--xen', 'kvm', '1:xvda', 'null', '1G'], /--xen: 'kvm'/, /mock:DIR/],
    [['mock'], /missing required argument 'DIR'/, /vbdkit mock --help/],
    [['stats', '1:xvda', '--every', 'soon'], /--every: 'soon' is not a duration/, /100ms/],
    [
      ['demo', '--image', '/nonexistent/disk.img'],
      /\/nonexistent\/disk.img does not exist/,
      undefined,
    ],
    [['demo', '--image', '/'], /\/ is a directory/, undefined],
  ])('%j is one line, a remedy and exit code 2', async (argv, message, remedy) => {
    const { code, out, err } = await vbdkit(...argv)
    expect(code).toBe(2)
    const [first = '', second = '', ...more] = err.trimEnd().split('\n')
    expect(first).toMatch(/^vbdkit: /)
    expect(first).toMatch(message)
    if (remedy !== undefined) expect(second).toMatch(remedy)
    expect(more).toEqual([])
    expect(err).not.toMatch(/^\s+at /m)
    expect(out).toBe('')
  })

  it('is JSON on stdout too, with --json', async () => {
    const { code, out } = await vbdkit('serve', '--json', '1:xvda', 'null', 'much')
    expect(code).toBe(2)
    expect(JSON.parse(out)).toMatchObject({ error: { code: 'ERR_VBD_ARGUMENT' } })
  })
})

describe('commands that ask a running serve', () => {
  let folder: string
  let server: ControlServer | undefined
  const asked: unknown[] = []
  const target: ControlTarget = {
    list: () => [
      {
        vbd: '1:xvda',
        state: 'Connected',
        sizeBytes: 1 << 30,
        readOnly: false,
        disk: 'file(/x)',
        engine: 'native',
        paused: false,
      },
    ],
    info: (vbd) => ({ vbd, disk: { sizeBytes: 1 << 30 } }),
    explain: (vbd) => ({ vbd, text: `${vbd} explained` }),
    stats: () => ({}),
    stream: async function* () {},
    resize: async (vbd, sizeBytes, shrink) => {
      asked.push([vbd, sizeBytes, shrink])
      return { sizeBytes, previousBytes: 1 << 30 }
    },
    pause: async (vbd) => void asked.push([vbd, 'pause']),
    resume: async (vbd) => void asked.push([vbd, 'resume']),
    swap: async (vbd, params, shrink) => {
      asked.push([vbd, params, shrink])
      return { description: params, sizeBytes: 1 << 20 }
    },
    snapshot: async (vbd) => {
      asked.push([vbd, 'snapshot'])
      return { layer: '/srv/scratch.1' }
    },
    commit: async (vbd) => void asked.push([vbd, 'commit']),
    reset: async (vbd, force) => void asked.push([vbd, 'reset', force]),
    trace: async function* () {},
    tune: (vbd, tuning: Tuning) => {
      asked.push([vbd, tuning])
      return { pollUs: 50, ...tuning }
    },
    stages: (vbd, tune) => {
      if (tune !== undefined) asked.push([vbd, tune])
      return { stages: [{ name: 'throttle', kind: 'throttle', values: { iops: 500 } }] }
    },
    stop() {},
  }
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'vbdkit-cli-'))
    asked.length = 0
  })
  afterEach(async () => {
    await server?.close()
    server = undefined
    rmSync(folder, { recursive: true })
  })
  const serve = async () => {
    server = await ControlServer.listen(controlSocket(folder, 1, 51712), target)
  }

  it('say that nobody serves', async () => {
    const { code, err } = await vbdkit('resize', '--xen', `mock:${folder}`, '1:xvda', '2G')
    expect(code).toBe(2)
    expect(err).toContain('no `vbdkit serve` serves 1:xvda')
    expect((await vbdkit('list', '--xen', `mock:${folder}`)).out).toBe('nothing is being served\n')
    expect((await vbdkit('list', '--json', '--xen', `mock:${folder}`)).out).toBe('[]\n')
  })

  it('list', async () => {
    await serve()
    const { code, out } = await vbdkit('list', '--xen', `mock:${folder}`)
    expect(code).toBe(0)
    expect(out).toMatch(/^VBD +STATE +SIZE .*\n1:xvda +Connected +1GiB +rw/)
  })

  it('resize, to a size and by a size', async () => {
    await serve()
    const { out } = await vbdkit('resize', '--xen', `mock:${folder}`, '1:xvda', '2GiB')
    expect(out).toBe('1:xvda: 1GiB → 2GiB\n')
    await vbdkit('resize', '--xen', `mock:${folder}`, '1:51712', '+1GiB')
    expect(asked.map((call) => (call as unknown[])[1])).toEqual([2 ** 31, 2 ** 31])
  })

  it('refuse to shrink unless told to', async () => {
    await serve()
    const refused = await vbdkit('resize', '--xen', `mock:${folder}`, '1:xvda', '1MiB')
    expect(refused).toMatchObject({
      code: 2,
      err: expect.stringContaining('would cut off its end'),
    })
    expect(asked).toEqual([])
    await vbdkit('resize', '--xen', `mock:${folder}`, '1:xvda', '1MiB', '--shrink')
    expect(asked).toEqual([['1:xvda', 1 << 20, true]])
  })

  it('tune, finding the only server by itself', async () => {
    await serve()
    const { code, out } = await vbdkit(
      'tune',
      '--json',
      '--xen',
      `mock:${folder}`,
      '--poll-us',
      '0',
    )
    expect(code).toBe(0)
    const stages = [{ name: 'throttle', kind: 'throttle', values: { iops: 500 } }]
    expect(JSON.parse(out)).toEqual({ vbd: '1:xvda', pollUs: 0, stages })
    expect(asked).toEqual([['1:xvda', { pollUs: 0 }]])
  })

  it('tune a filter, with or without the name of the disk', async () => {
    await serve()
    const xen = ['--xen', `mock:${folder}`]
    const { code, out } = await vbdkit('tune', ...xen, 'throttle.iops=500', 'throttle.bps=10MiB')
    expect(code).toBe(0)
    expect(out).toMatch(/throttle\.iops +500/)
    expect((await vbdkit('tune', ...xen, '1:xvda', 'fault#2.probability=0.5')).code).toBe(0)
    expect(asked.filter((entry) => 'stage' in (entry as object[])[1]!)).toEqual([
      ['1:xvda', { stage: 'throttle', settings: { iops: 500 } }],
      ['1:xvda', { stage: 'throttle', settings: { bps: 10 << 20 } }],
      ['1:xvda', { stage: 'fault#2', settings: { probability: 0.5 } }],
    ])
    const wrong = await vbdkit('tune', ...xen, '1:xvda', 'throttle')
    expect(wrong.code).toBe(2)
    expect(wrong.err).toContain("'throttle' is no setting")
  })

  it('ask which, when there are several', async () => {
    await serve()
    const second = await ControlServer.listen(controlSocket(folder, 2, 51712), target)
    const { code, err } = await vbdkit('tune', '--xen', `mock:${folder}`)
    await second.close()
    expect(code).toBe(2)
    expect(err).toContain('several disks are served: 1:51712, 2:51712')
  })
})

describe('signals', () => {
  it.each([
    ['SIGINT', 130],
    ['SIGTERM', 0],
    ['SIGHUP', 0],
  ] as const)('%s stops a command in order, with exit code %i', async (name, code) => {
    const err = new Sink()
    const before = process.listenerCount(name)
    const stopped = stoppable(new Terminal(err, err), async (signal) => {
      await aborted(signal)
      return 0
    })
    process.emit(name, name)
    // npm passes the same Ctrl-C on.
    process.emit(name, name)
    expect(await stopped).toBe(code)
    expect(err.text).toBe('')
    expect(process.listenerCount(name)).toBe(before)
  })

  it('leave the exit code of a failure alone', async () => {
    const err = new Sink()
    const failed = stoppable(new Terminal(err, err), async () => 1)
    expect(await failed).toBe(1)
  })
})

describe('printing', () => {
  it('aligns tables', () => {
    const columns = [{ title: 'A' }, { title: 'N', right: true }]
    expect(
      table(columns, [
        ['long', '1'],
        ['x', '100'],
      ]),
    ).toBe('A       N\nlong    1\nx     100')
    expect(
      pairs([
        ['a', '1'],
        ['long', '2'],
      ]),
    ).toBe('a     1\nlong  2')
  })

  it('keeps what others wrote on one line and away from the terminal', () => {
    expect(oneLine('a\nb\u001b[31mc\r\u0000d')).toBe('a b [31mc d')
  })

  it('shows progress as lines where there is no terminal, and as events with --json', () => {
    const out = new Sink()
    const terminal = new Terminal(out, out)
    const progress = startProgress(terminal, 'work', 100)
    for (let done = 0; done <= 100; done++) progress.update(done, `${done} done`)
    progress.stop()
    expect(out.text.trimEnd().split('\n')).toHaveLength(11)
    expect(out.text).toContain('work  50 %  50 done')
    out.text = ''
    terminal.json = true
    startProgress(terminal, 'work', 10).update(5, 'half')
    expect(JSON.parse(out.text)).toMatchObject({ event: 'progress', percent: 50, note: 'half' })
  })
})
