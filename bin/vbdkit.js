#!/usr/bin/env node
// The `vbdkit` command. All of it is in lib/cli, compiled to dist.
import { existsSync } from 'node:fs'

const main = new URL('../dist/lib/cli/main.js', import.meta.url)
if (existsSync(main)) {
  const { run } = await import(main.href)
  await run()
} else {
  console.error('vbdkit: not built yet\nvbdkit: run `npm run setup` in the checkout first')
  process.exitCode = 2
}
