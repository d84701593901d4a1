/** docs/operating.md, as it stands there: every disk line is attached as xl would, and used by a guest. */
import { existsSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { basename } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { loadAddon } from '../../lib/engine/load_addon.js'
import { MockHost } from '../../lib/mock/mock_host.js'
import { MockGuest } from '../../lib/testing/guest.js'
import { connectXenstore } from '../../lib/xenstore/client.js'
import type { Xenstore } from '../../lib/xenstore/xenstore.js'
import { MIB } from '../support/product_world.js'
import { Xl, type XlDisk } from '../support/xl.js'
import { Scene } from './cli_process.js'

const page = (name: string) => fileURLToPath(new URL(`../../${name}`, import.meta.url))
const built = existsSync(page('dist/lib/cli/main.js'))
const TEXT = readFileSync(page('docs/operating.md'), 'utf8')

/** The disk lines of each `disk = [...]`. */
const blocks = [...TEXT.matchAll(/```xl\n([\s\S]*?)```/g)].flatMap((block) =>
  [...block[1]!.matchAll(/disk = \[([\s\S]*?)\]/g)].map((list) =>
    [...list[1]!.matchAll(/"([^"]*)"/g)].map((line) => line[1]!),
  ),
)

/** As xl reads a line: words up to `target`, which takes the rest. */
function parseLine(line: string): Record<string, string> {
  const words: Record<string, string> = {}
  for (let rest = line; rest !== ''; ) {
    const [, key = '', value = ''] = /^([a-z]+)=(.*)$/s.exec(rest)!
    const end = key === 'target' ? -1 : value.indexOf(',')
    words[key] = end < 0 ? value : value.slice(0, end)
    rest = end < 0 ? '' : value.slice(end + 1)
  }
  return words
}

let scene: Scene
let host: MockHost
let store: Xenstore
let domids = 0

beforeAll(async () => {
  scene = await Scene.make()
  host = await MockHost.start({
    dir: scene.path('xen'),
    broker: (...args) => loadAddon().startMockBroker(...args),
  })
  store = await connectXenstore({ path: host.paths.xenstore })
  mkdirSync(scene.path('srv'))
  await scene.start('daemon', '--xen', scene.xen).says(/serving what is attached/)
})

afterAll(async () => {
  await store.close()
  await host.close()
  await scene.close()
})

describe.skipIf(!built)('docs/operating.md', () => {
  it('has the lines for each case', () => {
    const kinds = new Set(blocks.flat().map((line) => parseLine(line).backendtype))
    expect([...kinds].sort()).toEqual(['phy', 'tap'])
    expect(blocks.map((lines) => lines.length)).toContain(4)
  })

  it.each(blocks.map((lines) => ({ lines })))('$lines', async ({ lines }) => {
    const guest = await MockGuest.join({ dir: host.dir, domid: ++domids })
    try {
      for (const line of lines) {
        const words = parseLine(line)
        expect(words).toMatchObject({ format: 'raw', script: 'block-vbdkit' })
        const path = /\/srv\/.*$/.exec(words.target!)?.[0]
        const image = scene.path(`srv/${domids}-${basename(path ?? 'none')}`)
        writeFileSync(image, '')
        truncateSync(image, MIB)
        const target = words.target!.replace(/\/srv\/.*$/, image)
        const { vdev, access, devtype, backendtype } = words
        await new Xl(store).attach(guest.domid, {
          vdev: vdev!,
          target,
          script: 'block-vbdkit',
          backendtype: backendtype as 'phy' | 'tap',
          ...(access === undefined ? {} : { access: access as NonNullable<XlDisk['access']> }),
          ...(devtype === undefined ? {} : { devtype: 'cdrom' }),
        })
        const disk = await guest.disk(vdev!)
        expect(disk.properties).toMatchObject({
          readOnly: access === 'r',
          cdrom: devtype === 'cdrom',
        })
        expect(await disk.read(0, 4096)).toEqual(Buffer.alloc(4096))
      }
    } finally {
      await guest.close()
    }
  })
})
