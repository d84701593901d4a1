/** What DRIVER [ARG] may be, for the help and for complaints: text alone, so that a help costs no driver. */

export const DRIVERS = 'file PATH | concat PATH... | memory | zero | pattern | null SIZE'
/** The same, and disks in files. */
export const DISKS = `${DRIVERS} | FILE.ts [KEY=VALUE...]`
