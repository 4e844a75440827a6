// What .ci/run does once the packages are there: check, tests, build, README, each with the command that a person types.
import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { endProcesses, findProcesses } from './lib/processes.mjs';

const directory = await mkdtemp(join(tmpdir(), 'leasehold-ci-'));
// Everything that a step starts inherits this, so that what it leaves behind can be found and ended by its id.
const marker = `LEASEHOLD_CI_RUN=${randomUUID()}`;
const env = { ...process.env, [marker.split('=')[0]]: marker.split('=')[1], NO_COLOR: '1' };
const sessions = new Set();
const total = { passed: 0, failed: 0, skipped: 0 };

/** Runs one step in a session of its own. `limit` in minutes ends a step that hangs. */
async function step(name, limit, command, args, count) {
  console.log(`\n--- ${name}: ${command} ${args.join(' ')}`);
  const started = performance.now();
  const child = spawn(command, args, { env, stdio: ['ignore', 'inherit', 'inherit'], detached: true });
  if (child.pid !== undefined) sessions.add(child.pid);
  const code = await new Promise((resolve) => {
    const timer = setTimeout(() => {
      console.log(`${name} ran longer than ${limit} minutes and is ended`);
      process.kill(-child.pid, 'SIGKILL');
    }, limit * 60_000);
    const done = (result) => {
      clearTimeout(timer);
      resolve(result);
    };
    child.once('error', (error) => {
      console.log(error.message);
      done(127);
    });
    child.once('exit', (result) => done(result ?? 1));
  });
  const result = await count(code);
  // A step that failed without a failure to count is one failure by itself.
  if (code !== 0 && result.failed === 0) result.failed = 1;
  const left = await leftBehind();
  if (left.length > 0) {
    console.log(`${name} left ${left.length} processes running:`);
    for (const { pid, command: line } of left) console.log(`  ${pid} ${line}`);
    await endProcesses(left, leftBehind);
    result.failed += 1;
  }
  for (const key of Object.keys(total)) total[key] += result[key];
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  console.log(`--- ${name}: ${result.failed === 0 ? 'good' : 'FAILED'} in ${seconds} s`);
}

/** What is still running shortly after a step has ended: a child that is on its way out is not left behind. */
async function leftBehind() {
  let left = [];
  for (let tries = 0; tries < 20; tries++) {
    left = await findProcesses(marker, sessions);
    if (left.length === 0) return left;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return left;
}

const one = (code) => ({ passed: code === 0 ? 1 : 0, failed: code === 0 ? 0 : 1, skipped: 0 });
const fromFile = (file) => async (code) => {
  const text = await readFile(file, 'utf8').catch(() => undefined);
  return text === undefined ? one(code || 1) : JSON.parse(text);
};

/** vitest's own report. A run of no tests is a failure, and a file that could not be loaded is one. */
async function countTests(code) {
  const text = await readFile(tests, 'utf8').catch(() => undefined);
  if (text === undefined) return one(code || 1);
  const report = JSON.parse(text);
  const broken = report.testResults.filter((file) => file.status === 'failed' && file.assertionResults.length === 0);
  const result = {
    passed: report.numPassedTests,
    failed: report.numFailedTests + broken.length,
    skipped: report.numPendingTests + report.numTodoTests,
  };
  if (result.passed + result.failed === 0) result.failed = 1;
  return result;
}

const tests = join(directory, 'tests.json');
const checks = join(directory, 'checks.json');
const readme = join(directory, 'readme.json');
// Takes minutes in a fresh clone, and only the last of the tests need it. Without the marker: no step's own.
const vault = spawn(process.execPath, ['scripts/vault.mjs'], { stdio: ['ignore', 'ignore', 'inherit'] });
const vaultEnded = new Promise((resolve) => vault.once('exit', resolve));
try {
  await step('check', 10, 'npm', ['run', 'check', '--', '--result', checks], fromFile(checks));
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${tests}`];
  await step('test', 55, 'npm', ['test', '--', ...reporters], countTests);
  await step('build', 5, 'npm', ['run', 'build'], one);
  await step('built program', 1, 'node', ['scripts/check-build.mjs'], one);
  await step('README', 15, 'node', ['scripts/readme-commands.mjs', '--result', readme], fromFile(readme));
} finally {
  vault.kill('SIGTERM');
  await vaultEnded;
  await rm(directory, { recursive: true, force: true });
}
console.log(`\n${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`);
process.exitCode = total.failed === 0 && total.passed > 0 ? 0 : 1;
