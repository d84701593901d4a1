/**
 * TracedRequest: a request as a trace tells it, in the units of people. What an engine records is in `TraceBatch`.
 */

/** One request, after its answer. */
export interface TracedRequest {
  /** Milliseconds since 1970 of when it was taken from its ring, with fractions. */
  readonly timeMs: number
  readonly queue: number
  /** `other` is what no frontend should send. */
  readonly operation: 'read' | 'write' | 'barrier' | 'flush' | 'discard' | 'other'
  /** In bytes; 0 for a flush. As the guest wrote it, also where that was refused. */
  readonly offset: number
  /** In bytes. 0 for a flush, and for what was refused before it was known. */
  readonly length: number
  readonly segments: number
  readonly status: 'ok' | 'error' | 'unsupported'
  /** Microseconds from taking the request to its answer, with fractions. */
  readonly latencyUs: number
}

/** Some requests, in the order of their answers, and how many are missing before them. */
export interface TracedBatch {
  readonly requests: readonly TracedRequest[]
  readonly dropped: number
}
