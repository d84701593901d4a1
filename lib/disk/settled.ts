/** Several things at once. */

/**
 * Resolves when all of them are done, whatever became of them: nobody uses a caller's memory after it.
 *
 * @throws what the first of them failed with, in their order
 */
export async function settled(running: readonly (Promise<void> | undefined)[]): Promise<void> {
  const failed = (await Promise.allSettled(running)).find(({ status }) => status === 'rejected')
  if (failed !== undefined) throw (failed as PromiseRejectedResult).reason
}
