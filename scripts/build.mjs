// `npm run build`: dist/, which runs under plain Node without any development package.
import { cp, rm, stat } from 'node:fs/promises';
import { tool } from './lib/run.mjs';

await rm('dist', { recursive: true, force: true });
const result = await tool('typescript', 'bin/tsc', ['-p', 'tsconfig.build.json']);
process.stdout.write(result.output);
if (result.code === 0) {
  // What the compiler does not carry over: generated JavaScript with its types, schemas, pages.
  await cp('src', 'dist', {
    recursive: true,
    filter: async (path) => !path.endsWith('.ts') || path.endsWith('.d.ts') || (await stat(path)).isDirectory(),
  });
  console.log('built dist/');
}
process.exitCode = result.code === 0 ? 0 : 1;
