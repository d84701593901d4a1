/** `vbdkit attach` and `vbdkit detach`: disks of guests whose toolstack knows nothing of us. */
import { resolve } from 'node:path'
import { attach, detach, findDomain, type States } from '../../daemon/attach.js'
import { OWN_KIND, parseKind } from '../../daemon/claims.js'
import { type DriverWords, formatParams } from '../../daemon/params.js'
import { VbdError } from '../../errors.js'
import { openStore, type XenChoice } from '../../store.js'
import { formatVbdId, formatVdev, MAX_DOMID, parseVdev } from '../../units.js'
import type { Xenstore } from '../../xenstore/xenstore.js'
import { DRIVERS } from '../disk_words.js'
import { durationOption, wholeOption } from '../options.js'
import { action, addCommand, type Command, type Context } from '../program.js'
import { stoppable } from '../signals.js'
import { addFileOptions } from '../vbd_options.js'
import { xenOption } from '../xen_option.js'

interface PlaceWords {
  readonly xen: XenChoice
  readonly kind?: string
  readonly backend?: number
  readonly timeout?: number
}

interface AttachWords extends PlaceWords, DriverWords {
  readonly cdrom?: true
  readonly removable?: true
  readonly discard?: boolean
}

const TIMEOUT_MS = 30_000

/** Adds the command. */
export function addAttach(program: Command, context: Context): void {
  const command = addCommand(program, 'attach', {
    description:
      'Writes what xl would write for a disk, for a kind of backend that `vbdkit daemon` alone answers: blkback ' +
      'and other backends of the guest go on beside it. Waits until the guest uses it. xl knows nothing of such a ' +
      'disk: it is gone when the guest is restarted.',
    examples: [
      ['vbdkit attach vm3 xvdb file /srv/data.raw', 'to the guest that xl calls vm3'],
      ['vbdkit attach 3 xvdc file /srv/cd.iso --read-only --cdrom', 'by the number of its domain'],
      ['vbdkit attach vm3 xvdd memory 1GiB --backend 2', 'served by the daemon in driver domain 2'],
    ],
  })
  command
    .argument('<DOM>', 'the guest, by name or number')
    .argument('<VDEV>', 'the device: xvdb, ...', parseVdev)
    .argument('<DRIVER>', DRIVERS)
    .argument('<ARG>', 'of the driver; a path is one of the backend')
    .option('--read-only', 'the guest may only read')
    .option('--shared', 'several guests may use the file at once although one writes')
    .option('--cdrom', 'tell the guest that it is a CD-ROM')
    .option('--removable', 'tell the guest that the medium can be removed')
    .option('--no-discard', 'do not offer discard')
  addFileOptions(command)
  addPlaceOptions(command, 'how long the guest may take to use it; 0s: do not wait for it')
  command.action(
    action(
      context,
      (dom: string, devid: number, driver: string, argument: string, words: AttachWords) =>
        inStore(context, words, (store, ownDomid, signal) => {
          const place = { words, ownDomid, dom, devid }
          return runAttach(context, store, place, driver, argument, signal)
        }),
    ),
  )
}

/** Adds the command. */
export function addDetach(program: Command, context: Context): void {
  const command = addCommand(program, 'detach', {
    description:
      'Asks the guest to close the disk, and waits until it has. A guest that has it mounted goes on with it, and ' +
      'closes it when it is unmounted; --force takes it away from under it.',
    examples: [
      ['vbdkit detach vm3 xvdb', 'in good order'],
      ['vbdkit detach vm3 xvdb --force', 'whatever the guest does with it'],
    ],
  })
  command
    .argument('<DOM>', 'the guest, by name or number')
    .argument('<VDEV>', 'the device: xvdb, ...', parseVdev)
    .option('--force', 'take it away although the guest uses it: what it has not flushed is lost')
  addPlaceOptions(command, 'how long the guest may take to close it')
  command.action(
    action(context, (dom: string, devid: number, words: PlaceWords & { force?: true }) =>
      inStore(context, words, async (store, ownDomid, signal) => {
        const address = await addressOf(store, { words, ownDomid, dom, devid })
        const { timeout: timeoutMs = TIMEOUT_MS, force = false } = words
        const vbd = formatVbdId(address)
        const onState = progress(context, vbd)
        await detach(store, address, { timeoutMs, force, signal, onState })
        context.terminal.event('detached', { vbd }, `${vbd}: detached`)
        return 0
      }),
    ),
  )
}

function addPlaceOptions(command: Command, timeout: string): void {
  command
    .addOption(xenOption('where Xen is: auto, host or mock:DIR'))
    .option('--kind <name>', `kind of backend in xenstore (default: ${OWN_KIND})`)
    .addOption(
      wholeOption('--backend <domid>', 'the domain of the backend', {
        min: 0,
        max: MAX_DOMID,
        fallback: 'this one',
      }),
    )
    .addOption(
      durationOption('--timeout <time>', timeout, { min: 0, max: 3_600_000, fallback: '30s' }),
    )
}

interface Place {
  readonly words: PlaceWords
  readonly ownDomid: number
  readonly dom: string
  readonly devid: number
}

async function addressOf(store: Xenstore, { words, ownDomid, dom, devid }: Place) {
  const { kind } = parseKind(words.kind ?? OWN_KIND)
  return {
    backendDomid: words.backend ?? ownDomid,
    kind,
    domid: await findDomain(store, dom),
    devid,
  }
}

async function runAttach(
  context: Context,
  store: Xenstore,
  place: Place & { readonly words: AttachWords },
  driver: string,
  argument: string,
  signal: AbortSignal,
): Promise<number> {
  const { words, devid } = place
  const address = await addressOf(store, place)
  const vbd = formatVbdId(address)
  const { readOnly, cdrom = false, removable = false, discard = true } = words
  const params = paramsOf(driver, argument, words)
  const description = {
    name: formatVdev(devid),
    params,
    readOnly: readOnly === true,
    cdrom,
    removable,
    discard,
  }
  const { timeout: timeoutMs = TIMEOUT_MS } = words
  const onState = progress(context, vbd)
  const outcome = await attach(store, address, description, { timeoutMs, signal, onState })
  if (outcome === 'waiting' && timeoutMs > 0) {
    throw new VbdError('ERR_VBD_TIMEOUT', `${vbd} is attached, and its guest has not connected`, {
      vbd,
      remedy: `it may do so later; or take it away with \`vbdkit detach ${place.dom} ${formatVdev(devid)}\``,
    })
  }
  const connected = outcome === 'connected'
  const text = connected ? 'attached, and in use by its guest' : 'attached'
  context.terminal.event('attached', { vbd, params, connected }, `${vbd}: ${text}`)
  return 0
}

/** As the daemon reads it: a path is absolute, whoever's it is. */
function paramsOf(driver: string, argument: string, words: AttachWords): string {
  const { direct, io, sectorSize, writeThrough, shared } = words
  const given = { direct, io, sectorSize, writeThrough, shared }
  return formatParams(
    driver,
    driver === 'file' ? resolve(argument) : argument,
    given as DriverWords,
  )
}

function progress({ terminal }: Context, vbd: string) {
  return (states: States) =>
    terminal.event(
      'state',
      { vbd, ...states },
      `${vbd}: backend ${states.backend}, frontend ${states.frontend}`,
    )
}

function inStore(
  context: Context,
  { xen }: PlaceWords,
  body: (store: Xenstore, ownDomid: number, signal: AbortSignal) => Promise<number>,
): Promise<number> {
  return stoppable(context.terminal, async (signal) => {
    const { store, domid } = await openStore(xen)
    try {
      return await body(store, domid, signal)
    } finally {
      await store.close()
    }
  })
}
