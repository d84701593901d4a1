/**
 * The lives of guests on our disks, and of the daemon under them: reboot, neighbours, death under load, restarts.
 */
import assert from 'node:assert/strict'
import { before, describe, it } from 'node:test'
import { run } from './support/command.js'
import { diskLine, makeImage, verify } from './support/disk.js'
import type { Guest } from './support/guest.js'
import { Scene } from './support/scene.js'
import { Service, statistics } from './support/service.js'

const LOAD =
  'fio --name=load --filename=/dev/xvda --direct=1 --ioengine=io_uring --iodepth=32 --rw=randwrite --bsrange=4k-64k ' +
  '--time_based --runtime=600 --thread --output=load.log'

describe('guests come and go', () => {
  const scene = new Scene()
  let first: Guest
  let second: Guest

  before(async () => {
    for (const name of ['first', 'second']) await makeImage(`/srv/${name}.img`, 64)
    first = await scene.guest('first', {
      disks: [diskLine('xvda', '/srv/first.img')],
      onReboot: 'restart',
    })
    second = await scene.guest('second', { disks: [diskLine('xvda', '/srv/second.img')] })
  })

  it('two at once, each on its own disk', async () => {
    await Promise.all([verify(first, '/dev/xvda'), verify(second, '/dev/xvda')])
  })

  it('one reboots, and finds what it wrote', async () => {
    await first.sh('echo before the reboot | dd of=/dev/xvda bs=512 conv=sync,fsync 2>&-')
    await first.reboot()
    assert.match(await first.sh('head -n 1 /dev/xvda'), /^before the reboot/)
    await verify(first, '/dev/xvda', { mebibytes: 4 })
  })

  it('one is destroyed under load, and its neighbour does not notice', async () => {
    const vbd = `${first.domid}:xvda`
    await first.sh(`${LOAD} >load.out 2>&1 &`)
    await loaded(vbd)
    const verified = verify(second, '/dev/xvda')
    // After 10 s libxl gives up a backend that does not let go, and says that it is unable to remove the device.
    assert.equal(await first.destroy(), '')
    await verified
    await scene.daemon.event('closed', { vbd })
  })

  scene.endsWithoutTraces()
})

describe('the daemon is stopped and started', () => {
  const scene = new Scene()
  let guest: Guest

  before(async () => {
    await makeImage('/srv/kept.img', 64)
    guest = await scene.guest('kept', { disks: [diskLine('xvda', '/srv/kept.img')] })
  })

  /** The next daemon, once it serves the guest's disk again. */
  async function nextDaemon(): Promise<void> {
    scene.daemon = await Service.daemon()
    await scene.daemon.connection(`${guest.domid}:xvda`)
  }

  it('under an idle guest, whose mounted file system only sees a wait', async () => {
    await guest.sh(`
      mke2fs -q -F -t ext4 /dev/xvda
      mount -t ext4 /dev/xvda /mnt
      dd if=/dev/urandom of=/mnt/before bs=64k count=16 conv=fsync 2>&-
      md5sum /mnt/before >sums`)
    assert.equal(await scene.daemon.stop(), 0)
    await guest.sh(`
      { dd if=/mnt/before of=/mnt/between bs=64k conv=fsync; echo $? >status; } >/dev/null 2>&1 &`)
    await nextDaemon()
    await guest.sh(`
      until [ -s status ]; do sleep 0.1; done
      [ "$(cat status)" = 0 ]
      echo 3 >/proc/sys/vm/drop_caches
      md5sum -c -s sums
      cmp /mnt/before /mnt/between
      umount /mnt`)
    assert.doesNotMatch(await guest.sh('dmesg'), /I\/O error/)
    await run('e2fsck', '-fn', '/srv/kept.img')
  })

  it('under load, and nothing is lost nor done twice', async () => {
    const vbd = `${guest.domid}:xvda`
    const verified = verify(guest, '/dev/xvda', { mebibytes: 48 })
    await loaded(vbd)
    assert.equal(await scene.daemon.stop(), 0)
    await nextDaemon()
    await verified
  })

  it('killed under load, three times, and nothing is lost nor done twice', async () => {
    const vbd = `${guest.domid}:xvda`
    for (let turn = 0; turn < 3; turn++) {
      const { write } = await statistics(vbd)
      const verified = verify(guest, '/dev/xvda', { mebibytes: 48 })
      await loaded(vbd, write.requests)
      await scene.daemon.kill()
      await nextDaemon()
      await verified
    }
    assert.doesNotMatch(await guest.sh('dmesg'), /I\/O error/)
    assert.deepEqual(scene.daemon.complaints, [])
  })

  it('after it was killed under an idle guest', async () => {
    await scene.daemon.kill()
    await nextDaemon()
    await verify(guest, '/dev/xvda', { mebibytes: 4 })
  })

  scene.endsWithoutTraces()
})

/** Requests are being answered, besides those `before`. */
async function loaded(vbd: string, before = 0): Promise<void> {
  for (;;) {
    const { write } = await statistics(vbd)
    if (write.requests > before + 100) return
  }
}
