import fc from 'fast-check';
import { describe, expect, inject, test } from 'vitest';
import { parseTierOptions, validateTierOptions } from '../../../src/providers/postgres/options.ts';
import { render } from '../../../src/providers/postgres/statements.ts';
import { asSuperuser } from '../../support/postgres.ts';

const base = { target: 'orders', groupRole: 'orders_read' };
const create = 'CREATE ROLE {{role}} LOGIN PASSWORD {{password}} VALID UNTIL {{expires}}';
const issues = (change: Record<string, unknown>) =>
  validateTierOptions({ ...base, ...change }, 'spec.tiers.read.options').map(
    ({ path, message }) => `${path}: ${message}`,
  );

test('the options of a plain tier are in order', () => {
  expect(issues({})).toEqual([]);
  expect(issues({ connectionLimit: 2 })).toEqual([]);
  expect(issues({ statements: [create, 'GRANT {{group}} TO {{role}};'] })).toEqual([]);
});

test('every issue names the place in the document', () => {
  expect(issues({ statements: [create, 'DROP TABLE x'] })).toEqual([
    expect.stringMatching(/^spec\.tiers\.read\.options\.statements\[1\]: must be a GRANT/),
  ]);
  expect(issues({ sql: 'x' })[0]).toMatch(/options\.sql: unknown option/);
});

describe('refused', () => {
  test.each<[string, Record<string, unknown>, RegExp]>([
    ['no target', { target: undefined }, /target: must be/],
    ['a target that is a path', { target: '../x' }, /target: must be/],
    ['no group', { groupRole: '' }, /groupRole/],
    ['one of PostgreSQL’s own roles', { groupRole: 'pg_read_all_data' }, /groupRole/],
    ['a group name that is cut', { groupRole: 'x'.repeat(64) }, /groupRole/],
    ['an absurd connection limit', { connectionLimit: -1 }, /connectionLimit/],
    ['statements that are no list', { statements: create }, /statements: must be a list/],
    ['no statement', { statements: [] }, /1 to 16/],
    ['a limit that would do nothing', { statements: [create], connectionLimit: 3 }, /no effect/],
    ['a login without an end', { statements: ['CREATE ROLE {{role}} PASSWORD {{password}}'] }, /uses \{\{expires\}\}/],
    [
      'a first statement that makes another role',
      { statements: [`CREATE ROLE x ${create.slice(20)}`] },
      /first statement/,
    ],
    ['an unknown placeholder', { statements: [create, 'GRANT {{grp}} TO {{role}}'] }, /\{\{grp\}\} is not/],
    [
      'a placeholder in quotes',
      { statements: [create, `COMMENT ON ROLE {{role}} IS '{{expires}}'`] },
      /stand in quotes/,
    ],
    ['a placeholder in double quotes', { statements: [create, 'GRANT x TO "{{role}}"'] }, /stand in quotes/],
    ['an open quote', { statements: [create, `COMMENT ON ROLE {{role}} IS 'x`] }, /not closed/],
    [
      'a backslash in quotes',
      { statements: [create, `COMMENT ON ROLE {{role}} IS E'\\' {{role}}'`] },
      /backslash|not closed/,
    ],
    ['a comment', { statements: [create, 'GRANT x TO {{role}} -- y'] }, /comments/],
    ['a dollar quote', { statements: [create, 'COMMENT ON ROLE {{role}} IS $$x$$'] }, /dollar/],
    ['two statements in one', { statements: [create, 'GRANT x TO {{role}}; DROP TABLE y'] }, /single statement/],
    ['transaction control', { statements: [create, 'COMMIT'] }, /one transaction/],
    ['half a placeholder', { statements: [create, 'GRANT x TO {role}'] }, /placeholders only/],
  ])('%s', (_, change, pattern) => {
    expect(issues(change).join('\n')).toMatch(pattern);
    expect(() => parseTierOptions({ ...base, ...change })).toThrow();
  });
});

test('whatever a value holds, PostgreSQL reads it as one literal or one identifier', async () => {
  const template = { texts: ['SELECT ', ' AS ', ''], names: ['expires', 'role'] } as const;
  const text = fc.string({ unit: 'binary', maxLength: 15 }).filter((value) => !value.includes('\0'));
  const hostile = fc.constantFrom(`'`, `"`, `\\`, `';--`, `";--`, `\\'`, `{{role}}`, '$$', '/*');
  const value = fc
    .array(fc.oneof(text, hostile), { maxLength: 3 })
    .map((parts) => [...parts.join('')].slice(0, 15).join(''));
  await asSuperuser(inject('postgresUrl'), async (client) => {
    await fc.assert(
      fc.asyncProperty(value, value, async (expires, role) => {
        fc.pre(role !== '');
        const { fields, rows } = await client.query(render(template, { expires, role, group: '', password: '' }));
        expect(fields.map(({ name }) => name)).toEqual([role]);
        expect(Object.values(rows[0] as object)).toEqual([expires]);
      }),
      { numRuns: 200 },
    );
  });
  expect(() => render(template, { role: 'a\0b', expires: '', group: '', password: '' })).toThrow(/NUL/);
});

test('parsing takes time that grows with the statement, not with its square', () => {
  const long = `GRANT ${'x'.repeat(3_950)} TO {{role}}`;
  expect(issues({ statements: [create, ...Array.from({ length: 15 }, () => long)] })).toEqual([]);
});
