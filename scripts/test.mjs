// `npm test`: every suite. The Vault server that some of them need is built meanwhile, when it is not there yet; they come
// last. A run of chosen files builds it only when one of them asks for it.
import { spawn } from 'node:child_process';
import { once } from 'node:events';

const args = process.argv.slice(2);
const everything = args.every((arg) => arg.startsWith('-'));
const vault = everything
  ? spawn(process.execPath, ['scripts/vault.mjs'], { stdio: ['ignore', 'ignore', 'inherit'] })
  : undefined;
const built = vault === undefined ? undefined : once(vault, 'exit');
const tests = spawn(process.execPath, ['node_modules/vitest/vitest.mjs', 'run', ...args], { stdio: 'inherit' });
// A terminal signals the whole group by itself; what starts this process signals only this one.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => tests.kill(signal));
const [code, signal] = await once(tests, 'exit');
vault?.kill('SIGTERM');
await built;
process.exitCode = code ?? (signal === 'SIGINT' ? 130 : 143);
