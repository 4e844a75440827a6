import { readFileSync } from 'node:fs';
import { Ajv } from 'ajv';
import { describe, expect, test } from 'vitest';
import { checkConfig } from '../../src/config/check-config.ts';
import { resolveRoles } from '../../src/config/roles.ts';
import { input } from './support.ts';

const checked = await checkConfig({
  path: new URL('../../examples/quickstart/leasehold.yaml', import.meta.url).pathname,
  env: {},
  // Its bundle and passwords are made by whoever runs it.
  files: false,
});

const config = checked.ok ? checked.config : undefined;
const revision = checked.ok ? checked.revisions.get('default') : undefined;

describe('the quickstart example', () => {
  test('is right', () => {
    expect(checked.issues).toEqual([]);
    expect([...revision!.agents.keys()]).toEqual(['analyst']);
    expect([...revision!.tools.keys()].sort()).toEqual(['reports', 'warehouse']);
  });

  test('knows its people', () => {
    const roles = resolveRoles(config!.tenants);
    const of = (path: string) => [...roles('default', `spiffe://dev.leasehold.test/${path}`)];
    expect(of('orchestrator')).toEqual(['orchestrator']);
    expect(of('operator')).toEqual(['operator']);
    expect(of('auditor')).toEqual(['auditor']);
    expect(of('tool/reports')).toEqual(['resource_server']);
    expect(of('agent/analyst')).toEqual([]);
    expect(revision!.agentsOf('spiffe://dev.leasehold.test/agent/analyst')).toEqual(new Set(['analyst']));
  });

  const decide = (tool: string, tier: 'read' | 'write', context: Record<string, string> = {}) =>
    revision!.decide(input({ agent: 'analyst', tool, tier, context }));

  test('lets the analyst read both for ten minutes', () => {
    for (const tool of ['reports', 'warehouse']) {
      expect(decide(tool, 'read')).toMatchObject({ effect: 'allow', rule: 'analyst/read', ttl: 600_000 });
    }
  });

  test('denies writing to the warehouse without a change ticket, and says what to do', () => {
    expect(decide('warehouse', 'write')).toMatchObject({
      effect: 'deny',
      rule: 'analyst/write-needs-change-ticket',
      reason: 'Writing to the warehouse needs a change ticket; open the task with context change_ticket=CHG-<number>.',
    });
    expect(decide('warehouse', 'write', { change_ticket: 'please' }).effect).toBe('deny');
  });

  test('allows writing to the warehouse for five minutes under a change ticket', () => {
    expect(decide('warehouse', 'write', { change_ticket: 'CHG-42' })).toMatchObject({ effect: 'allow', ttl: 300_000 });
  });

  test('does not let the analyst publish reports', () => {
    expect(decide('reports', 'write', { change_ticket: 'CHG-42' }).effect).toBe('deny');
  });
});

test('the schema of any document sends an editor to that of its kind', () => {
  const read = (name: string) =>
    JSON.parse(readFileSync(new URL(`../../schemas/${name}.schema.json`, import.meta.url), 'utf8')) as object;
  const kinds = ['agent', 'tool', 'policy', 'definitions', 'defaults', 'policytest'];
  const ajv = new Ajv({ strict: false, validateFormats: false, schemas: kinds.map(read) });
  const validate = ajv.compile(read('document'));
  const metadata = { name: 'a', owner: 'o' };
  const agent = { apiVersion: 'leasehold.dev/v1', kind: 'Agent', metadata, spec: { workloads: ['spiffe://t/a'] } };
  expect(validate(agent)).toBe(true);
  expect(validate({ ...agent, kind: 'Tool' })).toBe(false);
  expect(validate({ ...agent, kind: 'Thing' })).toBe(false);
});
