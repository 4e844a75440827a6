import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { stringify } from 'yaml';
import { parsePlainYaml } from '../../src/config/plain-yaml.ts';
import { parseAnyYaml } from '../../src/config/yaml-document.ts';

const root = path.join(import.meta.dirname, '..', '..', 'examples');
const examples = readdirSync(root, { recursive: true, encoding: 'utf8' })
  .filter((name) => /\.ya?ml$/.test(name) && !name.includes('node_modules'))
  .map((name) => readFileSync(path.join(root, name), 'utf8'));

/** Whatever the quick reader accepts, the library accepts, and it is the same. */
function agrees(text: string): boolean {
  const quick = parsePlainYaml(text);
  if (quick === undefined) return false;
  const { documents, issues } = parseAnyYaml('f', text);
  expect({ text, issues }).toEqual({ text, issues: [] });
  expect({ text, values: quick }).toEqual({ text, values: documents.map(({ value }) => value) });
  return true;
}

describe('the quick reader of YAML', () => {
  test('reads the examples, and as the library does', () => {
    expect(examples.length).toBeGreaterThan(2);
    for (const text of examples) agrees(text);
    expect(examples.some((text) => parsePlainYaml(text) !== undefined)).toBe(true);
  });

  test('agrees with the library on whatever a writer of YAML may write', () => {
    const word = fc.oneof(
      fc.constantFrom(
        'a',
        'null',
        'true',
        'no',
        '~',
        '',
        '5m',
        '1e3',
        '0x1f',
        '1_000',
        '007',
        '.5',
        '2026-01-01',
        "it's",
        'a: b',
        'a #b',
        '- a',
        '? a',
        '!has(x)',
        '[x',
        '*',
        '&a',
        '%',
        '@',
        'a:',
        ' a',
        '1:30',
        '<<',
        'x\ty',
        'é',
        '"q"',
        'a\nb',
      ),
      fc.string({ maxLength: 8 }),
    );
    const value = fc.letrec((tie) => ({
      any: fc.oneof(
        { maxDepth: 4 },
        word,
        fc.integer(),
        fc.double({ noNaN: true }),
        fc.boolean(),
        fc.constant(null),
        fc.array(tie('any'), { maxLength: 3 }),
        fc.dictionary(word, tie('any'), { maxKeys: 3 }),
      ),
    })).any;
    const options = fc.record({
      indent: fc.constantFrom(2, 4),
      indentSeq: fc.boolean(),
      collectionStyle: fc.constantFrom('any', 'block', 'flow'),
      lineWidth: fc.constantFrom(0, 40),
    } as const);
    fc.assert(
      fc.property(fc.dictionary(word, value, { minKeys: 1, maxKeys: 4 }), options, (document, how) => {
        agrees(stringify(document, how));
      }),
      { numRuns: 2_000 },
    );
  });

  test('agrees with the library on examples that somebody is in the middle of editing', () => {
    const piece = fc.constantFrom(
      '',
      ' ',
      '  ',
      '\n',
      ':',
      ': ',
      '- ',
      '#',
      ' #',
      "'",
      '"',
      '[',
      ']',
      '{',
      '}',
      ',',
      '&',
      '*',
      '|',
      '>',
      '!',
      '?',
      '---\n',
      '...\n',
      'a',
      '1',
      '~',
      '\t',
      '\r',
      'a: b\n',
      '-',
      '<<: ',
    );
    const edit = fc.tuple(
      fc.constantFrom(...examples),
      fc.array(fc.tuple(fc.nat(1_000_000), fc.nat(3), piece), { minLength: 1, maxLength: 3 }),
    );
    fc.assert(
      fc.property(edit, ([text, edits]) => {
        let edited = text;
        for (const [at, remove, add] of edits) {
          const place = at % (edited.length + 1);
          edited = edited.slice(0, place) + add + edited.slice(place + remove);
        }
        agrees(edited);
      }),
      { numRuns: 1_500 },
    );
  });
});
