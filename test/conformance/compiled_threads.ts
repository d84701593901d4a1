/**
 * Threads cannot run TypeScript: a disk's own thread, which tests start from lib/, runs the compiled library, on the
 * same addon. For `vi.mock('node:worker_threads', ...)`.
 */
type Threads = typeof import('node:worker_threads')
type WorkerOptions = import('node:worker_threads').WorkerOptions

/** node:worker_threads, whose Worker takes modules of lib/ from dist/lib/. */
export function compiledThreads(threads: Threads): Threads {
  return {
    ...threads,
    Worker: class extends threads.Worker {
      constructor(file: URL, options?: WorkerOptions) {
        super(new URL(file.href.replace(/\/lib\/(?=engine\/)/, '/dist/lib/')), options)
      }
    },
  }
}
