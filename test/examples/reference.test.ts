import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { parseYaml } from '../../src/config/yaml-document.ts';
import { heldItemFields, variables } from '../../src/policy/activation.ts';
import { compilePolicy, compileSources } from '../../src/policy/compile.ts';
import { loadPolicyDirectory } from '../../src/policy/load-policy.ts';
import { runTests } from '../../src/policy/run-tests.ts';
import { agent, tool } from '../policy/support.ts';
import { fieldsOf, readSchemas, renderReference, withReference } from '../../scripts/lib/policy-reference.mjs';

const guide = readFileSync(new URL('../../docs/policies.md', import.meta.url), 'utf8');

describe('the guide to policies', () => {
  const [policyText, caseText] = [...guide.matchAll(/```yaml\n(.*?)```/gs)].map(([, text]) => text!);

  test('shows a policy that loads', () => {
    const parsed = parseYaml('guide.yaml', policyText!);
    expect(parsed.issues).toEqual([]);
    const documents = [agent('analyst'), tool('warehouse'), parsed.documents[0]!.value];
    expect([...compilePolicy(documents).agents.keys()]).toEqual(['analyst']);
  });

  test('shows a case that the example passes', async () => {
    const folder = new URL('../../examples/policies/coding-agent', import.meta.url).pathname;
    const loaded = await loadPolicyDirectory(folder);
    if (!loaded.ok) throw new Error('the example does not load');
    const header =
      'apiVersion: leasehold.dev/v1\nkind: PolicyTest\nmetadata: { name: guide, owner: o }\nspec:\n  cases:\n';
    const shown = parseYaml('guide.yaml', header + caseText!.replace(/^/gm, '    '));
    expect(shown.issues).toEqual([]);
    const compiled = compileSources([...loaded.sources, ...shown.documents], {});
    if ('issues' in compiled) throw new Error(JSON.stringify(compiled.issues));
    const { cases } = runTests(compiled.tests, compiled.sources, () => compiled.revision);
    expect(cases).toMatchObject([{ differences: [] }]);
  });

  test('has the reference that the schemas give: run node scripts/policy-reference.mjs', () => {
    expect(withReference(guide, renderReference(readSchemas()))).toBe(guide);
  });

  test('mentions every property of every schema', () => {
    const names = new Set<string>();
    const collect = (schema: unknown): void => {
      if (typeof schema !== 'object' || schema === null) return;
      for (const [key, value] of Object.entries(schema)) {
        if (key === 'properties') for (const name of Object.keys(value as object)) names.add(name);
        collect(value);
      }
    };
    for (const schema of readSchemas()) collect(schema);
    // Told as one, because they are alike.
    for (const tier of ['read', 'write', 'execute']) expect(names.delete(tier)).toBe(true);
    expect(names.size).toBeGreaterThan(60);
    // In a path in backticks, such as `spec.rules[].when`.
    const missing = [...names].filter((name) => !new RegExp('`([^`\\s]*\\.)?' + name + '[`:.]').test(guide));
    expect(missing).toEqual([]);
  });

  test('describes every field: none is without a sentence in its schema', () => {
    const { byKind } = fieldsOf(readSchemas());
    const silent = byKind.flatMap(({ kind, fields }) =>
      fields
        .filter(({ path, schema }) => schema.description === undefined && !/(\[\]|<name>|<tier>)$/.test(path))
        .map(({ path }) => `${kind} ${path}`),
    );
    expect(silent).toEqual([]);
  });

  test('names everything that a condition can see', () => {
    const seen = Object.entries(variables).flatMap(([name, { fields }]) =>
      Object.keys(fields).map((field) => `${name}.${field}`),
    );
    expect(seen.filter((name) => !guide.includes(`\`${name}\``))).toEqual([]);
    expect(Object.keys(variables).filter((name) => !guide.includes(`\`${name}.`))).toEqual([]);
    // Of the entries of `held.items`: the words of the methods beside it.
    expect(Object.keys(heldItemFields)).toEqual(['tool', 'tier', 'count']);
  });
});
