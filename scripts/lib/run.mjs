import { spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));
const require = createRequire(import.meta.url);

/** Runs a command in the repository, both streams kept in order. Never rejects: a command that cannot start has code 127. */
export function run(command, args, options = {}) {
  return new Promise((resolve) => {
    const chunks = [];
    const child = spawn(command, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'], ...options });
    child.stdout.on('data', (chunk) => chunks.push(chunk));
    child.stderr.on('data', (chunk) => chunks.push(chunk));
    child.once('error', (error) => resolve({ code: 127, output: `${command}: ${error.message}\n` }));
    child.once('close', (code) => resolve({ code: code ?? 1, output: Buffer.concat(chunks).toString('utf8') }));
  });
}

/** Runs a package's own JavaScript entry with this Node: no shell, no wrapper, the same on every platform. */
export function tool(packageName, entry, args) {
  const manifest = join(root, 'node_modules', packageName, 'package.json');
  return run(process.execPath, [join(dirname(manifest), entry), ...args]);
}

export function buf(args) {
  return run(process.execPath, [require.resolve('@bufbuild/buf/bin/buf'), ...args]);
}
