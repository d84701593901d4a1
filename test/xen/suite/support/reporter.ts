/**
 * Reporter: what the test runner does, as lines for the console (boot.sh shows those that begin with `rig:`), and
 * counted into $OUT/counts: `PASSED FAILED SKIPPED`.
 */
import { writeFileSync } from 'node:fs'
import { inspect } from 'node:util'

interface TestEvent {
  readonly type: string
  readonly data: {
    readonly name: string
    readonly nesting: number
    readonly skip?: string | boolean
    readonly details: {
      readonly type?: string
      readonly duration_ms: number
      readonly error?: { readonly cause?: unknown }
    }
  }
}

export default async function* reporter(events: AsyncIterable<TestEvent>): AsyncGenerator<string> {
  const counts = { passed: 0, failed: 0, skipped: 0 }
  for await (const { type, data } of events) {
    if (type === 'test:start' && data.nesting === 0) yield `rig: ${data.name}\n`
    if (type !== 'test:pass' && type !== 'test:fail') continue
    const suite = data.details.type === 'suite'
    const failed = type === 'test:fail'
    // A suite that failed for a reason of its own, its hooks, has no test that says so.
    if (suite && !(failed && isOwnFailure(data.details.error))) continue
    const verdict = failed ? 'failed' : data.skip ? 'skipped' : 'passed'
    counts[verdict]++
    const seconds = (data.details.duration_ms / 1000).toFixed(1).padStart(6)
    const mark = { passed: 'ok', failed: 'FAILED', skipped: 'skipped' }[verdict]
    const why = typeof data.skip === 'string' ? `: ${data.skip}` : ''
    yield `rig:   ${mark.padEnd(7)} ${seconds} s  ${data.name}${why}\n`
    if (failed) yield explain(data.details.error)
    save(counts)
  }
  save(counts)
  yield `rig: ${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped\n`
}

function isOwnFailure(error: unknown): boolean {
  return (error as { failureType?: string } | undefined)?.failureType !== 'subtestsFailed'
}

function explain(error: { cause?: unknown } | undefined): string {
  const cause = error?.cause ?? error
  const text = cause instanceof Error ? (cause.stack ?? cause.message) : inspect(cause)
  return text.replace(/^/gm, 'rig:     ').concat('\n')
}

function save({ passed, failed, skipped }: Record<string, number>): void {
  writeFileSync(`${process.env.OUT}/counts`, `${passed} ${failed} ${skipped}\n`)
}
