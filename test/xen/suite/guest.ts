/**
 * One guest, the essential: Debian's unmodified xen-blkfront on a disk of ours, attached by xl, from its first look at
 * it to the image that it leaves.
 */
import assert from 'node:assert/strict'
import { before, describe, it } from 'node:test'
import { run, sh } from './support/command.js'
import { diskLine, makeImage, verify } from './support/disk.js'
import type { Guest } from './support/guest.js'
import { Scene } from './support/scene.js'
import { lookForTraces } from './support/traces.js'

const IMAGE = '/srv/guest.img'
const MIB = 1 << 20

describe('a guest with one disk', () => {
  const scene = new Scene()
  let guest: Guest

  before(async () => {
    await makeImage(IMAGE, 256)
    guest = await scene.guest('one', { disks: [diskLine('xvda', IMAGE)] })
  })

  it('connects, and sees what was offered', async () => {
    const { protocol, transfer } = await scene.daemon.connection(`${guest.domid}:xvda`)
    assert.deepEqual({ protocol, transfer }, { protocol: 'x86_64-abi', transfer: 'persistent' })
    const queue = '/sys/block/xvda/queue'
    const seen = await guest.sh(
      `cd ${queue}; cat ../size logical_block_size write_cache; echo $(($(cat discard_max_bytes) > 0))`,
    )
    assert.deepEqual(seen.split('\n'), [String((256 * MIB) / 512), '512', 'write back', '1'])
  })

  it('shows in the tables where traces of it are looked for afterwards', async () => {
    const { domains, xenstore, grants, ports } = await lookForTraces()
    const { domid } = guest
    assert.ok(domains.includes(`${domid} one`))
    assert.ok(xenstore.includes(`/local/domain/0/backend/vbd/${domid}/51712/state`))
    assert.ok(grants.some((grant) => grant.startsWith(`d${domid} `) && grant.endsWith(' by d0')))
    assert.ok(ports.filter((port) => port.includes(` to d=${domid} `)).length > 2)
  })

  it('reads what it wrote', async () => {
    await guest.sh(`
      dd if=/dev/urandom of=pattern bs=1M count=6 2>&-
      dd if=pattern of=/dev/xvda bs=64k seek=16 oflag=direct conv=fsync 2>&-
      dd if=/dev/xvda bs=4k skip=256 count=1536 iflag=direct 2>&- | cmp - pattern`)
    assert.equal(
      await sh(`dd if=${IMAGE} bs=1M skip=1 count=6 2>&- | md5sum`),
      `${await guest.sh('md5sum <pattern')}\n`,
    )
  })

  it('reads zeroes where it discarded, and only there', async () => {
    await guest.sh(`
      blkdiscard -o 2M -l 1M /dev/xvda
      dd if=/dev/xvda bs=1M skip=2 count=1 iflag=direct 2>&- | cmp -n 1048576 - /dev/zero
      dd if=/dev/xvda bs=1M skip=1 count=1 iflag=direct 2>&- | cmp -n 1048576 - pattern
      dd if=pattern bs=1M skip=2 2>&- >rest
      dd if=/dev/xvda bs=1M skip=3 count=4 iflag=direct 2>&- | cmp - rest
      rm rest pattern`)
  })

  it('verifies mixed block sizes with fio', () => verify(guest, '/dev/xvda'))

  it('sees a new size while it runs', async () => {
    await run('vbdkit', 'resize', `${guest.domid}:xvda`, '320MiB')
    const wanted = (320 * MIB) / 512
    await guest.sh(`until [ $(cat /sys/block/xvda/size) = ${wanted} ]; do sleep 0.1; done`)
  })

  it('makes a file system and unpacks a tree of files into it', async () => {
    await guest.sh(`
      mke2fs -q -F -t ext4 /dev/xvda
      mount -t ext4 /dev/xvda /mnt
      tar -c -f - /usr/lib /usr/sbin 2>&- | tar -x -f - -C /mnt
      (cd / && find usr/lib usr/sbin -type f | xargs md5sum) >sums
      umount /mnt
      echo 3 >/proc/sys/vm/drop_caches
      mount -t ext4 /dev/xvda /mnt
      (cd /mnt && md5sum -c -s) <sums
      umount /mnt`)
  })

  it('powers off, and leaves a clean image', async () => {
    await guest.powerOff()
    await run('e2fsck', '-fn', IMAGE)
    assert.deepEqual(scene.daemon.complaints, [])
  })

  scene.endsWithoutTraces()
})
