import { defineConfig } from 'vitest/config'
import { PATIENT } from './test/support/patience.js'

// Native addons and child processes want processes, not worker threads; two workers, for two cores.
export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    pool: 'forks',
    maxWorkers: 2,
    testTimeout: 60_000,
    hookTimeout: 60_000,
    teardownTimeout: 20_000,
    expect: { poll: PATIENT },
  },
})
