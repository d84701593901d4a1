/**
 * How each request of the wire protocol becomes an operation of the store: one table, by message type. Payloads are
 * untrusted: whatever is malformed is EINVAL. A type that is not in the table is ENOSYS.
 */
import { domainPath } from './path.js'
import { formatPermission, parsePermission } from './permission.js'
import type { Session } from './session.js'
import type { Transaction } from './tree.js'
import { joinStrings, MESSAGE, PAYLOAD_MAX, type Packet, untilNul } from './wire.js'
import { XenstoreError } from './xenstore.js'

export interface Answer {
  readonly payload: string
  /** What happens once the answer is sent. */
  readonly afterwards?: () => void
}

export interface Handler {
  /** Only for domain 0. */
  readonly privileged: boolean
  /** Heeds the packet's transaction; the others ignore it. */
  readonly inTransaction: boolean
  serve(session: Session, packet: Packet, transaction: Transaction | undefined): Answer
}

type Serve = Handler['serve']

const OK: Answer = { payload: 'OK\0' }
/** The number that means "myself" (DOMID_SELF). */
const DOMID_SELF = 0x7ff0

const onNode = (serve: Serve): Handler => ({ privileged: false, inTransaction: true, serve })
const onSession = (serve: Serve): Handler => ({ privileged: false, inTransaction: false, serve })
const onDomain = (serve: Serve): Handler => ({ privileged: true, inTransaction: false, serve })

export const HANDLERS: ReadonlyMap<number, Handler> = new Map<number, Handler>([
  [
    MESSAGE.READ,
    onNode((session, { payload }, tx) => ({
      payload: session.store.read(session, onlyString(payload), tx),
    })),
  ],
  [MESSAGE.DIRECTORY, onNode(directory)],
  [MESSAGE.DIRECTORY_PART, onNode(directoryPart)],
  [
    MESSAGE.GET_PERMS,
    onNode((session, { payload }, tx) => {
      const permissions = session.store.permissions(session, onlyString(payload), tx)
      return { payload: joinStrings(permissions.map(formatPermission)) }
    }),
  ],
  [MESSAGE.SET_PERMS, onNode(setPermissions)],
  [MESSAGE.WRITE, onNode(write)],
  [
    MESSAGE.MKDIR,
    onNode((session, { payload }, tx) => {
      session.store.mkdir(session, onlyString(payload), tx)
      return OK
    }),
  ],
  [
    MESSAGE.RM,
    onNode((session, { payload }, tx) => {
      session.store.remove(session, onlyString(payload), tx)
      return OK
    }),
  ],
  [MESSAGE.TRANSACTION_START, onNode(startTransaction)],
  [MESSAGE.TRANSACTION_END, onNode(endTransaction)],
  [MESSAGE.WATCH, onSession(watch)],
  [
    MESSAGE.UNWATCH,
    onSession((session, { payload }) => {
      const [path, token] = strings(payload, 2)
      session.store.unwatch(session, path!, token!)
      return OK
    }),
  ],
  [
    MESSAGE.RESET_WATCHES,
    onSession((session) => {
      session.resetWatches()
      return OK
    }),
  ],
  [
    MESSAGE.GET_DOMAIN_PATH,
    onSession((_session, { payload }) => ({
      payload: `${domainPath(number(onlyString(payload)))}\0`,
    })),
  ],
  [
    MESSAGE.IS_DOMAIN_INTRODUCED,
    onDomain((session, { payload }) => {
      const domid = number(onlyString(payload))
      return { payload: domid === DOMID_SELF || session.store.isIntroduced(domid) ? 'T\0' : 'F\0' }
    }),
  ],
  [MESSAGE.INTRODUCE, onDomain(introduce)],
  [
    MESSAGE.RELEASE,
    onDomain((session, { payload }) => {
      session.store.release(domainNumber(onlyString(payload)))
      return OK
    }),
  ],
  [
    MESSAGE.RESUME,
    onDomain((session, { payload }) => {
      if (!session.store.isIntroduced(domainNumber(onlyString(payload)))) {
        throw new XenstoreError('ENOENT', 'no such domain')
      }
      return OK
    }),
  ],
  [
    MESSAGE.SET_TARGET,
    onDomain((session, { payload }) => {
      const [domid, target] = strings(payload, 2)
      session.store.setTarget(domainNumber(domid!), domainNumber(target!))
      return OK
    }),
  ],
  [MESSAGE.CONTROL, onDomain(control)],
])

function directory(session: Session, { payload }: Packet, tx: Transaction | undefined): Answer {
  const names = joinStrings(session.store.list(session, onlyString(payload), tx).children)
  if (names.length > PAYLOAD_MAX) throw new XenstoreError('E2BIG', 'list it in parts')
  return { payload: names }
}

/** The generation, as many whole names from the offset as fit, and one NUL more at the end of the list. */
function directoryPart(session: Session, { payload }: Packet, tx: Transaction | undefined): Answer {
  const [path, offset] = strings(payload, 2)
  const node = session.store.list(session, path!, tx)
  const names = joinStrings(node.children)
  const head = `${node.generation}\0`
  const start = number(offset!)
  const room = PAYLOAD_MAX - head.length - 1
  const left = names.slice(start)
  if (left.length <= room) return { payload: `${head}${left}\0` }
  return { payload: `${head}${left.slice(0, left.lastIndexOf('\0', room - 1) + 1)}` }
}

function write(session: Session, { payload }: Packet, tx: Transaction | undefined): Answer {
  const end = payload.indexOf('\0')
  if (end < 0) throw malformed()
  session.store.write(session, payload.slice(0, end), payload.slice(end + 1), tx)
  return OK
}

function setPermissions(
  session: Session,
  { payload }: Packet,
  tx: Transaction | undefined,
): Answer {
  const [path, ...permissions] = strings(payload)
  if (path === undefined || permissions.length === 0) throw malformed()
  session.store.setPermissions(session, path, permissions.map(parsePermission), tx)
  return OK
}

function startTransaction(session: Session, _packet: Packet, tx: Transaction | undefined): Answer {
  if (tx !== undefined) throw new XenstoreError('EBUSY', 'transactions do not nest')
  return { payload: `${session.startTransaction()}\0` }
}

function endTransaction(session: Session, { payload, txId }: Packet): Answer {
  const how = onlyString(payload)
  if (how !== 'T' && how !== 'F') throw malformed()
  session.endTransaction(txId, how === 'T')
  return OK
}

function watch(session: Session, { payload }: Packet): Answer {
  const [path, token] = strings(payload, 2)
  session.store.watch(session, path!, token!)
  return { payload: OK.payload, afterwards: () => session.onWatch(path!, token!) }
}

function introduce(session: Session, { payload }: Packet): Answer {
  const [domid, , port] = strings(payload, 3)
  if (number(port!) <= 0) throw malformed()
  session.store.introduce(number(domid!))
  return OK
}

function control(_session: Session, { payload }: Packet): Answer {
  if (untilNul(payload) !== 'help') throw malformed()
  return { payload: 'help\t\n\0' }
}

/** Strings that each end in NUL; `count` of them where it is given. */
function strings(payload: string, count?: number): string[] {
  if (!payload.endsWith('\0')) throw malformed()
  const all = payload.slice(0, -1).split('\0')
  if (count !== undefined && all.length !== count) throw malformed()
  return all
}

function onlyString(payload: string): string {
  return strings(payload, 1)[0]!
}

/** As C's atoi: the leading digits, 0 without any. */
function number(text: string): number {
  const value = Number.parseInt(text, 10)
  return Number.isNaN(value) ? 0 : Math.max(0, value)
}

function domainNumber(text: string): number {
  const domid = number(text)
  if (domid === 0) throw malformed()
  return domid
}

function malformed(): XenstoreError {
  return new XenstoreError('EINVAL', 'malformed request')
}
