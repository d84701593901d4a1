/** Which Xen: the --xen option. */
import { resolve } from 'node:path'
import { Option } from 'commander'
import { VbdError } from '../errors.js'
import type { XenChoice } from '../store.js'

/** --xen, which VBDKIT_XEN stands for. */
export function xenOption(text: string): Option {
  return new Option('--xen <where>', text).env('VBDKIT_XEN').default('auto').argParser(parseXen)
}

/** auto, host, mock, or mock:DIR with DIR made absolute. */
export function parseXen(text: string): XenChoice {
  if (text === 'auto' || text === 'host' || text === 'mock') return text
  if (text.startsWith('mock:') && text.length > 5) return `mock:${resolve(text.slice(5))}`
  throw new VbdError('ERR_VBD_ARGUMENT', `--xen: '${text}' is none of auto, host, mock, mock:DIR`, {
    remedy: 'for the mock Xen, name the directory that `vbdkit mock DIR` was given: --xen mock:DIR',
  })
}

/** The directory of `mock:DIR`; undefined for a Xen host. */
export function mockDirOf(xen: XenChoice): string | undefined {
  return xen.startsWith('mock:') ? xen.slice(5) : undefined
}
