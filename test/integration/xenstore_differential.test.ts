/**
 * The in-memory server against Debian's C xenstored: the same requests to both, byte by byte, must bring the same answers
 * and the same events in the same order.
 */
import { describe, expect, it } from 'vitest'
import { type MessageName, messageName, type Packet } from '../../lib/xenstore/wire.js'
import { whyNot } from '../xenstored/daemon.js'
import { type RawClient, SocketClient } from '../xenstored/raw_client.js'
import { ownTarget, realTarget, type Target } from '../xenstored/target.js'

const missing = await whyNot('xenstored')

/** Asks and writes down what came. */
class Probe {
  readonly transcript: string[] = []
  readonly #target: Target
  readonly #clients = new Map<string, RawClient>()

  constructor(target: Target) {
    this.#target = target
  }

  get target(): Target {
    return this.#target
  }

  /** A connection of domain 0, made when it is first named. */
  async client(name: string): Promise<RawClient> {
    const known = this.#clients.get(name)
    if (known !== undefined) return known
    const client = await SocketClient.connect(this.#target.socket)
    this.#clients.set(name, client)
    return client
  }

  /** A domain with a directory of its own that speaks for itself under `name`. */
  async guest(name: string, domid: number): Promise<RawClient> {
    await this.#target.addDomain(domid)
    await this.say('a', 'WRITE', `/local/domain/${domid}\0`)
    await this.say('a', 'SET_PERMS', `/local/domain/${domid}\0n${domid}\0`)
    await this.say('a', 'INTRODUCE', `${domid}\x001\x00${5}\0`)
    const client = await this.#target.guest(domid)
    this.#clients.set(name, client)
    return client
  }

  /** One request; what all other clients hear of it is written down, too. */
  async say(name: string, type: MessageName | number, payload: string, txId = 0): Promise<string> {
    const client = await this.client(name)
    const answer = await client.ask(type, payload, txId)
    this.transcript.push(`${name} ${String(type)} ${quote(payload)} in ${txId}`)
    await this.listen()
    return answer?.payload ?? ''
  }

  async listen(): Promise<void> {
    for (const [name, client] of this.#clients) {
      for (const packet of await client.take()) this.transcript.push(`  ${name} < ${show(packet)}`)
    }
  }

  async begin(name: string): Promise<number> {
    return Number.parseInt(await this.say(name, 'TRANSACTION_START', '\0'), 10)
  }

  note(text: string): void {
    this.transcript.push(text)
  }

  async close(): Promise<void> {
    for (const client of this.#clients.values()) await client.close()
    await this.#target.close()
  }
}

const quote = (text: string) => JSON.stringify(text.length > 200 ? `${text.length} bytes` : text)

function show({ type, reqId, txId, payload }: Packet): string {
  return `${messageName(type)} ${reqId} ${txId} ${quote(payload)}`
}

/** After a change of permissions, removals and so on: what a client of each kind may see. */
const scenarios: Record<string, (probe: Probe) => Promise<void>> = {
  'unknown and malformed requests': async (p) => {
    for (const type of [15, 16, 20, 23, 25, 99, 65535]) await p.say('a', type, 'x\0')
    const malformed: [MessageName, string][] = [
      ['READ', '\0'],
      ['READ', '/tool\0junk'],
      ['READ', '/tool\0junk\0'],
      ['READ', '@releaseDomain\0'],
      ['GET_PERMS', '@releaseDomain\0'],
      ['WRITE', '/nodata'],
      ['WRITE', '/nodata\0'],
      ['TRANSACTION_START', ''],
      ['TRANSACTION_END', 'T'],
      ['TRANSACTION_END', 'T\0'],
      ['TRANSACTION_END', 'X\0'],
      ['RESET_WATCHES', '\0'],
      ['GET_DOMAIN_PATH', 'abc\0'],
      ['GET_DOMAIN_PATH', '7\0'],
      ['IS_DOMAIN_INTRODUCED', '0\0'],
      ['IS_DOMAIN_INTRODUCED', '7\0'],
      ['IS_DOMAIN_INTRODUCED', '32752\0'],
      ['WATCH', '/a\0'],
      ['WATCH', '/a\0t'],
      ['WATCH', '/a\0t\x001\0'],
      ['WATCH', '/a/\0t\0'],
      ['WATCH', '/a b\0t\0'],
      ['WATCH', '\0t\0'],
      ['UNWATCH', '/a\0'],
      ['UNWATCH', '/a\0t\0'],
      ['SET_PERMS', '/tool\0'],
      ['SET_PERMS', '/tool\0x5\0'],
      ['SET_PERMS', '/tool\0n\0'],
      ['INTRODUCE', '7\x001\0'],
      ['INTRODUCE', '7\x001\x000\0'],
      ['INTRODUCE', '7\x001\x001\0'],
      ['RELEASE', '7\0'],
      ['SET_TARGET', '7\0'],
      ['DIRECTORY_PART', '/tool\0'],
    ]
    for (const [type, payload] of malformed) await p.say('a', type, payload)
  },
  paths: async (p) => {
    const paths = [
      '/m/',
      '/m//n',
      '/m/a b',
      '/m/a:b',
      '//',
      '',
      '/@',
      '/-_@',
      'rel/x',
      'rel/',
      '/m/é',
    ]
    for (const path of paths) {
      await p.say('a', 'WRITE', `${path}\0x`)
      await p.say('a', 'READ', `${path}\0`)
    }
    await p.say('a', 'READ', '/local/domain/0/rel/x\0')
    for (const length of [1024, 2047, 2048, 2049, 3071, 3072, 3073]) {
      await p.say('a', 'WRITE', `/${'a'.repeat(length - 1)}\0x`)
      await p.say('a', 'WRITE', `/local/domain/1/${'a'.repeat(length - 16)}\0x`)
      await p.say('a', 'WRITE', `${'r'.repeat(length)}\0x`)
      await p.say('a', 'WATCH', `@${'w'.repeat(length - 1)}\0t\0`)
    }
  },
  'nodes and directories': async (p) => {
    await p.say('a', 'MKDIR', '/m/n\0')
    await p.say('a', 'WRITE', '/m/n\0a\0b')
    await p.say('a', 'READ', '/m/n\0')
    await p.say('a', 'DIRECTORY', '/m\0')
    await p.say('a', 'DIRECTORY', '/m/n\0')
    await p.say('a', 'DIRECTORY', '/m/zz\0')
    for (const name of ['z', 'a', 'q', 'n']) await p.say('a', 'WRITE', `/m/${name}\0`)
    await p.say('a', 'DIRECTORY', '/m\0')
    for (const path of ['/m/zz', '/m/zz/y', '/', '/m/q', '/m/q', '/m'])
      await p.say('a', 'RM', `${path}\0`)
    await p.say('a', 'DIRECTORY', '/\0')
    await p.say('a', 'WRITE', `/big\0${'x'.repeat(4091)}`)
    await p.say('a', 'READ', '/big\0')
  },
  permissions: async (p) => {
    await p.say('a', 'MKDIR', '/m/n\0')
    for (const list of [
      'n0\0r5\0',
      'n5\0r0\0',
      'b0\0',
      'r0\0w1\0b2\0n3\0',
      'n0\0n1\0n2\0n3\0n4\0n5\0',
    ]) {
      await p.say('a', 'SET_PERMS', `/m/n\0${list}`)
      await p.say('a', 'GET_PERMS', '/m/n\0')
    }
    await p.say('a', 'WRITE', '/m/n/below/deep\0')
    await p.say('a', 'GET_PERMS', '/m/n/below\0')
    await p.say('a', 'GET_PERMS', '/m/n/below/deep\0')
    await p.say('a', 'GET_PERMS', '/none\0')
    await p.say('a', 'SET_PERMS', '/none\0n0\0')
  },
  'transactions: ids': async (p) => {
    const tx = await p.begin('a')
    await p.say('a', 'TRANSACTION_START', '\0', tx)
    await p.say('a', 'READ', '/tool\0', 777)
    await p.say('b', 'READ', '/tool\0', tx)
    await p.say('a', 'TRANSACTION_END', 'X\0', tx)
    await p.say('a', 'TRANSACTION_END', 'T\0', tx)
    await p.say('a', 'TRANSACTION_END', 'T\0', tx)
    await p.say('a', 'TRANSACTION_END', 'F\0', await p.begin('a'))
    const open = [await p.begin('a'), await p.begin('a')]
    await p.say('a', 'RESET_WATCHES', '\0')
    for (const id of open) await p.say('a', 'READ', '/tool\0', id)
  },
  'transactions: isolation and conflicts': async (p) => {
    await p.say('a', 'WRITE', '/iso\0zero')
    await p.say('a', 'WRITE', '/dir/old\0')
    const inside: [MessageName, string][] = [
      ['READ', '/iso\0'],
      ['WRITE', '/iso\0inside'],
      ['READ', '/absent\0'],
      ['WRITE', '/dir/new\0'],
      ['DIRECTORY', '/dir\0'],
      ['GET_PERMS', '/dir\0'],
      ['SET_PERMS', '/iso\0r0\0'],
      ['RM', '/dir/old\0'],
      ['MKDIR', '/dir/old\0'],
      ['WATCH', '/elsewhere\0t\0'],
    ]
    const outside: [MessageName, string][] = [
      ['READ', '/iso\0'],
      ['WRITE', '/iso\0outside'],
      ['WRITE', '/unrelated\0'],
      ['WRITE', '/absent\0'],
      ['WRITE', '/dir/other\0'],
      ['SET_PERMS', '/dir\0r0\0'],
      ['RM', '/dir\0'],
      ['RM', '/iso\0'],
    ]
    for (const [type, payload] of inside) {
      for (const [otherType, otherPayload] of outside) {
        await p.say('a', 'WRITE', '/iso\0zero')
        await p.say('a', 'WRITE', '/dir/old\0')
        await p.say('a', 'RM', '/absent\0')
        await p.say('a', 'UNWATCH', '/elsewhere\0t\0')
        const tx = await p.begin('a')
        await p.say('a', type, payload, tx)
        await p.say('b', otherType, otherPayload)
        await p.say('a', 'READ', '/iso\0', tx)
        await p.say('a', 'TRANSACTION_END', 'T\0', tx)
        await p.say('b', 'READ', '/iso\0')
        await p.say('b', 'DIRECTORY', '/dir\0')
      }
    }
  },
  'transactions: events': async (p) => {
    await p.say('b', 'WATCH', '/\0all\0')
    await p.say('b', 'WATCH', '/w/dir/1\0one\0')
    const tx = await p.begin('a')
    await p.say('a', 'WRITE', '/w/1\0v', tx)
    await p.say('a', 'WRITE', '/w/dir/1\0v', tx)
    await p.say('a', 'WRITE', '/w/1\0w', tx)
    await p.say('a', 'TRANSACTION_END', 'T\0', tx)
    const abort = await p.begin('a')
    await p.say('a', 'WRITE', '/w/3\0v', abort)
    await p.say('a', 'TRANSACTION_END', 'F\0', abort)
    const removing = await p.begin('a')
    await p.say('a', 'RM', '/w/dir\0', removing)
    await p.say('a', 'READ', '/w/dir/1\0', removing)
    await p.say('a', 'TRANSACTION_END', 'T\0', removing)
    await p.say('a', 'WRITE', '/w/dir/1\0v')
    const resurrect = await p.begin('a')
    await p.say('a', 'RM', '/w/dir\0', resurrect)
    await p.say('a', 'WRITE', '/w/dir/1\0again', resurrect)
    await p.say('a', 'TRANSACTION_END', 'T\0', resurrect)
    await p.say('a', 'READ', '/w/dir/1\0')
    const both = await p.begin('a')
    await p.say('a', 'WRITE', '/w/short\0lived', both)
    await p.say('a', 'RM', '/w/short\0', both)
    await p.say('a', 'TRANSACTION_END', 'T\0', both)
    await p.say('a', 'DIRECTORY', '/w\0')
  },
  watches: async (p) => {
    await p.say('a', 'WRITE', '/m/n\0v')
    await p.say('a', 'WATCH', '/m\0tok\0')
    await p.say('a', 'WATCH', '/m\0tok\0')
    await p.say('a', 'WATCH', '/m\0tok2\0')
    await p.say('a', 'WATCH', '/m\0\0')
    await p.say('b', 'WATCH', '/x/y/z\0t3\0')
    await p.say('b', 'WATCH', 'rel\0r\0')
    await p.say('b', 'WATCH', '/local/domain/0/rel\0absolute\0')
    await p.say('b', 'WATCH', '@foo\0F\0')
    await p.say('a', 'WRITE', '/m/n\0v2')
    await p.say('a', 'WRITE', '/m/n\0v2')
    await p.say('a', 'WRITE', '/mm\0not under it')
    await p.say('a', 'MKDIR', '/m/n\0')
    await p.say('a', 'MKDIR', '/m/new\0')
    await p.say('a', 'SET_PERMS', '/m/n\0r0\0')
    await p.say('a', 'WRITE', '/x/y/z/w\0v')
    await p.say('a', 'RM', '/x\0')
    await p.say('a', 'RM', '/x\0')
    await p.say('b', 'WRITE', 'rel/x\0v')
    await p.say('b', 'RM', '/local/domain/0\0')
    await p.say('a', 'UNWATCH', '/m\0tok\0')
    await p.say('a', 'UNWATCH', '/m\0tok\0')
    await p.say('a', 'RM', '/m\0')
    await p.say('a', 'RESET_WATCHES', '\0')
    await p.say('a', 'WRITE', '/m/n\0v2')
  },
  'watches: the order of a recursive removal': async (p) => {
    for (const path of ['/t/a/1', '/t/a/2', '/t/b', '/t/c/3/x'])
      await p.say('a', 'WRITE', `${path}\0`)
    for (const path of ['/t/c/3', '/t/b', '/t/a/2', '/t/a/1', '/t/a', '/t', '/', '/t/c/3/x']) {
      await p.say('b', 'WATCH', `${path}\0${path}\0`)
    }
    await p.say('a', 'RM', '/t\0')
  },
  'long directories': async (p) => {
    for (let i = 0; i < 700; i++)
      await (await p.client('a')).ask('WRITE', `/dir/${`${i}`.padStart(8, '0')}\0`)
    const client = await p.client('a')
    await client.take()
    await p.say('a', 'DIRECTORY', '/dir\0')
    for (let at = 0; ; ) {
      const answer = await client.ask('DIRECTORY_PART', `/dir\0${at}\0`)
      const [generation, ...names] = answer!.payload.split('\0')
      // Generations are the daemon's own business, but not their length, which is part of how much fits.
      const room = 4096 - generation!.length - 1
      p.note(
        `part at ${at}: ${names.length} names, whole ${(names.join('\0').length + 9 > room) as unknown}`,
      )
      if (answer!.payload.endsWith('\0\0')) break
      at += names.join('\0').length
    }
    await client.take()
    for (const at of [6300, 6299, 6291, 99_999]) {
      const answer = await client.ask('DIRECTORY_PART', `/dir\0${at}\0`)
      p.note(`part at ${at}: ${quote(answer!.payload.replace(/^\d+/, 'G'))}`)
    }
    const empty = await client.ask('DIRECTORY_PART', '/dir/00000000\x000\0')
    p.note(quote(empty!.payload.replace(/^\d+/, 'G')))
    await client.take()
  },
  domains: async (p) => {
    await p.say('b', 'WATCH', '@introduceDomain\0I\0')
    await p.say('b', 'WATCH', '@releaseDomain\0R\0')
    await p.say('b', 'WATCH', '/\0all\0')
    await p.say('a', 'INTRODUCE', '7\x001\x005\0')
    await p.target.addDomain(7)
    await p.say('a', 'INTRODUCE', '7\x001\x005\0')
    await p.say('a', 'INTRODUCE', '7\x001\x005\0')
    await p.say('a', 'IS_DOMAIN_INTRODUCED', '7\0')
    await p.say('a', 'WRITE', '/local/domain/7/device/vbd/1/state\0v')
    await p.say('a', 'WRITE', '/of/seven/below\0v')
    await p.say('a', 'WRITE', '/shared\0v')
    await p.say('a', 'SET_PERMS', '/local/domain/7\0n7\0r0\0')
    await p.say('a', 'SET_PERMS', '/local/domain/7/device\0n7\0')
    await p.say('a', 'SET_PERMS', '/of/seven\0n7\0')
    await p.say('a', 'SET_PERMS', '/shared\0n0\0b7\0')
    await p.say('b', 'WATCH', '/local/domain/7/device/vbd/1/state\0state\0')
    await p.target.removeDomain(7)
    p.note('domain 7 is dead')
    await p.listen()
    await p.say('a', 'IS_DOMAIN_INTRODUCED', '7\0')
    await p.say('a', 'DIRECTORY', '/local/domain\0')
    await p.say('a', 'DIRECTORY', '/of\0')
    await p.say('a', 'GET_PERMS', '/shared\0')
    await p.say('a', 'SET_PERMS', '/shared\0n7\0')
    await p.target.addDomain(7)
    await p.say('a', 'INTRODUCE', '7\x001\x005\0')
    await p.say('a', 'RELEASE', '7\0')
    await p.say('a', 'RELEASE', '7\0')
    await p.say('a', 'RELEASE', '0\0')
    await p.say('a', 'IS_DOMAIN_INTRODUCED', '7\0')
  },
  'unprivileged: what it may': async (p) => {
    await p.say('a', 'WRITE', '/secret/a\0x')
    await p.guest('g', 11)
    const asked: [MessageName | number, string][] = [
      ['IS_DOMAIN_INTRODUCED', '11\0'],
      ['GET_DOMAIN_PATH', '0\0'],
      ['RELEASE', '11\0'],
      ['RESUME', '11\0'],
      ['SET_TARGET', '11\x000\0'],
      ['CONTROL', 'help\0'],
      ['INTRODUCE', '1\x001\x001\0'],
      [99, 'x\0'],
      ['READ', '/secret\0'],
      ['READ', '/secret/zz/y\0'],
      ['READ', '/zz\0'],
      ['DIRECTORY', '/\0'],
      ['DIRECTORY', '/local/domain\0'],
      ['DIRECTORY_PART', '/secret\x000\0'],
      ['GET_PERMS', '/secret\0'],
      ['SET_PERMS', '/secret\0n0\0'],
      ['MKDIR', '/secret/q\0'],
      ['WRITE', '/secret/a\0y'],
      ['WRITE', '/new\0y'],
      ['RM', '/secret/a\0'],
      ['RM', '/secret/zzz/y\0'],
      ['RM', '/\0'],
      ['WRITE', 'own/x\0v'],
      ['READ', '/local/domain/11/own/x\0'],
      ['GET_PERMS', 'own\0'],
      ['SET_PERMS', 'own\0n0\0'],
      ['SET_PERMS', 'own\0n99\0'],
      ['SET_PERMS', 'own\0n11\0r0\0r1\0r2\0r3\0'],
      ['SET_PERMS', 'own\0n11\0r0\0r1\0r2\0r3\0r4\0'],
      ['GET_PERMS', 'own\0'],
      ['RM', 'own\0'],
      ['WATCH', '@releaseDomain\0R\0'],
      ['WATCH', '/secret\0S\0'],
      ['RM', '/local/domain/11\0'],
      ['WRITE', 'own/x\0v'],
    ]
    for (const [type, payload] of asked) await p.say('g', type, payload)
  },
  'unprivileged: ownership': async (p) => {
    await p.guest('g', 11)
    await p.say('a', 'WRITE', '/shared\0')
    await p.say('a', 'SET_PERMS', '/shared\0n0\0b11\0')
    await p.say('g', 'WRITE', '/shared/x/y\0v')
    for (const path of ['/shared', '/shared/x', '/shared/x/y'])
      await p.say('a', 'GET_PERMS', `${path}\0`)
    await p.say('a', 'WRITE', '/local/domain/11/of/zero\0v')
    await p.say('a', 'GET_PERMS', '/local/domain/11/of/zero\0')
    await p.say('a', 'SET_PERMS', '/shared\0r0\0w11\0')
    await p.say('g', 'READ', '/shared\0')
    await p.say('g', 'WRITE', '/shared\0blind')
    await p.say('g', 'DIRECTORY', '/shared\0')
    await p.say('a', 'SET_PERMS', '/shared\0r0\0')
    await p.say('g', 'READ', '/shared\0')
    await p.say('g', 'WRITE', '/shared\0no')
    await p.say('g', 'READ', '/shared/none\0')
    await p.say('a', 'SET_PERMS', '/shared\0b0\0n11\0')
    await p.say('g', 'READ', '/shared\0')
  },
  'unprivileged: what it hears': async (p) => {
    await p.guest('g', 11)
    await p.say('g', 'WATCH', '/\0root\0')
    await p.say('g', 'WATCH', '@introduceDomain\0I\0')
    await p.say('a', 'WRITE', '/secret/a\0y')
    await p.say('a', 'SET_PERMS', '/secret/a\0n0\0r11\0')
    await p.say('a', 'WRITE', '/secret/a\0y')
    await p.say('a', 'SET_PERMS', '/secret/a\0n0\0')
    await p.say('a', 'SET_PERMS', '/secret\0r0\0')
    await p.say('a', 'WRITE', '/secret/a\0y')
    await p.say('a', 'WRITE', '/secret/a/b/c\0y')
    await p.say('a', 'RM', '/secret/a\0')
    await p.say('a', 'SET_PERMS', '/secret\0n0\0')
    await p.say('a', 'RM', '/secret\0')
    await p.say('a', 'WRITE', '/local/domain/11/d/e/f\0y')
    for (const path of ['d/e/f', 'd/e', 'd']) await p.say('g', 'WATCH', `${path}\0${path}\0`)
    await p.say('g', 'RM', 'd\0')
    const tx = await p.begin('a')
    await p.say('a', 'WRITE', '/local/domain/11/in/tx\0', tx)
    await p.say('a', 'WRITE', '/hidden\0', tx)
    await p.say('a', 'TRANSACTION_END', 'T\0', tx)
    await p.target.addDomain(12)
    await p.say('a', 'INTRODUCE', '12\x001\x006\0')
  },
  'unprivileged: quotas': async (p) => {
    await p.guest('g', 11)
    const client = await p.client('g')
    const until = async (
      what: string,
      most: number,
      ask: (n: number) => Promise<Packet | undefined>,
    ) => {
      for (let n = 0; n <= most; n++) {
        const answer = await ask(n)
        if (messageName(answer!.type) === 'ERROR')
          return p.note(`${what}: ${n}, then ${answer!.payload}`)
      }
      p.note(`${what}: no limit up to ${most}`)
    }
    await until('transactions', 20, () => client.ask('TRANSACTION_START', '\0'))
    await client.ask('RESET_WATCHES', '\0')
    await until('watches', 200, (n) => client.ask('WATCH', `w${n}\0t\0`))
    await client.ask('RESET_WATCHES', '\0')
    await until('value', 80, (n) => client.ask('WRITE', `sz\0${'x'.repeat(1980 + n)}`))
    await client.ask('RM', 'sz\0')
    await client.ask('MKDIR', 'sz\0')
    const names = (n: number) => `${n}`.padStart(100, 'n')
    await until('names', 30, (n) => client.ask('WRITE', `sz/${names(n)}\0`))
    await client.ask('RM', 'sz\0')
    await until('nodes', 1100, (n) => client.ask('WRITE', `n/${n % 30}/${n}\0`))
    await client.ask('RM', 'n\0')
    const big = Number.parseInt((await client.ask('TRANSACTION_START', '\0'))!.payload, 10)
    await until('transaction writes', 10, (n) =>
      client.ask('WRITE', `n\0${'x'.repeat(300 * n)}`, big),
    )
    await p.say('g', 'READ', '/local/domain/11\0', big)
    await p.say('g', 'TRANSACTION_END', 'T\0', big)
    const wide = Number.parseInt((await client.ask('TRANSACTION_START', '\0'))!.payload, 10)
    await until('transaction reads', 1100, async (n) => {
      const answer = await client.ask('READ', `n/${n}\0`, wide)
      return answer!.payload === 'ENOENT\0' ? { ...answer!, type: 0 } : answer
    })
    await p.say('g', 'TRANSACTION_END', 'T\0', wide)
    await client.take()
  },
}

describe.skipIf(missing !== undefined)(
  `in-memory xenstore against C xenstored (${missing ?? 'real'})`,
  () => {
    for (const [name, scenario] of Object.entries(scenarios)) {
      it(name, async () => {
        const transcripts: string[][] = []
        for (const target of [await realTarget('xenstored'), await ownTarget()]) {
          const probe = new Probe(target)
          try {
            await scenario(probe)
            transcripts.push(probe.transcript)
          } finally {
            await probe.close()
          }
        }
        expect(transcripts[0]!.length).toBeGreaterThan(5)
        expect(transcripts[1]).toEqual(transcripts[0])
      })
    }
  },
)
