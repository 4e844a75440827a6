// Runs the commands that README.md shows, as a reader would: what a README says is true as long as this passes.
//
//   ```sh ci                                   the block runs with bash, and has to exit 0
//   ```sh ci background ready="serving"        it keeps running; the next block begins once it has printed `serving`
//
// All blocks share one shell's state (variables, working directory), as in a reader's terminal. Blocks without `ci` are
// for the eye only.
import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { readmeBlocks } from './lib/readme-blocks.mjs';

const { values } = parseArgs({
  options: {
    result: { type: 'string' },
    file: { type: 'string', default: 'README.md' },
    timeout: { type: 'string', default: '300' },
  },
});
const limit = Number(values.timeout) * 1000;
const text = await readFile(values.file, 'utf8').catch((error) => {
  if (error.code === 'ENOENT') return '';
  throw error;
});
const blocks = readmeBlocks(text);
const directory = await mkdtemp(join(tmpdir(), 'leasehold-readme-'));
const state = join(directory, 'state');
const background = [];
const count = { passed: 0, failed: 0, skipped: 0 };

function start(block) {
  // The state is read at the beginning and written at the end, so that a variable (-a exports each) or a `cd` outlives its block.
  const script = `set -aeuo pipefail\n[ ! -f '${state}' ] || . '${state}'\n${block.code}\n{ export -p; printf 'cd %q\\n' "$PWD"; } > '${state}'\n`;
  const child = spawn('bash', ['-c', script], { cwd: resolve('.'), stdio: ['ignore', 'pipe', 'pipe'], detached: true });
  const run = { child, output: '', exited: undefined };
  const keep = (chunk) => {
    run.output = (run.output + chunk).slice(-1_000_000);
  };
  child.stdout.setEncoding('utf8').on('data', keep);
  child.stderr.setEncoding('utf8').on('data', keep);
  run.exited = new Promise((done) => child.once('exit', (code) => done(code ?? 1)));
  return run;
}

function end(run) {
  try {
    process.kill(-run.child.pid, 'SIGTERM');
  } catch {
    // It is gone already.
  }
}

async function ready(run, word) {
  for (const until = Date.now() + limit; Date.now() < until;) {
    if (run.output.includes(word)) return undefined;
    const code = await Promise.race([run.exited, new Promise((done) => setTimeout(done, 100))]);
    if (code !== undefined) return `it ended with code ${code} before it printed ${JSON.stringify(word)}`;
  }
  return `it did not print ${JSON.stringify(word)} within ${limit / 1000} s`;
}

async function finished(run) {
  const timer = setTimeout(() => end(run), limit);
  const code = await run.exited;
  clearTimeout(timer);
  return code === 0 ? undefined : `it ended with code ${code}`;
}

try {
  for (const block of blocks) {
    const run = start(block);
    if (block.background) background.push(run);
    const problem = block.background ? await ready(run, block.ready) : await finished(run);
    count[problem === undefined ? 'passed' : 'failed'] += 1;
    console.log(
      `${problem === undefined ? 'ok  ' : 'FAIL'} ${values.file}:${block.line} ${block.code.trim().split('\n')[0]}`,
    );
    if (problem !== undefined) {
      console.log(`     ${problem}\n${run.output.trimEnd().replace(/^/gm, '     ')}`);
      break;
    }
  }
} finally {
  for (const run of background.reverse()) {
    end(run);
    await Promise.race([run.exited, new Promise((done) => setTimeout(done, 15_000))]);
    try {
      process.kill(-run.child.pid, 'SIGKILL');
    } catch {
      // It ended when it was asked.
    }
  }
  await rm(directory, { recursive: true, force: true });
}
count.skipped = blocks.length - count.passed - count.failed;
console.log(
  blocks.length === 0 ? `${values.file} has no commands marked for CI` : `${blocks.length} blocks of ${values.file}`,
);
if (values.result !== undefined) await writeFile(values.result, JSON.stringify(count));
process.exitCode = count.failed === 0 ? 0 : 1;
