/**
 * The control plane on the real wire: our own xenstore server, Debian's C xenstored and Debian's oxenstored. They
 * differ in what conflicts, in the order of watch events and in how domains and their permissions are known; a vbd's
 * life must not.
 */
import { afterEach, describe, expect, it } from 'vitest'
import { Backend } from '../../lib/backend.js'
import { memory } from '../../lib/disk/drivers.js'
import { connectXenstore, type XenstoreClient } from '../../lib/xenstore/client.js'
import { FakeEngine } from '../support/fake_engine.js'
import { PATIENT } from '../support/patience.js'
import { whyNot } from '../xenstored/daemon.js'
import { type RawClient, SocketClient } from '../xenstored/raw_client.js'
import { ownTarget, realTarget, type Target } from '../xenstored/target.js'

const servers = {
  'in-memory server': { start: ownTarget, missing: undefined },
  'C xenstored': { start: () => realTarget('xenstored'), missing: await whyNot('xenstored') },
  oxenstored: { start: () => realTarget('oxenstored'), missing: await whyNot('oxenstored') },
}

const domid = 7
const front = `/local/domain/${domid}/device/vbd/51712`
const back = `/local/domain/0/backend/vbd/${domid}/51712`

for (const [name, { start, missing }] of Object.entries(servers)) {
  describe.skipIf(missing !== undefined)(
    `a vbd on ${name}${missing ? ` (${missing})` : ''}`,
    () => {
      let target: Target
      let dom0: XenstoreClient
      let guest: RawClient | undefined
      let engine: FakeEngine
      let backend: Backend

      async function open(): Promise<void> {
        target = await start()
        engine = new FakeEngine()
        dom0 = await connectXenstore({ path: target.socket })
        const store = await connectXenstore({ path: target.socket })
        const close = async () => {
          await engine.close()
          await store.close()
        }
        const platform = { kind: 'mock' as const, domid: 0, store, engine, close }
        backend = await Backend.open({ platform, reconcileMs: 500 })
      }

      afterEach(async () => {
        await guest?.close()
        guest = undefined
        await backend.close({ timeoutMs: 2000 })
        await dom0.close()
        await target.close()
        expect(engine.violations).toEqual([])
      })

      /** The domain, with what a toolstack writes for it. */
      async function bear(): Promise<void> {
        await target.addDomain(domid)
        await dom0.write(`/local/domain/${domid}/name`, 'guest')
        await dom0.mkdir(`/local/domain/${domid}/device`)
        const raw = await SocketClient.connect(target.socket)
        const answer = await raw.ask('INTRODUCE', `${domid}\x001\x005\0`)
        expect(answer?.payload).toBe('OK\0')
        await raw.close()
        guest = await target.guest(domid)
      }

      /** As the guest itself: what it may not do fails here. */
      async function write(key: string, value: string): Promise<void> {
        const answer = await guest!.ask('WRITE', `${front}/${key}\0${value}`)
        expect(answer?.payload, `the guest writes ${key}`).toBe('OK\0')
      }

      const reach = (state: string) =>
        expect.poll(() => dom0.tryRead(`${back}/state`), PATIENT).toBe(state)

      it('is made, connected, resized, closed, reconnected and taken away', async () => {
        await open()
        await bear()
        const vbd = await backend.serve(`${domid}:xvda`, memory('1MiB'))
        await reach('2')
        expect(await dom0.getPermissions(front)).toEqual([
          { access: 'n', domid },
          { access: 'r', domid: 0 },
        ])
        const seen = await guest!.ask('READ', `${back}/max-ring-page-order\0`)
        expect(seen?.payload.replace(/\0$/, '')).toBe('4')
        const forbidden = await guest!.ask('WRITE', `${back}/state\x005`)
        expect(forbidden?.payload).toBe('EACCES\0')

        await write('ring-ref', '8')
        await write('event-channel', '15')
        await write('protocol', 'x86_64-abi')
        await write('state', '3')
        await reach('4')
        await write('state', '4')
        expect(engine.mapped).toBe(1)

        await vbd.resize('2MiB')
        expect(await dom0.read(`${back}/sectors`)).toBe('4096')

        await write('state', '5')
        await reach('5')
        await write('state', '6')
        await reach('6')
        expect(engine.mapped).toBe(0)
        await write('state', '1')
        await reach('2')
        await write('state', '4')
        await reach('4')

        const closed = vbd.close()
        await reach('5')
        await write('state', '6')
        await closed
        expect(await dom0.tryRead('/local/domain/0/backend')).toBeUndefined()
        expect(await dom0.tryRead(`${front}/state`)).toBeUndefined()
      })

      it('waits for its domain, and survives the death of it', async () => {
        await open()
        await backend.serve(`${domid}:xvda`, memory('1MiB'))
        expect(await dom0.tryRead(`${back}/state`)).toBeUndefined()
        await bear()
        await reach('2')
        await write('ring-ref', '8')
        await write('event-channel', '15')
        await write('state', '3')
        await reach('4')

        await guest!.close()
        guest = undefined
        await dom0.remove(`/local/domain/${domid}`)
        await target.removeDomain(domid)
        await expect.poll(() => dom0.tryRead(`${back}/state`), PATIENT).toBeUndefined()
        expect(engine.mapped).toBe(0)

        await bear()
        await reach('2')
      })

      it('is served on while the daemon is away', async () => {
        await open()
        await bear()
        const vbd = await backend.serve(`${domid}:xvda`, memory('1MiB'))
        await reach('2')
        await write('ring-ref', '8')
        await write('event-channel', '15')
        await write('state', '3')
        await vbd.whenConnected({ timeoutMs: 10_000 })
        const lost = new Promise((resolve) => backend.on('xenstore', resolve))
        await guest!.close()
        guest = undefined
        await target.stop()
        await lost
        expect(engine.mapped).toBe(1)
        expect(vbd.connected).toBe(true)
        // A daemon that comes back with nothing in it: the device is gone, and so is what we hold of it.
        await target.start()
        await expect.poll(() => engine.mapped, PATIENT).toBe(0)
        await expect.poll(() => vbd.state, PATIENT).toBe('none')
      })
    },
  )
}
