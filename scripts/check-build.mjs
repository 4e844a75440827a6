// The built program starts under plain Node and says what it is: nothing that it imports stayed behind in src.
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const { version } = JSON.parse(readFileSync('package.json', 'utf8'));
const node = join('node_modules', 'node', 'bin', process.platform === 'win32' ? 'node.exe' : 'node');
const result = spawnSync(node, ['dist/main.js', 'version'], { encoding: 'utf8', timeout: 30_000 });
const good = result.status === 0 && result.stdout.includes(version);
if (!good) console.error(`dist/main.js version: code ${result.status}\n${result.stdout}${result.stderr}`);
process.exitCode = good ? 0 : 1;
