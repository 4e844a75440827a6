// The lock file has to be whole for every platform and name no registry. `npm install` beside an existing node_modules
// can leave out packages of other platforms; `npm ci` on a fresh clone then refuses.
import { readFile } from 'node:fs/promises';
import { run } from './lib/run.mjs';

const { packages } = JSON.parse(await readFile('package-lock.json', 'utf8'));
const located = Object.keys(packages).filter((name) => packages[name].resolved?.includes('://'));
if (located.length > 0)
  console.error(`package-lock.json names a registry for ${located.length} packages: remove "resolved"`);
const args = ['ci', '--dry-run', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error'];
const result = await run('npm', args, { shell: process.platform === 'win32' });
if (result.code !== 0) {
  console.error(result.output.split('\n').slice(0, 30).join('\n'));
  console.error('repair: in an empty folder with package.json and package-lock.json, npm install --package-lock-only');
}
process.exitCode = located.length === 0 && result.code === 0 ? 0 : 1;
