// Generates src/gen again, elsewhere, and compares: generated code is committed, never edited.
import { mkdtemp, readFile, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buf } from './lib/run.mjs';

const directory = await mkdtemp(join(tmpdir(), 'leasehold-generated-'));
try {
  const result = await buf(['generate', '--output', directory]);
  if (result.code !== 0) {
    console.error(result.output);
    process.exitCode = 1;
  } else {
    const fresh = await filesOf(join(directory, 'src/gen'));
    const committed = await filesOf('src/gen');
    const different = [...new Set([...fresh.keys(), ...committed.keys()])].filter(
      (name) => fresh.get(name) !== committed.get(name),
    );
    for (const name of different) console.error(`src/gen/${name} differs from what proto/ gives: run npm run generate`);
    if (fresh.size === 0) console.error('nothing was generated');
    console.log(`${fresh.size} files compared`);
    process.exitCode = different.length === 0 && fresh.size > 0 ? 0 : 1;
  }
} finally {
  await rm(directory, { recursive: true, force: true });
}

async function filesOf(base) {
  const entries = await readdir(base, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  return new Map(
    await Promise.all(files.map(async (file) => [file.slice(base.length + 1), await readFile(file, 'utf8')])),
  );
}
