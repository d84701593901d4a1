/** `vbdkit init [DIR]`: writes a disk in TypeScript to begin with, and what an editor needs to check it. */
import { existsSync } from 'node:fs'
import { mkdir, writeFile } from 'node:fs/promises'
import { join, relative } from 'node:path'
import { VbdError } from '../../errors.js'
import { action, addCommand, type Command, type Context, packageVersion } from '../program.js'

/** Adds the command. */
export function addInit(program: Command, context: Context): void {
  const { terminal } = context
  const command = addCommand(program, 'init', {
    description:
      'Writes disk.ts, a disk of a few functions that `vbdkit serve DOM:VDEV ./disk.ts` serves as it is: Node.js ' +
      'needs no compiler for it. Writes package.json and tsconfig.json too where there are none: they are for ' +
      'editors, which check types after `npm install`.',
    examples: [
      ['vbdkit init', 'here'],
      ['vbdkit init lab', 'in ./lab, which is made'],
    ],
  })
  command.argument('[DIR]', 'where; here by default', '.')
  command.action(
    action(context, async (directory: string) => {
      const { written, kept } = await writeProject(directory, packageVersion())
      const disk = `./${relative('.', join(directory, 'disk.ts'))}`
      terminal.result({ directory, written, kept }, nextSteps(written, kept, disk))
      return 0
    }),
  )
}

async function writeProject(directory: string, version: string) {
  const path = join(directory, 'disk.ts')
  if (existsSync(path)) {
    throw new VbdError('ERR_VBD_BUSY', `${path} is there already`, {
      path,
      remedy: 'serve it as it is, or name another folder',
    })
  }
  const written: string[] = []
  const kept: string[] = []
  try {
    await mkdir(directory, { recursive: true })
    for (const [name, text] of Object.entries(files(version))) {
      const there = existsSync(join(directory, name))
      if (!there) await writeFile(join(directory, name), text, { flag: 'wx' })
      ;(there ? kept : written).push(name)
    }
  } catch (cause) {
    const message = `${directory} cannot be written to (${(cause as NodeJS.ErrnoException).code})`
    throw new VbdError('ERR_VBD_BACKING', message, {
      path: directory,
      remedy: 'name a folder that you may write to',
      cause,
    })
  }
  return { written, kept }
}

function nextSteps(written: readonly string[], kept: readonly string[], disk: string): string {
  const left = kept.length === 0 ? '' : ` (${kept.join(' and ')} left as they were)`
  return [
    `wrote ${written.join(', ')}${left}`,
    '',
    'On a Xen host, to domain 1:',
    `  vbdkit serve 1:xvda ${disk}`,
    'Without Xen, in three terminals:',
    '  vbdkit mock /tmp/xen',
    `  vbdkit serve --xen mock:/tmp/xen 1:xvda ${disk}`,
    '  vbdkit guest --xen mock:/tmp/xen 1:xvda --nbd /tmp/disk.sock',
    'For types in your editor: npm install',
  ].join('\n')
}

function files(version: string): Record<string, string> {
  const manifest = {
    name: 'disk',
    private: true,
    type: 'module',
    devDependencies: { '@types/node': '^20.19.0', typescript: '^6.0.0', vbdkit: `^${version}` },
  }
  const compilerOptions = {
    target: 'es2023',
    module: 'nodenext',
    strict: true,
    noEmit: true,
    allowImportingTsExtensions: true,
    skipLibCheck: true,
    types: ['node'],
  }
  return {
    'disk.ts': DISK,
    'package.json': `${JSON.stringify(manifest, null, 2)}\n`,
    'tsconfig.json': `${JSON.stringify({ compilerOptions }, null, 2)}\n`,
  }
}

const DISK = `// A disk in memory. What is not there is not offered to the guest: without write the disk is read-only,
// without discard the guest never discards.
//
//   vbdkit serve 1:xvda ./disk.ts size=1GiB
import { defineDisk, parseSize } from 'vbdkit'

// The words after the file's name, KEY=VALUE each.
interface Options {
  size?: string
}

export default ({ size = '64MiB' }: Options) =>
  defineDisk({
    name: 'ram',
    size,

    // Called once, before everything else; what it returns is io.state from then on.
    open: () => Buffer.alloc(parseSize(size)),

    // Fill the buffer: it is lent until you return. Every function may be async, and then until it settles.
    read(buf, offset, { state }) {
      state.copy(buf, 0, offset, offset + buf.length)
    },

    // \`throw new DiskError('ENOSPC')\` fails this request; so does anything else thrown, which is told besides.
    write(buf, offset, { state }) {
      buf.copy(state, offset)
    },

    // When it returns, everything written before is safe. In memory there is nothing to do.
    flush() {},

    discard(offset, length, { state }) {
      state.fill(0, offset, offset + length)
    },
  })
`
