/** Other people's tools, each run with a time limit: what one says is returned, or told when it fails. */
import { spawn, spawnSync } from 'node:child_process'

export interface ToolOptions {
  /** Killed after this long. 60 by default. */
  readonly seconds?: number
  readonly input?: string
  /** Exit codes that are fine. [0] by default. */
  readonly codes?: readonly number[]
  readonly env?: NodeJS.ProcessEnv
}

export interface ToolResult {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

/** Why these tools cannot all be run, or undefined. */
export function missingTools(...names: readonly string[]): string | undefined {
  const missing = names.filter((name) => spawnSync('sh', ['-c', `command -v ${name}`]).status !== 0)
  return missing.length === 0 ? undefined : `not installed: ${missing.join(', ')}`
}

/** Runs a tool to its end; rejects when its exit code is none of `codes`, or when it takes too long. */
export async function tool(
  command: string,
  args: readonly string[],
  options: ToolOptions = {},
): Promise<ToolResult> {
  const { seconds = 60, codes = [0] } = options
  const child = spawn(command, args, { stdio: 'pipe', env: { ...process.env, ...options.env } })
  const stdout: Buffer[] = []
  const stderr: Buffer[] = []
  child.stdout.on('data', (chunk: Buffer) => stdout.push(chunk))
  child.stderr.on('data', (chunk: Buffer) => stderr.push(chunk))
  child.stdin.on('error', () => {})
  child.stdin.end(options.input)
  let late = false
  const timer = setTimeout(() => {
    late = true
    child.kill('SIGKILL')
  }, seconds * 1000)
  const [code, signal] = await new Promise<[number | null, NodeJS.Signals | null]>(
    (resolve, reject) => {
      child.once('error', reject)
      child.once('close', (...end) => resolve(end))
    },
  ).finally(() => clearTimeout(timer))
  const result = {
    code,
    signal,
    stdout: Buffer.concat(stdout).toString(),
    stderr: Buffer.concat(stderr).toString(),
  }
  if (late || code === null || !codes.includes(code)) {
    const how = late ? `took longer than ${seconds} s` : `ended with ${signal ?? code}`
    const said = `${result.stderr}\n${result.stdout}`.trim().slice(0, 3000)
    throw new Error(`${command} ${args.join(' ')} ${how}:\n${said}`)
  }
  return result
}

/** qemu-io on a raw NBD export; `read -P` that finds other bytes fails. */
export async function qemuIo(uri: string, ...commands: readonly string[]): Promise<string> {
  const args = commands.flatMap((command) => ['-c', command])
  const { stdout, stderr } = await tool('qemu-io', ['-f', 'raw', ...args, uri])
  if (/verification failed|error/i.test(stdout + stderr)) throw new Error(stdout + stderr)
  return stdout
}

/** fio on an NBD export with these options; verification failures fail. */
export async function fio(uri: string, options: Readonly<Record<string, string | number>>) {
  const given = Object.entries(options).map(([name, value]) => `--${name}=${value}`)
  const args = ['--name=job', '--ioengine=nbd', `--uri=${uri}`, '--output-format=json', ...given]
  const { stdout } = await tool(
    'fio',
    [...args, '--verify_state_save=0', '--verify_fatal=1', '--exitall_on_error=1'],
    {
      seconds: 120,
    },
  )
  const report = JSON.parse(stdout.slice(stdout.indexOf('{'))) as {
    jobs: { error: number; read: { total_ios: number }; write: { total_ios: number } }[]
  }
  return {
    errors: report.jobs.reduce((sum, { error }) => sum + error, 0),
    reads: report.jobs.reduce((sum, { read }) => sum + read.total_ios, 0),
    writes: report.jobs.reduce((sum, { write }) => sum + write.total_ios, 0),
  }
}
