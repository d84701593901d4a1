/**
 * GRUB's own Xen frontend on a disk of ours: one page of ring, one request of one page at a time, no persistent grants,
 * and in its 32-bit builds x86_32-abi. It reads its configuration, a kernel and a ramdisk from a partition of the disk,
 * compares their checksums, and starts the kernel, whose xen-blkfront then takes the same disk over.
 */
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import { PATIENCE_MS, run, sh } from './support/command.js'
import { diskLine } from './support/disk.js'
import { Guest } from './support/guest.js'
import { Scene } from './support/scene.js'

interface Build {
  /** As GRUB and Debian's images of it are called. */
  readonly name: string
  readonly type: 'pv' | 'pvh'
  readonly abi: 'x86_64-abi' | 'x86_32-abi'
  /** What Xen must say that it can run, and in words. */
  readonly needs: string
  readonly guests: string
}

const BUILDS: readonly Build[] = [
  {
    name: 'x86_64-xen',
    type: 'pv',
    abi: 'x86_64-abi',
    needs: 'xen-3.0-x86_64',
    guests: '64-bit PV guests',
  },
  {
    name: 'i386-xen_pvh',
    type: 'pvh',
    abi: 'x86_32-abi',
    needs: 'hvm-3.0-x86_32',
    guests: 'PVH guests',
  },
  {
    name: 'i386-xen',
    type: 'pv',
    abi: 'x86_32-abi',
    needs: 'xen-3.0-x86_32p',
    guests: '32-bit PV guests',
  },
]

const PARTITION = 1 << 20
/** For tens of megabytes, a page at a time. */
const LONG_MS = 5 * PATIENCE_MS
const capabilities = (await run('xl', 'info', 'xen_caps')).trim()

describe('GRUB on a disk of ours', () => {
  const scene = new Scene()
  for (const build of BUILDS) {
    describe(`GRUB ${build.name}, ${build.abi}`, () => {
      if (capabilities.split(' ').includes(build.needs)) {
        boots(scene, build)
      } else {
        const skip = `this Xen runs no ${build.guests}: it says ${capabilities}, not ${build.needs}`
        it('boots', { skip })
      }
    })
  }
  scene.endsWithoutTraces()
})

function boots(scene: Scene, { name, type, abi }: Build): void {
  const image = `/srv/${name}.img`
  let guest: Guest
  let vbd: string
  let from: number

  before(async () => {
    await makeBootable(image)
    from = scene.daemon.said
    guest = await Guest.create(name, {
      type,
      loader: `/usr/lib/grub-xen/grub-${name}.bin`,
      disks: [diskLine('xvda', image)],
      patienceMs: LONG_MS,
    })
    vbd = `${guest.domid}:xvda`
  })
  after(() => guest?.gone())

  it('connects, in its ABI', async () => {
    const { protocol, transfer, ringPages } = await scene.daemon.connection(vbd, from)
    assert.deepEqual(
      { protocol, transfer, ringPages },
      { protocol: abi, transfer: 'copy', ringPages: 1 },
    )
  })

  it('finds a partition, its file system and its configuration', () =>
    guest.says(`CONFIGURATION read by ${name} from xen/xvda,msdos1`))

  it('reads a kernel and a ramdisk as they are', () => guest.says('CHECKSUMS are right', LONG_MS))

  it('starts the kernel, which takes the disk over in its own ABI', async () => {
    await guest.says('KERNEL and ramdisk are loaded', LONG_MS)
    await guest.up()
    await guest.sh(`
      mount -t ext4 /dev/xvda1 /mnt
      (cd /mnt/boot && sha256sum -c sums)
      dd if=/dev/urandom of=/mnt/after bs=64k count=32 2>/dev/null
      sha256sum /mnt/after >sum
      umount /mnt
      mount -t ext4 /dev/xvda1 /mnt
      sha256sum -c sum
      umount /mnt`)
    assert.deepEqual(scene.daemon.protocols(vbd), [abi, 'x86_64-abi'])
  })

  it('leaves a clean image', async () => {
    await guest.powerOff()
    await run('e2fsck', '-fn', `${image}?offset=${PARTITION}`)
  })
}

/** A disk with a partition that GRUB and the kernel boot from. */
async function makeBootable(image: string): Promise<void> {
  await sh(`
    rm -rf /tmp/tree
    mkdir -p /tmp/tree/boot/grub
    cp /boot/vmlinuz /boot/guest-ramdisk /tmp/tree/boot/
    cd /tmp/tree/boot
    sha256sum vmlinuz guest-ramdisk >sums
    cat >grub/grub.cfg <<'END'
echo "CONFIGURATION read by $grub_cpu-$grub_platform from $root"
if sha256sum --check /boot/sums --prefix /boot; then
  echo "CHECKSUMS are right"
  linux /boot/vmlinuz console=hvc0 quiet panic=1 mitigations=off
  initrd /boot/guest-ramdisk
  echo "KERNEL and ramdisk are loaded"
  boot
fi
END
    truncate -s 64M ${image}
    echo 'start=2048, type=83, bootable' | sfdisk -q ${image}
    mke2fs -q -F -t ext4 -d /tmp/tree -E offset=${PARTITION} ${image} 63M
    rm -rf /tmp/tree`)
}
