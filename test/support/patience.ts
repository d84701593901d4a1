/**
 * How long a test waits for what must come, and how often it looks, milliseconds: the last resort on a machine that
 * has much else to do. Vitest's own second is a wait for its scheduler.
 */
export const PATIENT = { timeout: 20_000, interval: 10 }
