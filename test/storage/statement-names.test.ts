import { globSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { expect, test } from 'vitest';

const folder = path.join(import.meta.dirname, '..', '..', 'src');

/**
 * A connection refuses a name that it has prepared another statement under, and which of the two came first depends on the
 * connection: such a mistake shows only now and then, and then for good.
 */
test('no two prepared statements have one name, also where a name is put together', () => {
  const found = globSync(['storage/*.ts', 'keys/*.ts'], { cwd: folder }).flatMap((file) => {
    const text = readFileSync(path.join(folder, file), 'utf8');
    const named = text.matchAll(/\bname: (?:'([a-z-]+)'|`([^`]+)`),\s*(?:\/\/[^\n]*\s*)*(?:text|values)\b/g);
    return [...named].map(([, plain, composed]) => ({ file, name: plain ?? composed! }));
  });
  expect(found.length).toBeGreaterThan(40);
  const patterns = found.map(({ file, name }) => ({
    file,
    name,
    pattern: new RegExp(`^${name.replace(/\$\{[^}]*\}/g, '[a-z-]+')}$`),
  }));
  const clashes = patterns.flatMap(({ name, file, pattern }, index) =>
    patterns
      .filter((other, at) => at !== index && pattern.test(other.name))
      .map((other) => `${name} (${file}) and ${other.name} (${other.file})`),
  );
  expect(clashes).toEqual([]);
});
