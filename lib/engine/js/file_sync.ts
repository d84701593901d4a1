/**
 * FileSync: the flushes of one file through node:fs. One at a time, and all that ask meanwhile share the next one: of
 * two at a time one could take the news of a lost write while the other reports success, and gets answered first.
 *
 * A sync that failed is final: what was written before it may be lost, although the kernel calls its pages clean. From
 * then on writes, discards and flushes of this file fail.
 */
import { fdatasync } from 'node:fs'
import { ERRNO } from './disk_queue.js'

type Answer = (errno: number) => void

export class FileSync {
  readonly #fd: number
  #waiting: Answer[] = []
  #running = false
  #failed = false

  constructor(fd: number) {
    this.#fd = fd
  }

  get failed(): boolean {
    return this.#failed
  }

  /** Answers 0 when everything that is written now is on stable storage. Never before it returns. */
  ask(answer: Answer): void {
    if (this.#failed) {
      queueMicrotask(() => answer(ERRNO.io))
      return
    }
    this.#waiting.push(answer)
    if (!this.#running) this.#start()
  }

  #start(): void {
    if (this.#waiting.length === 0) return
    const group = this.#waiting
    this.#waiting = []
    this.#running = true
    fdatasync(this.#fd, (error) => {
      this.#running = false
      const errno = error === null ? 0 : Math.abs(error.errno ?? ERRNO.io)
      if (errno !== 0) this.#failed = true
      for (const answer of group) answer(errno)
      if (errno !== 0) for (const answer of this.#waiting.splice(0)) answer(ERRNO.io)
      this.#start()
    })
  }
}
