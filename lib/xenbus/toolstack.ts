/**
 * Toolstack: makes and removes a block device's directories where no toolstack does, with the keys, the permissions
 * and the one transaction that libxl uses (`libxl_disk.c device_disk_add`, `libxl_device.c
 * libxl__device_generic_add`). A key `created-by` says what is ours, so that what a killed process left behind is
 * recognised by the next one.
 */
import type { Permission, Xenstore, XenstoreOps } from '../xenstore/xenstore.js'
import { type DeviceAddress, type DevicePaths, devicePaths } from './device.js'
import { parseState, XenbusState } from './state.js'

export interface DeviceDescription {
  /** `xvda`, ...: for people. */
  readonly name: string
  /** Where the data is, for people: no secrets. */
  readonly params: string
  readonly readOnly: boolean
  readonly cdrom: boolean
  readonly removable: boolean
  readonly discard: boolean
}

/** `created-by` of what a process makes for its own vbds, and takes away with them. */
export const SERVE_MARK = 'vbdkit'
/** `created-by` of what `vbdkit attach` makes: it stays until it is detached, or its guest is gone. */
export const ATTACH_MARK = 'vbdkit-attach'

/** What is in place of a device. */
export type Presence =
  /** The guest's domain does not exist, and neither does the backend directory. */
  | 'no-domain'
  /** Ours, of a domain that is gone. */
  | 'orphan'
  /** There is no backend directory. */
  | 'absent'
  | 'ours'
  /** Ours, but the guest's side of it is gone: that of a domain before, or removed by the guest. */
  | 'half'
  /** A toolstack made it, and removes it. */
  | 'foreign'

/** One device's directories, made by us or by a toolstack. */
export class Directories {
  readonly paths: DevicePaths
  readonly mark: string
  protected readonly store: Xenstore
  protected readonly address: DeviceAddress

  /** @param mark `created-by` of what counts as ours */
  constructor(store: Xenstore, address: DeviceAddress, mark = SERVE_MARK) {
    this.store = store
    this.address = address
    this.mark = mark
    this.paths = devicePaths(address)
  }

  async look(): Promise<Presence> {
    const { backend, frontend } = this.paths
    const [introduced, state, mark, front] = await Promise.all([
      this.store.isDomainIntroduced(this.address.domid),
      this.store.tryRead(`${backend}/state`),
      this.store.tryRead(`${backend}/created-by`),
      this.store.tryRead(`${frontend}/backend`),
    ])
    if (state !== undefined && mark !== this.mark) return 'foreign'
    if (!introduced) return state === undefined ? 'no-domain' : 'orphan'
    if (state === undefined) return 'absent'
    return front === undefined ? 'half' : 'ours'
  }

  /** What `xl block-detach` does first: the device shall close, and not open again. */
  async requestClose(): Promise<void> {
    const { backend } = this.paths
    await this.store.transaction(async (tx) => {
      const state = await tx.tryRead(`${backend}/state`)
      if (state === undefined) return
      await tx.write(`${backend}/online`, '0')
      const own = parseState(state)
      if (own !== XenbusState.Closing && own !== XenbusState.Closed) {
        await tx.write(`${backend}/state`, String(XenbusState.Closing))
      }
    })
  }

  /** Removes both directories, and the folders around the backend's that are empty then. Idempotent. */
  async remove(): Promise<void> {
    await this.#removeIf(async () => true)
  }

  /** The same for a device that has closed and shall not open again; any other is left as it is. */
  async removeClosed(): Promise<void> {
    const { backend } = this.paths
    await this.#removeIf(async (tx) => {
      const state = parseState(await tx.tryRead(`${backend}/state`))
      return state === XenbusState.Closed && (await tx.tryRead(`${backend}/online`)) === '0'
    })
  }

  /** @param holds asked in the transaction: the directories may have been made again meanwhile, for another disk */
  async #removeIf(holds: (tx: XenstoreOps) => Promise<boolean>): Promise<void> {
    const { backend, frontend } = this.paths
    // Before the transaction: what a guest can write is no part of it.
    const other = ((await this.store.tryRead(`${frontend}/backend`)) ?? backend) !== backend
    const removed = await this.store.transaction(async (tx) => {
      if (!(await holds(tx))) return false
      if (!other) await tx.remove(frontend)
      await tx.remove(backend)
      return true
    })
    if (removed) await this.#removeEmpty(parent(backend))
  }

  /** Upward to `backend`, as libxl does, as long as nothing else is in them. */
  async #removeEmpty(path: string): Promise<void> {
    await this.store.transaction(async (tx) => {
      for (let folder = path; folder.includes('/backend'); folder = parent(folder)) {
        const children = await tx.tryList(folder)
        if (children.length > 0) return
        await tx.remove(folder)
      }
    })
  }
}

/** What a toolstack does for one device. */
export class Toolstack extends Directories {
  readonly #description: DeviceDescription

  constructor(
    store: Xenstore,
    address: DeviceAddress,
    description: DeviceDescription,
    mark = SERVE_MARK,
  ) {
    super(store, address, mark)
    this.#description = description
  }

  /** Writes both directories, replacing what is there of ours. False: somebody else was faster; nothing was changed. */
  async create(): Promise<boolean> {
    const { backend, frontend } = this.paths
    const { domid, backendDomid } = this.address
    return this.store.transaction(async (tx) => {
      const there = await tx.tryRead(`${backend}/state`)
      if (there !== undefined && (await tx.tryRead(`${backend}/created-by`)) !== this.mark)
        return false
      await this.#directory(tx, frontend, owned(domid, backendDomid), this.#frontendKeys())
      await this.#directory(tx, backend, owned(backendDomid, domid), this.#backendKeys())
      return true
    })
  }

  /** Brings the keys that describe the disk up to date in a backend directory that an earlier process made. */
  async refresh(): Promise<void> {
    const { backend } = this.paths
    const { state: _state, ...keys } = this.#backendKeys()
    await this.store.transaction(async (tx) => {
      if ((await tx.tryRead(`${backend}/created-by`)) !== this.mark) return
      for (const [key, value] of Object.entries(keys)) await tx.write(`${backend}/${key}`, value)
    })
  }

  async #directory(
    tx: XenstoreOps,
    path: string,
    permissions: readonly Permission[],
    keys: Readonly<Record<string, string>>,
  ): Promise<void> {
    await tx.remove(path)
    await tx.mkdir(path)
    // Before the keys: nodes inherit the permissions of their directory.
    await tx.setPermissions(path, permissions)
    for (const [key, value] of Object.entries(keys)) await tx.write(`${path}/${key}`, value)
  }

  #backendKeys(): Record<string, string> {
    const { name, params, readOnly, cdrom, removable, discard } = this.#description
    return {
      frontend: this.paths.frontend,
      'frontend-id': String(this.address.domid),
      online: '1',
      params,
      removable: flag(removable),
      bootable: '1',
      state: String(XenbusState.Initialising),
      dev: name,
      type: this.address.kind,
      mode: readOnly ? 'r' : 'w',
      'device-type': cdrom ? 'cdrom' : 'disk',
      'discard-enable': flag(discard && !readOnly),
      specification: 'xen',
      'created-by': this.mark,
    }
  }

  #frontendKeys(): Record<string, string> {
    return {
      backend: this.paths.backend,
      'backend-id': String(this.address.backendDomid),
      state: String(XenbusState.Initialising),
      'virtual-device': String(this.address.devid),
      'device-type': this.#description.cdrom ? 'cdrom' : 'disk',
      trusted: '1',
    }
  }
}

/** The first entry owns, and shuts everyone else out; the second may read. */
function owned(owner: number, reader: number): Permission[] {
  const permissions: Permission[] = [{ access: 'n', domid: owner }]
  if (reader !== owner) permissions.push({ access: 'r', domid: reader })
  return permissions
}

function flag(on: boolean): string {
  return on ? '1' : '0'
}

function parent(path: string): string {
  return path.slice(0, path.lastIndexOf('/'))
}
