// `npm run vault`: builds the Vault server that tests and `leasehold dev --vault` start, when it is not there yet, and prints
// its path. Needs Go. Development only: nothing of it is shipped. With --patient it does not try again what failed a moment ago.
import { buildVault, CannotBuild } from './lib/vault-build.mjs';

const interrupt = new AbortController();
for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(name, () => interrupt.abort());
const progress = (line) => process.stderr.write(`vault: ${line}\n`);

try {
  console.log(await buildVault(progress, interrupt.signal, { patient: process.argv.includes('--patient') }));
} catch (error) {
  if (!(error instanceof CannotBuild)) throw error;
  progress(`cannot be built: ${error.message}`);
  process.exitCode = 1;
}
