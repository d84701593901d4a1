/** main.js NAME+NAME...: runs these suites in turn; the way in of a boot's job (dom0/job). */
import { it } from 'node:test'

const names = (process.argv[2] ?? '').split('+').filter((name) => name !== '')
for (const name of names) {
  await import(`./${name}.js`).catch((thrown) => {
    it(`${name} can be loaded`, () => {
      throw thrown
    })
  })
}
