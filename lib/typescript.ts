/**
 * `node --import vbdkit/typescript program.ts`: runs TypeScript that uses this package on every version of Node.js that
 * the package runs on. `vbdkit serve` needs it not.
 */
import { enableTypeScript } from './disk/typescript.js'

enableTypeScript()
