/**
 * Options: how words of the command line become values. A word that does not fit is an
 * ERR_VBD_ARGUMENT in one line that names the option; ranges are in the help and in the message
 * alike.
 */
import { Option } from 'commander'
import { toVbdError, VbdError } from '../errors.js'
import { parseDuration, parseSize, parseVbdId } from '../units.js'

/** A parser whose complaint names the option or argument. */
function named<T>(name: string, parse: (text: string) => T): (text: string) => T {
  return (text) => {
    try {
      return parse(text)
    } catch (thrown) {
      const error = toVbdError(thrown, 'ERR_VBD_ARGUMENT')
      throw new VbdError(error.code, `${name}: ${error.message}`, {
        ...(error.remedy === undefined ? {} : { remedy: error.remedy }),
      })
    }
  }
}

/** A whole number within `min..max`, written in decimal. */
export function parseWhole(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN
    if (value >= min && value <= max && Number.isSafeInteger(value)) return value
    throw new VbdError('ERR_VBD_ARGUMENT', `'${text}' is not a whole number from ${min} to ${max}`)
  }
}

export interface WholeOption {
  readonly min: number
  readonly max: number
  /** What the help says is used without the option. */
  readonly fallback?: string
}

/** An option that takes a whole number; its range and default stand in the help. */
export function wholeOption(flags: string, description: string, limits: WholeOption): Option {
  const { min, max, fallback } = limits
  const option = new Option(flags, `${description} (${min}..${max}${defaultText(fallback)})`)
  return option.argParser(named(flag(flags), parseWhole(min, max)))
}

/** An option that takes one of a few words. */
export function choiceOption(
  flags: string,
  description: string,
  choices: readonly string[],
  fallback: string,
): Option {
  const text = `${description} (${choices.join('|')}${defaultText(fallback)})`
  const parse = (word: string) => {
    if (choices.includes(word)) return word
    throw new VbdError('ERR_VBD_ARGUMENT', `'${word}' is none of ${choices.join(', ')}`)
  }
  return new Option(flags, text).argParser(named(flag(flags), parse))
}

/** An option that takes a size; bytes. */
export function sizeOption(flags: string, description: string, fallback?: string): Option {
  const text = fallback === undefined ? description : `${description} (default: ${fallback})`
  return new Option(flags, text).argParser(named(flag(flags), parseSize))
}

/** An option that takes a duration within `min..max` milliseconds; milliseconds. */
export function durationOption(
  flags: string,
  description: string,
  limits: { readonly min: number; readonly max: number; readonly fallback?: string },
): Option {
  const { min, max, fallback } = limits
  const parse = (text: string) => {
    const milliseconds = parseDuration(text)
    if (milliseconds >= min && milliseconds <= max) return milliseconds
    throw new VbdError('ERR_VBD_ARGUMENT', `'${text}' is not within ${min / 1000}s..${max / 1000}s`)
  }
  const range = `${min / 1000}s..${max / 1000}s`
  return new Option(flags, `${description} (${range}${defaultText(fallback)})`).argParser(
    named(flag(flags), parse),
  )
}

/** The argument DOM:VDEV, checked and left as written. */
export function vbdArgument(text: string): string {
  parseVbdId(text)
  return text
}

/** The argument SIZE. */
export const sizeArgument = named('SIZE', parseSize)

function defaultText(fallback: string | undefined): string {
  return fallback === undefined ? '' : `; default: ${fallback}`
}

function flag(flags: string): string {
  return /--[\w-]+/.exec(flags)?.[0] ?? flags
}
