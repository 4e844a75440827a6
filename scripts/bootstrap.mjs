// Entry of every npm script. Plain JavaScript for the oldest Node that a machine may bring (20): it installs what the
// lock file names when that is not there yet, then hands over to the Node that the project pins.
import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const bin = join(root, 'node_modules', '.bin');
const windows = process.platform === 'win32';
const pinnedNode = join(root, 'node_modules', 'node', 'bin', windows ? 'node.exe' : 'node');

/**
 * For processes that hold a broker, bounds on their memory (the benchmark starts its broker with the same). Left alone, V8
 * lets 100 MB of dead objects lie before it looks, and glibc keeps a heap for every thread of the pool.
 */
const { config } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
const brokerOptions = config.broker_node_options.split(' ');
const brokerEnvironment = { MALLOC_ARENA_MAX: config.broker_malloc_arena_max };

const tasks = {
  install: undefined,
  test: ['scripts/test.mjs'],
  check: ['scripts/check.mjs'],
  build: ['scripts/build.mjs'],
  generate: ['scripts/generate.mjs'],
  baseline: ['scripts/generate.mjs', '--baseline'],
  bench: ['bench/main.ts'],
  vault: ['scripts/vault.mjs'],
  demo: [...brokerOptions, 'src/main.ts', 'demo'],
  leasehold: [...brokerOptions, 'src/main.ts'],
};

/** What is installed, by the record that npm writes last: comparing versions does not depend on file times, which git changes. */
function installed() {
  const record = join(root, 'node_modules', '.package-lock.json');
  if (!existsSync(record) || !existsSync(pinnedNode)) return false;
  const present = JSON.parse(readFileSync(record, 'utf8')).packages;
  const wanted = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')).packages;
  return Object.entries(wanted).every(
    ([path, entry]) => path === '' || entry.optional || present[path]?.version === entry.version,
  );
}

async function install() {
  const started = Date.now();
  process.stderr.write(
    'leasehold: installing what package-lock.json names (npm ci); this takes a minute the first time …\n',
  );
  const npm = process.env.npm_execpath;
  const args = ['ci', '--no-audit', '--no-fund', '--loglevel=error'];
  // npm's own output goes to stderr: stdout belongs to the command that was asked for.
  const options = { cwd: root, stdio: ['ignore', 2, 2] };
  const code = npm?.endsWith('.js')
    ? await run(process.execPath, [npm, ...args], options)
    : await run('npm', args, { ...options, shell: windows });
  if (code !== 0) fail(`npm ci failed with code ${code}; its message is above`);
  if (!existsSync(pinnedNode)) {
    fail(
      'npm ci did not install the pinned Node: allow install scripts (npm config set ignore-scripts false) and try again',
    );
  }
  process.stderr.write(`leasehold: installed in ${Math.round((Date.now() - started) / 1000)} s\n`);
}

function run(command, args, options) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, options);
    // A terminal signals the whole group by itself; a supervisor signals only this process.
    const forward = (signal) => {
      if (signal !== 'SIGINT' || !process.stdin.isTTY) child.kill(signal);
    };
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, forward);
    child.once('error', reject);
    child.once('exit', (code, signal) => {
      for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.removeListener(name, forward);
      resolve(code ?? (signal === 'SIGINT' ? 130 : 143));
    });
  });
}

function fail(message) {
  process.stderr.write(`leasehold: ${message}\n`);
  process.exit(1);
}

const [name, ...rest] = process.argv.slice(2);
if (name === undefined || !Object.hasOwn(tasks, name)) {
  fail(`usage: node scripts/bootstrap.mjs ${Object.keys(tasks).join('|')} [arguments]`);
}
if (!installed()) await install();
const task = tasks[name];
if (task !== undefined) {
  const env = { ...brokerEnvironment, ...process.env, PATH: `${bin}${delimiter}${process.env.PATH ?? ''}` };
  process.exitCode = await run(pinnedNode, [...task, ...rest], { cwd: root, env, stdio: 'inherit' });
}
