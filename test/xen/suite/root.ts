/**
 * A guest whose root file system is on our disk: made by `xl create` with a disk line from the documentation, booted,
 * worked in, and shut down.
 */
import assert from 'node:assert/strict'
import { before, describe, it } from 'node:test'
import { run, sh } from './support/command.js'
import { diskLine, verify } from './support/disk.js'
import type { Guest } from './support/guest.js'
import { Scene } from './support/scene.js'

const IMAGE = '/srv/root.img'

describe('a guest with its root file system on our disk', () => {
  const scene = new Scene()
  let guest: Guest

  before(async () => {
    // The tree of its ramdisk, but for the list of modules, without which its init stays where it is.
    await sh(`
      mkdir /tmp/root
      cd /tmp/root
      cpio -i -d --quiet </boot/guest-ramdisk
      install /opt/rig/guest-init init
      rm modules
      rm -f ${IMAGE}
      mke2fs -q -t ext4 -d /tmp/root ${IMAGE} 256M
      rm -r /tmp/root`)
    guest = await scene.guest('root', { disks: [diskLine('xvda', IMAGE)], root: '/dev/xvda' })
  })

  it('boots from it', async () => {
    assert.match(await guest.sh('cat /proc/mounts'), /^\/dev\/\S+ \/ ext4 rw/m)
  })

  it('works in it, and fio verifies a file there', async () => {
    await guest.sh(`
      mkdir /var/copy
      cp -r /usr/lib/x86_64-linux-gnu /usr/sbin /var/copy
      sync
      echo 3 >/proc/sys/vm/drop_caches
      diff -r /usr/sbin /var/copy/sbin
      rm -r /var/copy/sbin`)
    await verify(guest, '/var/verify', { mebibytes: 32 })
  })

  it('is shut down, and e2fsck finds nothing', async () => {
    await guest.powerOff()
    await run('e2fsck', '-fn', IMAGE)
    assert.deepEqual(scene.daemon.complaints, [])
  })

  scene.endsWithoutTraces()
})
