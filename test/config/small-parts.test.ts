import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { formatDuration, parseDuration } from '../../src/config/duration.ts';
import { isLoopback } from '../../src/config/listen.ts';
import { nearest, suggestion } from '../../src/config/suggest.ts';
import { parseYaml } from '../../src/config/yaml-document.ts';

describe('a duration', () => {
  test.each([
    ['30s', 30_000],
    ['1h30m', 5_400_000],
    ['7d', 604_800_000],
    ['250ms', 250],
    ['1m5ms', 60_005],
    ['0s', 0],
  ])('%s is read', (text, millis) => {
    expect(parseDuration(text)).toBe(millis);
  });

  test.each(['', '5', 's', '5 s', '30m1h', '1h1h', '-5s', '1.5h', '5S', '5sec', '1234567s'])(
    '%j is refused',
    (text) => {
      expect(parseDuration(text)).toBeUndefined();
    },
  );

  test('is written so that it is read again as the same', () => {
    fc.assert(fc.property(fc.nat(10 * 86_400_000), (millis) => parseDuration(formatDuration(millis)) === millis));
  });
});

describe('a suggestion', () => {
  test('is the nearest name, a swap of letters counting once', () => {
    expect(nearest('warehosue', ['reports', 'warehouse', 'warehouses'])).toBe('warehouse');
    expect(nearest('tll', ['ttl', 'max'])).toBe('ttl');
  });

  test('is not made up when nothing is near', () => {
    expect(nearest('colour', ['level', 'format'])).toBeUndefined();
    expect(suggestion('colour', ['level', 'format'], 'fields')).toBe('fields: level, format');
    expect(suggestion('x', [], 'targets')).toBe('there are no targets');
  });

  test('does not list without end', () => {
    const many = Array.from({ length: 40 }, (_, index) => `tool-${index}-with-a-name`);
    expect(suggestion('x', many, 'tools')).toMatch(/, … \(40 in all\)$/);
  });
});

test.each([
  ['127.0.0.1', true],
  ['127.9.9.9', true],
  ['::1', true],
  ['[::1]', true],
  ['localhost', true],
  ['0.0.0.0', false],
  ['::', false],
  ['10.0.0.1', false],
  ['127.0.0.1.evil.test', false],
])('whether %s is loopback: %s', (host, expected) => {
  expect(isLoopback(host)).toBe(expected);
});

describe('the place of a character inside a text', () => {
  const cases: [string, string, number, number][] = [
    ['plain', 'w: aa == X', 1, 10],
    ['in double quotes', 'w: "aa == X"', 1, 11],
    ['in single quotes', "w: 'aa == X'", 1, 11],
    ['in a literal block', 'w: |\n    aa ==\n      X', 3, 7],
    ['in a folded block', 'w: >-\n    aa ==\n    X', 3, 5],
    ['plain over two lines', 'w: aa\n  == X', 2, 6],
    ['in a block after a blank line', 'w: |\n\n   aa == X', 3, 10],
    ['in a list in a map', 'a:\n  - w: 1\nw: X', 3, 4],
  ];
  test.each(cases)('is found %s', (_how, text, line, column) => {
    const [document] = parseYaml('f', text).documents;
    const value = (document!.value as { w: string }).w;
    expect(document!.within(['w'], value.indexOf('X'))).toEqual({ line, column });
  });

  test('is the start of the text where escapes hide it', () => {
    const [document] = parseYaml('f', 'w: "a\\x20b == X"').documents;
    expect(document!.within(['w'], 7)).toEqual({ line: 1, column: 4 });
  });
});
