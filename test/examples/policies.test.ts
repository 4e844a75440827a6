import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { formatIssue } from '../../src/config/issue.ts';
import { advise } from '../../src/policy/advise.ts';
import { compileSources } from '../../src/policy/compile.ts';
import { loadPolicyDirectory } from '../../src/policy/load-policy.ts';
import { checkTests, runTests } from '../../src/policy/run-tests.ts';
import { runCli } from '../cli/run-cli.ts';
import { frameworks } from './frameworks.ts';

const root = path.join(import.meta.dirname, '..', '..', 'examples', 'policies');
const names = readdirSync(root, { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map(({ name }) => name);

/** When they were written: reviews that fall due later are no fault of theirs. */
const written = Date.UTC(2026, 10, 24);

async function load(name: string) {
  const result = await loadPolicyDirectory(path.join(root, name));
  if (!result.ok) throw new Error(result.issues.map(formatIssue).join('\n'));
  return result;
}

test('the starter library has the six agents', () => {
  expect(names).toEqual([
    'coding-agent',
    'customer-support',
    'data-pipeline',
    'multi-agent-research',
    'on-call-investigator',
    'read-only-analyst',
  ]);
});

describe.each(names)('the example %s', (name) => {
  test('has no mistake, and nothing that is unlikely to be meant', async () => {
    const { sources, tests, revision } = await load(name);
    const found = [...checkTests(tests, sources, revision), ...advise(sources, revision, written)];
    expect(found.map(formatIssue)).toEqual([]);
  });

  test('answers each of its cases as expected, and each of its rules is reached by one', async () => {
    const { sources, tests, revision } = await load(name);
    const run = runTests(tests, sources, (environment) => {
      if (environment === undefined) return revision;
      const compiled = compileSources(sources, { environment });
      if ('issues' in compiled) throw new Error(compiled.issues.map(formatIssue).join('\n'));
      return compiled.revision;
    });
    const failed = run.cases.filter(({ differences }) => differences.length > 0);
    expect(failed.map(({ name: one, differences, reason }) => ({ one, differences, reason }))).toEqual([]);
    expect(run.rules.filter(({ covered }) => !covered).map(({ rule }) => rule)).toEqual([]);
    expect(run.rules.length).toBeGreaterThanOrEqual(5);
    // A rule that only ever refuses in its tests, or never does, is half tested.
    const effects = new Set(tests.flatMap(({ value }) => casesOf(value).map(({ expect: { effect } }) => effect)));
    expect(effects).toContain('allow');
    expect(effects).toContain('deny');
  });

  test('says what it serves, by names that the frameworks have', () => {
    const rows = readFileSync(path.join(root, name, 'README.md'), 'utf8')
      .split('\n')
      .filter((line) => line.startsWith('| ') && !/^\| (framework|-)/.test(line))
      .map((line) => line.split('|').map((cell) => cell.trim()))
      .map(([, framework, item, by]) => ({ framework: framework!, item: item!, by: by! }));
    for (const { framework, item, by } of rows) {
      expect(frameworks[framework], framework).toContain(item);
      expect(by, item).not.toBe('');
    }
    expect(new Set(rows.map(({ framework }) => framework))).toEqual(new Set(Object.keys(frameworks)));
    expect(new Set(rows.map(({ item }) => item)).size).toBe(rows.length);
  });

  test('is named by the library’s README, and names no rule that it does not have', async () => {
    const index = readFileSync(path.join(root, 'README.md'), 'utf8');
    expect(index).toContain(`[${name}](${name})`);
    const { sources } = await load(name);
    const known = new Set(JSON.stringify(sources.map(({ value }) => value)).match(/[\w*./-]+/g));
    const readme = readFileSync(path.join(root, name, 'README.md'), 'utf8');
    // Every `name-with-dashes` in the prose is a rule, a tool or a group of the documents beside it.
    const named = [...readme.matchAll(/`([a-z]+(?:-[a-z]+)+)`/g)].map(([, one]) => one!);
    expect(named.filter((one) => !known.has(one))).toEqual([]);
  });
});

test('all of them live in one folder together, as they would in one repository', async () => {
  const result = await loadPolicyDirectory(root);
  expect(result.ok ? [] : result.issues.map(formatIssue)).toEqual([]);
});

test('the command line says the same', async () => {
  const folder = path.join(root, 'coding-agent');
  const checked = await runCli(['policy', 'check', folder, '--strict', '--at', '2026-07-01T00:00:00Z']);
  expect(checked).toMatchObject({ code: 0 });
  const tested = await runCli(['policy', 'test', folder, '--min-coverage', '100']);
  expect(tested).toMatchObject({ code: 0 });
  const late = await runCli(['policy', 'check', folder, '--strict', '--at', '2027-04-01T00:00:00Z']);
  expect(late.code).toBe(9);
  expect(late.stdout).toMatch(/reviewBy/);
  expect(tested.stdout).toContain('6 of 6 rules reached (100 %)');
});

function casesOf(value: unknown): { expect: { effect: string } }[] {
  return (value as { spec: { cases: { expect: { effect: string } }[] } }).spec.cases;
}
