// `npm run check`: everything about the source that can be known without running it. `npm run check -- lint types`
// runs those parts only.
import { availableParallelism } from 'node:os';
import { writeFile } from 'node:fs/promises';
import { parseArgs } from 'node:util';
import { buf, run, tool } from './lib/run.mjs';

const script = (name) => run(process.execPath, [`scripts/${name}`]);

// The longest first: with two at a time the short ones then fill the gap.
const parts = {
  lint: () => tool('eslint', 'bin/eslint.js', ['--max-warnings=0', '.']),
  types: () => tool('typescript', 'bin/tsc', ['--noEmit', '-p', '.']),
  format: () => tool('prettier', 'bin/prettier.cjs', ['--check', '--log-level=warn', '.']),
  unused: () => tool('knip', 'bin/knip.js', ['--no-progress']),
  boundaries: () => script('check-boundaries.mjs'),
  generated: () => script('check-generated.mjs'),
  lockfile: () => script('check-lockfile.mjs'),
  'proto-lint': () => buf(['lint']),
  'proto-breaking': () => buf(['breaking', '--against', 'proto/baseline.binpb']),
};

const { values, positionals } = parseArgs({ allowPositionals: true, options: { result: { type: 'string' } } });
const unknown = positionals.filter((name) => !Object.hasOwn(parts, name));
if (unknown.length > 0) {
  console.error(`no such part: ${unknown.join(', ')}; the parts are ${Object.keys(parts).join(', ')}`);
  process.exit(2);
}
const queue = positionals.length > 0 ? positionals : Object.keys(parts);
const failed = [];
const started = performance.now();
const seconds = (since) => `${((performance.now() - since) / 1000).toFixed(1)} s`;
const total = queue.length;

async function worker() {
  for (let name = queue.shift(); name !== undefined; name = queue.shift()) {
    const begun = performance.now();
    const { code, output } = await parts[name]();
    if (code !== 0) failed.push(name);
    console.log(`${code === 0 ? 'ok  ' : 'FAIL'} ${name.padEnd(15)} ${seconds(begun)}`);
    if (code !== 0) console.log(output.trimEnd().replace(/^/gm, '     '));
  }
}

await Promise.all(Array.from({ length: Math.min(2, availableParallelism()) }, worker));
console.log(
  failed.length === 0
    ? `check: all ${total} parts are good (${seconds(started)})`
    : `check: ${failed.length} of ${total} parts failed: ${failed.join(', ')} (${seconds(started)})`,
);
if (values.result !== undefined) {
  await writeFile(values.result, JSON.stringify({ passed: total - failed.length, failed: failed.length, skipped: 0 }));
}
process.exitCode = failed.length === 0 ? 0 : 1;
