/**
 * What administrators do to disks, in the guest and in dom0: partition, trim, flush, attach, detach, and what is refused.
 */
import assert from 'node:assert/strict'
import { before, describe, it } from 'node:test'
import { run, sh } from './support/command.js'
import { diskLine, makeImage } from './support/disk.js'
import type { Guest } from './support/guest.js'
import { Scene } from './support/scene.js'
import { statistics } from './support/service.js'

describe('disks at work', () => {
  const scene = new Scene()
  let guest: Guest

  before(async () => {
    await makeImage('/srv/a.img', 256)
    await makeImage('/srv/c.img', 64)
    await sh('yes read-only | head -c 16M >/srv/b.img')
    guest = await scene.guest('admin', {
      disks: [diskLine('xvda', '/srv/a.img'), diskLine('xvdb', '/srv/b.img', 'r')],
    })
  })

  it('are partitioned, and hold a file system on a partition', async () => {
    await guest.sh(`
      printf ',64M\\n,\\n' | sfdisk -q /dev/xvda
      until [ -b /dev/xvda2 ]; do sleep 0.1; done
      mke2fs -q -F -t ext4 /dev/xvda2
      mount -t ext4 /dev/xvda2 /mnt
      dd if=/dev/urandom of=/mnt/file bs=1M count=4 2>&-
      md5sum </mnt/file >sum
      umount /mnt
      mount -t ext4 /dev/xvda2 /mnt
      md5sum </mnt/file | cmp - sum
      umount /mnt`)
    const table = await run('sfdisk', '-l', '/srv/a.img')
    assert.match(table, /a\.img1 .*64M/)
  })

  it('give their blocks back at fstrim', async () => {
    const blocks = async () => Number(await run('stat', '-c', '%b', '/srv/a.img'))
    await guest.sh(`
      mount -t ext4 /dev/xvda2 /mnt
      yes | head -c 32m >/mnt/big
      sync`)
    const full = await blocks()
    await guest.sh('rm /mnt/big; sync; fstrim /mnt; umount /mnt')
    const freed = (full - (await blocks())) * 512
    assert.ok(freed >= 30 << 20, `${freed} bytes were freed`)
  })

  it('are flushed when the guest asks', async () => {
    const flushes = async () => {
      const { flush } = await statistics(`${guest.domid}:xvda`)
      return flush.requests
    }
    const before = await flushes()
    await guest.sh(
      'for i in 1 2 3; do dd if=/dev/zero of=/dev/xvda1 bs=4k count=1 conv=fsync 2>&-; done',
    )
    assert.ok((await flushes()) >= before + 3)
  })

  it('that are read-only are refused writes', async () => {
    const before = await run('md5sum', '/srv/b.img')
    assert.equal(await guest.sh('blockdev --getro /dev/xvdb'), '1')
    assert.equal(await guest.sh('md5sum </dev/xvdb | cut -c1-32'), before.slice(0, 32))
    const { status } = await guest.status('dd if=/dev/zero of=/dev/xvdb bs=4k count=1 oflag=direct')
    assert.notEqual(status, 0)
    assert.equal(await run('md5sum', '/srv/b.img'), before)
  })

  it('come and go while the guest runs', async () => {
    for (const word of ['first', 'second']) {
      await run('xl', 'block-attach', 'admin', diskLine('xvdc', '/srv/c.img'))
      await guest.sh(`
        until [ -b /dev/xvdc ]; do sleep 0.1; done
        echo ${word} | dd of=/dev/xvdc bs=512 conv=sync,fsync 2>&-`)
      await run('xl', 'block-detach', 'admin', 'xvdc')
      await guest.sh('until [ ! -e /dev/xvdc ]; do sleep 0.1; done')
      assert.equal((await run('head', '-n', '1', '/srv/c.img')).trim(), word)
    }
  })

  // xl knows nothing of these. The second way to xenstore is the one of driver domains, the kernel's device.
  for (const way of ['/run/xenstored/socket', '/dev/xen/xenbus']) {
    it(`come by vbdkit attach and go by detach, xenstore through ${way}`, async () => {
      const vbdkit = `XENSTORED_PATH=${way} vbdkit`
      await sh(`${vbdkit} attach admin xvdd file /srv/c.img --xen host`)
      await guest.sh(`
        until [ -b /dev/xvdd ]; do sleep 0.1; done
        echo ${way} | dd of=/dev/xvdd bs=512 conv=sync,fsync 2>&-`)
      await sh(`${vbdkit} detach admin xvdd --xen host`)
      await guest.sh('until [ ! -e /dev/xvdd ]; do sleep 0.1; done')
      assert.equal((await run('head', '-n', '1', '/srv/c.img')).trim(), way)
    })
  }

  it('that do not exist are refused with the reason, and the guest is not made', async () => {
    const refused = scene.guest('none', { disks: [diskLine('xvda', '/srv/none.img')] })
    await assert.rejects(refused, /\/srv\/none\.img/)
  })

  scene.endsWithoutTraces()
})
