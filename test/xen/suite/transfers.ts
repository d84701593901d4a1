/**
 * Every way to reach a guest's pages, and every shape of rings, under Linux's frontend: fio verifies each.
 */
import assert from 'node:assert/strict'
import { before, describe, it } from 'node:test'
import { run } from './support/command.js'
import { diskLine, makeImage, verify } from './support/disk.js'
import type { Guest } from './support/guest.js'
import { Scene } from './support/scene.js'

const TRANSFERS = ['persistent', 'copy', 'map'] as const

/** A disk of 64 MiB, with these options in its target. */
async function disk(vdev: string, options: string): Promise<string> {
  return diskLine(vdev, `file,${options}:${await makeImage(`/srv/${vdev}.img`, 64)}`)
}

async function connection(scene: Scene, guest: Guest, vdev: string) {
  return await scene.daemon.connection(`${guest.domid}:${vdev}`)
}

describe('four disks of one guest', () => {
  const scene = new Scene()
  let guest: Guest
  const disks = { xvda: 'persistent', xvdb: 'copy', xvdc: 'map', xvdd: 'auto' }

  before(async () => {
    const lines: string[] = []
    for (const [vdev, transfer] of Object.entries(disks)) {
      lines.push(await disk(vdev, `transfer=${transfer}`))
    }
    guest = await scene.guest('four', { disks: lines })
  })

  it('are told apart', async () => {
    for (const vdev of Object.keys(disks)) {
      await guest.sh(`echo this is ${vdev} | dd of=/dev/${vdev} bs=512 conv=sync,fsync 2>&-`)
    }
    for (const vdev of Object.keys(disks)) {
      assert.match(await run('head', '-n', '1', `/srv/${vdev}.img`), new RegExp(`^this is ${vdev}`))
    }
  })

  for (const [vdev, transfer] of Object.entries(disks)) {
    it(`verify with transfer=${transfer}`, async () => {
      const agreed = await connection(scene, guest, vdev)
      assert.equal(agreed.transfer, transfer === 'auto' ? 'persistent' : transfer)
      await verify(guest, `/dev/${vdev}`)
    })
  }

  it('are busy together', async () => {
    await guest.sh(`
      for disk in xvda xvdb xvdc xvdd; do
        fio --name=$disk --filename=/dev/$disk --size=4M --direct=1 --ioengine=io_uring --iodepth=8 --rw=randwrite \
          --bs=16k --verify=crc32c --do_verify=1 --verify_fatal=1 --thread --output=$disk.log &
        pids="$pids $!"
      done
      for pid in $pids; do wait $pid || { cat *.log; exit 1; }; done`)
  })

  scene.endsWithoutTraces()
})

describe('a guest without persistent grants', () => {
  const scene = new Scene()
  let guest: Guest

  before(async () => {
    guest = await scene.guest('plain', {
      disks: [
        await disk('xvda', 'transfer=auto'),
        await disk('xvdb', 'transfer=persistent'),
        await disk('xvdc', 'transfer=copy,indirect=0'),
        await disk('xvdd', 'transfer=map,indirect=0,sector-size=4096'),
      ],
      extra: 'xen_blkfront.feature_persistent=0',
    })
  })

  it('verifies with what is used in their place', async () => {
    for (const vdev of ['xvda', 'xvdb']) {
      const { transfer } = await connection(scene, guest, vdev)
      assert.notEqual(transfer, 'persistent')
      await verify(guest, `/dev/${vdev}`)
    }
  })

  it('verifies without indirect requests', async () => {
    const { features } = await connection(scene, guest, 'xvdc')
    assert.equal((features as { maxIndirectSegments: number }).maxIndirectSegments, 0)
    await verify(guest, '/dev/xvdc')
  })

  it('verifies in sectors of 4096', async () => {
    assert.equal(await guest.sh('blockdev --getss /dev/xvdd'), '4096')
    await verify(guest, '/dev/xvdd', { blockSizes: '4k-128k' })
  })

  scene.endsWithoutTraces()
})

describe('two processors, two queues of 16 pages', () => {
  const scene = new Scene()
  let guest: Guest

  before(async () => {
    const lines: string[] = []
    for (const [i, transfer] of TRANSFERS.entries()) {
      const options = `transfer=${transfer},queues=2,ring-order=4`
      lines.push(await disk(`xvd${'abc'[i]}`, options))
    }
    guest = await scene.guest('wide', {
      disks: lines,
      vcpus: 2,
      extra: 'xen_blkfront.max_ring_page_order=4',
    })
  })

  for (const [i, transfer] of TRANSFERS.entries()) {
    it(`verify with transfer=${transfer}`, async () => {
      const vdev = `xvd${'abc'[i]}`
      const { queues, ringPages, ...agreed } = await connection(scene, guest, vdev)
      assert.deepEqual([queues, ringPages, agreed.transfer], [2, 16, transfer])
      await verify(guest, `/dev/${vdev}`, { jobs: 2, mebibytes: 8, depth: 64 })
    })
  }

  scene.endsWithoutTraces()
})
