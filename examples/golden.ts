/**
 * One golden image for many guests: each guest gets an overlay of its own over it, made when it comes first and kept for
 * the next time. A backend with a policy, so it is run by itself and not by `vbdkit serve`:
 *
 *     node --import vbdkit/typescript examples/golden.ts /srv/debian.raw /srv/overlays
 *
 * and in the guest's xl configuration, `web1` being whatever name you give to its overlay:
 *
 *     disk = ['vdev=xvda,access=w,backendtype=phy,format=raw,script=block-vbdkit,target=web1']
 */
import { join } from 'node:path'
import { Backend, file, overlay, type XenChoice } from 'vbdkit'

const [golden, folder] = process.argv.slice(2)
if (golden === undefined || folder === undefined) {
  console.error('usage: golden.ts GOLDEN-IMAGE OVERLAY-FOLDER')
  process.exit(2)
}

const base = file(golden, { readOnly: true })
const xen = (process.env.VBDKIT_XEN ?? 'auto') as XenChoice
const backend = await Backend.open({ xen })

backend.on('vbd', async (offer) => {
  const name = offer.params ?? ''
  // It becomes a file name: nothing but what it should be.
  if (!/^[a-z0-9][a-z0-9-]{0,62}$/.test(name)) {
    await offer.refuse(`'${name}' is no name for an overlay: letters, digits and dashes`)
    return
  }
  try {
    const disk = overlay(base, { scratch: join(folder, `${name}.overlay`) })
    const vbd = await offer.accept(disk)
    console.log(`${vbd.id}: ${vbd.disk.description}`)
  } catch (thrown) {
    await offer.refuse(String((thrown as Error).message))
  }
})
backend.on('error', ({ vbd, error }) => console.error(`${vbd?.id ?? 'backend'}: ${error.message}`))

console.log(`waiting for guests that want ${golden}; Ctrl-C ends it`)
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => backend.close())
}
