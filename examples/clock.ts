/**
 * A disk that tells the time: whoever reads its first sector reads the clock of the host.
 *
 *     vbdkit serve 1:xvdb examples/clock.ts
 *     # in the guest:  dd if=/dev/xvdb bs=512 count=1 iflag=direct status=none | head -1
 */
import { defineDisk } from 'vbdkit'

export default defineDisk({
  name: 'clock',
  size: '64KiB',
  read(buf, offset) {
    if (offset === 0) buf.write(`${new Date().toISOString()}\n`)
  },
})
