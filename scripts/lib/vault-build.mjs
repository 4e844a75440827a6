// Builds the Vault server for development and tests from its Go module (test/tools/vault), once for each state of go.mod and
// go.sum, into the user's cache. Any number may ask at once: one builds, the others wait for it.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, open, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { constants, setPriority } from 'node:os';
import { basename, delimiter, dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { builtVault, vaultToolModule } from '../../src/dev/vault-binary.ts';

const main = 'github.com/hashicorp/vault';
const minutes = 60_000;
const limits = { fetch: 20 * minutes, compile: 45 * minutes, wait: 70 * minutes };
const sayEvery = 15_000;
/** So that not each of many test files tries again what failed for the first. */
const failureCounts = 10 * minutes;

export class CannotBuild extends Error {}

/** Path of the built server. Throws `CannotBuild` where it cannot be had; `patient`: also when it could not be a moment ago. */
export async function buildVault(progress, signal, { patient = false } = {}) {
  const binary = builtVault(process.env);
  if (existsSync(binary)) return binary;
  const go = await findGo();
  await mkdir(dirname(binary), { recursive: true });
  const release = await lock(`${binary}.building`, binary, progress, signal);
  try {
    const failed = patient ? await recentFailure(`${binary}.failed`) : undefined;
    if (failed !== undefined) throw new CannotBuild(failed);
    if (!existsSync(binary)) await build(go, binary, progress, signal);
    await rm(`${binary}.failed`, { force: true });
    return binary;
  } catch (error) {
    if (!signal.aborted) await writeFile(`${binary}.failed`, error.message);
    throw error;
  } finally {
    await release();
  }
}

async function recentFailure(file) {
  const made = await stat(file).catch(() => undefined);
  return made === undefined || Date.now() - made.mtimeMs > failureCounts ? undefined : await readFile(file, 'utf8');
}

async function findGo() {
  const name = process.platform === 'win32' ? 'go.exe' : 'go';
  const folders = [...(process.env.PATH ?? '').split(delimiter).filter((folder) => folder !== ''), '/usr/local/go/bin'];
  const go = folders.map((folder) => join(folder, name)).find((file) => existsSync(file));
  if (go === undefined) throw new CannotBuild('Go is not installed: https://go.dev/doc/install (1.24 or later)');
  return go;
}

async function build(go, binary, progress, signal) {
  const version = basename(dirname(binary)).split('-', 1)[0];
  const started = Date.now();
  progress(`Vault ${version}: reading its sources; the first time this fetches some 300 modules from the Go proxy`);
  let fetched = 0;
  const packages = await runGo(go, ['list', '-mod=readonly', '-deps', main], limits.fetch, signal, {
    line: (line) => line.startsWith('go: downloading') && (fetched += 1),
    say: () => progress(`Vault ${version}: ${fetched} modules fetched, ${elapsed(started)}`),
  });
  const total = packages.split('\n').length;
  let compiled = 0;
  progress(`Vault ${version}: compiling up to ${total} packages, in the background of everything else`);
  const draft = `${binary}.${process.pid}.new`;
  const args = ['build', '-mod=readonly', '-trimpath', '-buildvcs=false', '-ldflags=-s -w', '-v', '-o', draft, main];
  try {
    await runGo(go, args, limits.compile, signal, {
      line: (line) => /^[\w./-]+$/.test(line) && (compiled += 1),
      say: () => progress(`Vault ${version}: ${compiled} of ${total} packages compiled, ${elapsed(started)}`),
    });
    await rename(draft, binary);
  } finally {
    await rm(draft, { force: true });
  }
  progress(`Vault ${version}: built in ${elapsed(started)}: ${binary}`);
}

/** Runs Go at low priority, in a process group of its own that ends with it. Answers its stdout. */
async function runGo(go, args, limit, signal, { line, say }) {
  // Without C the result is the same on a machine without a compiler, as in Vault's own releases.
  const env = { ...process.env, CGO_ENABLED: '0', GOWORK: 'off' };
  const child = spawn(go, args, { cwd: vaultToolModule, env, stdio: ['ignore', 'pipe', 'pipe'], detached: true });
  const errors = [];
  let out = '';
  child.stdout.setEncoding('utf8').on('data', (chunk) => (out += chunk));
  createInterface(child.stderr).on('line', (text) => {
    if (line(text) === false) errors.push(text);
    if (errors.length > 30) errors.shift();
  });
  let ended = '';
  const end = (why) => {
    ended = why;
    try {
      process.kill(-child.pid, 'SIGKILL');
    } catch {
      // It is gone already.
    }
  };
  const abort = () => end('it was interrupted');
  signal.addEventListener('abort', abort);
  const timer = setTimeout(() => end(`it took longer than ${limit / minutes} minutes`), limit);
  const saying = setInterval(say, sayEvery);
  try {
    const code = await new Promise((resolve, reject) => {
      child.once('error', reject);
      child.once('close', resolve);
      child.once('spawn', () => lowerPriority(child.pid));
    });
    if (signal.aborted) throw new CannotBuild('it was interrupted');
    if (code !== 0) throw new CannotBuild([ended || `go ${args[0]} failed`, ...errors].join('\n'));
    return out.trim();
  } finally {
    clearTimeout(timer);
    clearInterval(saying);
    signal.removeEventListener('abort', abort);
  }
}

function lowerPriority(pid) {
  try {
    setPriority(pid, constants.priority.PRIORITY_BELOW_NORMAL);
  } catch {
    // It is only politeness.
  }
}

/** A file that names who builds. Whoever dies with it leaves a process id that nobody has; its lock is taken over. */
async function lock(file, binary, progress, signal) {
  const until = Date.now() + limits.wait;
  let said = 0;
  for (;;) {
    try {
      const handle = await open(file, 'wx');
      await handle.writeFile(String(process.pid));
      await handle.close();
      return () => rm(file, { force: true });
    } catch (error) {
      if (error.code !== 'EEXIST') throw error;
    }
    const owner = Number(await readFile(file, 'utf8').catch(() => ''));
    if (existsSync(binary)) return async () => undefined;
    // An empty file is one that is just being written, or was left so by a crash: the first does not last.
    if (owner > 0 ? !alive(owner) : said > 20) await rm(file, { force: true });
    else if (said++ % 15 === 0) progress(`Vault is being built already, by process ${owner}; waiting for it`);
    if (signal.aborted || Date.now() > until) throw new CannotBuild(`process ${owner} does not finish building it`);
    await sleep(1_000);
  }
}

function alive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === 'EPERM';
  }
}

function elapsed(since) {
  const seconds = Math.round((Date.now() - since) / 1_000);
  return seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}
