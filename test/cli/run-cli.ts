import { spawn, type ChildProcess } from 'node:child_process';
import path from 'node:path';

const root = path.join(import.meta.dirname, '..', '..');
const main = path.join(root, 'src', 'main.ts');
/** Halves the time of each start. */
const compiled = path.join(root, 'node_modules', '.cache', 'leasehold-cli');

export interface CliResult {
  code: number | null;
  stdout: string;
  stderr: string;
}

export interface CliProcess {
  child: ChildProcess;
  /** What was printed so far. */
  printed(): string;
  done: Promise<CliResult>;
}

/** The real program in a process of its own. The environment holds only what a test names. */
export function startCli(args: readonly string[], env: Record<string, string> = {}): CliProcess {
  const child = spawn(process.execPath, [main, ...args], {
    env: { PATH: process.env.PATH ?? '', NODE_COMPILE_CACHE: compiled, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 50_000,
  });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  const done = new Promise<CliResult>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => resolve({ code, stdout, stderr }));
  });
  return { child, printed: () => stdout, done };
}

export async function runCli(args: readonly string[], env: Record<string, string> = {}): Promise<CliResult> {
  return await startCli(args, env).done;
}
