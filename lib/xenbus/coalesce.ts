/**
 * Coalescer: turns any number of hints into at most one running and one pending call of a body. The body
 * always runs once more after the last hint, one run at a time. Not a queue: hints carry nothing.
 */

export class Coalescer {
  readonly #body: () => Promise<void>
  #running: Promise<void> | undefined
  #pending = false
  #stopped = false

  /** @param body must not reject: what can fail in it is its own business */
  constructor(body: () => Promise<void>) {
    this.#body = body
  }

  /** Has the body run soon; at once when it is idle. */
  poke(): void {
    if (this.#stopped) return
    this.#pending = true
    this.#running ??= this.#run()
  }

  /** As `poke`, and resolves when the body has run for it. */
  async flush(): Promise<void> {
    this.poke()
    await this.#running
  }

  /** No further run begins; resolves when the present one has ended. */
  async stop(): Promise<void> {
    this.#stopped = true
    this.#pending = false
    await this.#running
  }

  async #run(): Promise<void> {
    // Never inside of poke: a body that pokes at once must find itself running.
    await undefined
    try {
      while (this.#pending) {
        this.#pending = false
        await this.#body()
      }
    } finally {
      this.#running = undefined
    }
  }
}
