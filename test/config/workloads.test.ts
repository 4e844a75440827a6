import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { TenantConfig } from '../../src/config/config.ts';
import { resolveRoles } from '../../src/config/roles.ts';
import { isWorkloadPattern, workloadIndex } from '../../src/config/workload-pattern.ts';

describe('a pattern of workloads', () => {
  const covers = (pattern: string, workload: string) => workloadIndex([[pattern, 1]])(workload).size === 1;

  test.each([
    ['spiffe://acme.test/agent/a', 'spiffe://acme.test/agent/a'],
    ['spiffe://acme.test/agent/*', 'spiffe://acme.test/agent/a'],
    ['spiffe://acme.test/agent/*', 'spiffe://acme.test/agent/a/b/c'],
    ['spiffe://acme.test/*', 'spiffe://acme.test/agent'],
    ['ci/*', 'ci/repo'],
    ['ci', 'ci'],
  ])('%s covers %s', (pattern, workload) => {
    expect(covers(pattern, workload)).toBe(true);
  });

  test.each([
    ['spiffe://acme.test/agent/a', 'spiffe://acme.test/agent/ab'],
    ['spiffe://acme.test/agent/a', 'spiffe://acme.test/agent/a/b'],
    ['spiffe://acme.test/agent/*', 'spiffe://acme.test/agent'],
    ['spiffe://acme.test/agent/*', 'spiffe://acme.test/agent/'],
    ['spiffe://acme.test/agent/*', 'spiffe://acme.test/agentx/a'],
    ['spiffe://acme.test/agent/*', 'spiffe://acme.test/agent/../operator'],
    ['spiffe://acme.test/agent/*', 'spiffe://acme.test/agent//a'],
    ['spiffe://acme.test/*', 'spiffe://acme.test.evil.test/a'],
    ['spiffe://acme.test/*', 'spiffe://evil.test/acme.test/a'],
    ['spiffe://acme.test/*', 'spiffe://acme.test'],
    ['ci/*', 'spiffe://ci/a'],
    ['ci/*', 'ci'],
  ])('%s does not cover %s', (pattern, workload) => {
    expect(covers(pattern, workload)).toBe(false);
  });

  test.each([
    '*',
    '/*',
    'spiffe://*',
    'spiffe://*/a',
    'spiffe://acme.test',
    'spiffe://acme.test/a*',
    'spiffe://acme.test/*/b',
    'spiffe://acme.test/a/../*',
    'spiffe://Acme.test/a',
    'https://acme.test/a',
    'spiffe://acme.test/a?b',
    '',
  ])('%j is none', (text) => {
    expect(isWorkloadPattern(text)).toBe(false);
  });

  test('covers exactly what lies whole segments below it', () => {
    const segment = fc.stringMatching(/^[a-c]{1,2}$/);
    const path = fc.array(segment, { minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(path, path, fc.boolean(), (at, of, star) => {
        const pattern = `spiffe://t/${at.join('/')}${star ? '/*' : ''}`;
        const same = at.every((part, index) => part === of[index]);
        expect(covers(pattern, `spiffe://t/${of.join('/')}`)).toBe(
          same && (star ? of.length > at.length : of.length === at.length),
        );
      }),
    );
  });
});

describe('roles', () => {
  const acme = {
    name: 'acme',
    issuer: '',
    policy: { source: 'database' as const },
    groups: {},
    targets: [],
    vault: [],
    webhooks: [],
    limits: { callsPerSecond: 1, burst: 1, maxInFlight: 1, maxStreams: 1 },
    access: [
      { workloads: ['spiffe://acme.test/o/*'], roles: ['orchestrator'] },
      { workloads: ['spiffe://acme.test/o/boss', 'spiffe://acme.test/x'], roles: ['operator', 'auditor'] },
    ],
  } satisfies TenantConfig;
  const resolve = resolveRoles([acme, { ...acme, name: 'other', access: [] }]);
  const roles = (workload: string) => resolve('acme', workload);

  test('are those of every grant that covers the workload', () => {
    expect(roles('spiffe://acme.test/o/a')).toEqual(new Set(['orchestrator']));
    expect(roles('spiffe://acme.test/o/boss')).toEqual(new Set(['orchestrator', 'operator', 'auditor']));
    expect(roles('spiffe://acme.test/y')).toEqual(new Set());
    expect(resolve('other', 'spiffe://acme.test/o/boss')).toEqual(new Set());
  });

  test('are remembered, and forgotten again so that many callers do not fill the memory', () => {
    const index = workloadIndex([['spiffe://t/*', 1]], 2);
    const first = index('spiffe://t/a');
    expect(index('spiffe://t/a')).toBe(first);
    index('spiffe://t/b');
    index('spiffe://t/c');
    expect(index('spiffe://t/a')).not.toBe(first);
    expect(index('spiffe://t/a')).toEqual(first);
  });
});
