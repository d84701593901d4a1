/**
 * Xl: what xl and libxl do for a disk, with the keys, permissions, waits and removals that were observed of xl 4.17 on
 * real Xen (backendtype=phy), and those that libxl 4.19 has for backendtype=tap. Fails as xl does: after ten seconds
 * without an answer, or with what the hotplug script reports.
 */
import { parseVdev } from '../../lib/units.js'
import type { Permission, Xenstore } from '../../lib/xenstore/xenstore.js'

/** A disk line's parts. */
export interface XlDisk {
  readonly vdev: string
  readonly target: string
  /** `phy` is kind vbd, `tap` is kind vbd3. */
  readonly backendtype?: 'phy' | 'tap'
  readonly script?: string
  readonly access?: 'r' | 'w'
  readonly devtype?: 'disk' | 'cdrom'
  readonly removable?: boolean
  readonly discard?: boolean
  /** Another domain's backend. */
  readonly backend?: number
}

/** LIBXL_INIT_TIMEOUT and LIBXL_DESTROY_TIMEOUT, in milliseconds. */
const TIMEOUT_MS = 10_000

/** What a hotplug script does: resolves to nothing, or to what it complains about. */
export type HotplugScript = (xenbusPath: string) => Promise<string | undefined>

export class Xl {
  readonly #store: Xenstore
  readonly #script: HotplugScript

  constructor(store: Xenstore, script: HotplugScript = async () => undefined) {
    this.#store = store
    this.#script = script
  }

  /** As `xl block-attach`, or a line of `xl create`; resolves to the backend's path. */
  async attach(domid: number, disk: XlDisk): Promise<string> {
    const { vdev, backend = 0 } = disk
    const devid = parseVdev(vdev)
    const kind = disk.backendtype === 'tap' ? 'vbd3' : 'vbd'
    const relative = `backend/${kind}/${domid}/${devid}`
    const back = `/local/domain/${backend}/${relative}`
    const front = `/local/domain/${domid}/device/vbd/${devid}`
    await this.#store.transaction(async (tx) => {
      const make = async (path: string, permissions: Permission[], keys: object) => {
        await tx.mkdir(path)
        await tx.setPermissions(path, permissions)
        for (const [key, value] of Object.entries(keys)) await tx.write(`${path}/${key}`, value)
      }
      await make(front, both(domid, backend), frontendKeys(disk, back, devid))
      await make(back, both(backend, domid), backendKeys(disk, kind, front, domid))
    })
    await this.#reaches(back, '2', `unable to add device with path ${back}`)
    const complaint = await this.#script(relative)
    if (complaint !== undefined) {
      await this.detach(domid, vdev)
      throw new Error(`xl: script: ${complaint}`)
    }
    return back
  }

  /** As `xl block-detach`. */
  async detach(domid: number, vdev: string): Promise<void> {
    const back = await this.#backendOf(domid, vdev)
    await this.#close(back)
    await this.#remove(domid, vdev, back)
  }

  /** What `xl destroy` does with each disk: the guest's directory goes first. */
  async destroyDisk(domid: number, vdev: string): Promise<void> {
    const back = await this.#backendOf(domid, vdev)
    await this.#store.remove(`/local/domain/${domid}/device/vbd/${parseVdev(vdev)}`)
    await this.#close(back)
    await this.#remove(domid, vdev, back)
  }

  #backendOf(domid: number, vdev: string): Promise<string> {
    return this.#store.read(`/local/domain/${domid}/device/vbd/${parseVdev(vdev)}/backend`)
  }

  async #close(back: string): Promise<void> {
    await this.#store.transaction(async (tx) => {
      await tx.write(`${back}/online`, '0')
      await tx.write(`${back}/state`, '5')
    })
    await this.#reaches(back, '6', `unable to remove device with path ${back}`)
  }

  async #remove(domid: number, vdev: string, back: string): Promise<void> {
    await this.#store.transaction(async (tx) => {
      await tx.remove(`/local/domain/${domid}/device/vbd/${parseVdev(vdev)}`)
      await tx.remove(back)
    })
  }

  async #reaches(back: string, state: string, complaint: string): Promise<void> {
    let look = () => {}
    const reached = new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`xl: ${complaint}`)), TIMEOUT_MS)
      look = () => {
        this.#store.tryRead(`${back}/state`).then((now) => {
          if (now !== state) return
          clearTimeout(timer)
          resolve()
        }, reject)
      }
    })
    const watch = await this.#store.watch(`${back}/state`, () => look())
    try {
      await reached
    } finally {
      await watch.close()
    }
  }
}

function both(owner: number, reader: number): Permission[] {
  return [
    { access: 'n', domid: owner },
    { access: 'r', domid: reader },
  ]
}

/** In the order in which xl wrote them. */
function backendKeys(disk: XlDisk, kind: string, front: string, domid: number) {
  const { target, vdev, access = 'w', devtype = 'disk' } = disk
  return {
    frontend: front,
    params: kind === 'vbd3' ? `aio:${target}` : target,
    ...(disk.script === undefined ? {} : { script: `/etc/xen/scripts/${disk.script}` }),
    'frontend-id': `${domid}`,
    online: '1',
    removable: disk.removable === true ? '1' : '0',
    bootable: '1',
    state: '1',
    dev: vdev,
    type: kind === 'vbd3' ? 'vbd3' : 'phy',
    mode: access,
    'device-type': devtype,
    'discard-enable': (disk.discard ?? access === 'w') ? '1' : '0',
    specification: 'xen',
  }
}

function frontendKeys({ backend = 0, devtype = 'disk' }: XlDisk, back: string, devid: number) {
  return {
    backend: back,
    'backend-id': `${backend}`,
    state: '1',
    'virtual-device': `${devid}`,
    'device-type': devtype,
    trusted: '1',
    protocol: 'x86_64-abi',
  }
}
