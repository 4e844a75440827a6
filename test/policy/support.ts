import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { formatIssue } from '../../src/config/issue.ts';
import { nothingYet } from '../../src/domain/facts.ts';
import type { Tier } from '../../src/domain/model.ts';
import type { DecisionInput, RenewalContext } from '../../src/domain/policy.ts';
import type { RuleSpec } from '../../src/policy/documents.ts';
import type { KnownNames } from '../../src/policy/known-names.ts';
import { loadPolicyDirectory } from '../../src/policy/load-policy.ts';
import { temporaryFolder } from '../config/support.ts';

export const agentYaml = `apiVersion: leasehold.dev/v1
kind: Agent
metadata: { name: analyst, owner: data@acme.test }
spec: { workloads: [spiffe://acme.test/agent/analyst] }
`;

export const toolYaml = `apiVersion: leasehold.dev/v1
kind: Tool
metadata: { name: warehouse, owner: data@acme.test }
spec:
  resource: https://warehouse.acme.test
  tiers:
    read:
      provider: jwt
      revocation: immediate
      ttl: { min: 1m, default: 5m, max: 1h }
    write:
      provider: postgres
      revocation: immediate
      ttl: { min: 1m, default: 5m, max: 10m }
      postgres: { target: warehouse, groupRole: writers }
`;

/** One policy with one rule, whose last lines the test writes. */
export const ruleYaml = (fields: string) => `apiVersion: leasehold.dev/v1
kind: Policy
metadata: { name: p, owner: data@acme.test }
spec:
  rules:
    - name: r
      agents: [analyst]
      tools: [warehouse]
      tiers: [read]
      effect: allow
${fields}`;

export function fill(folder: string, files: Record<string, string>): void {
  for (const [name, text] of Object.entries(files)) {
    const file = path.join(folder, name);
    mkdirSync(path.dirname(file), { recursive: true });
    writeFileSync(file, text);
  }
}

export const knownTargets = new Set(['warehouse']);

/** The complaints about a directory of these files, as `file:line:column: field: what; hint`. */
export async function complaints(
  files: Record<string, string>,
  known: KnownNames = { knownTargets },
): Promise<string[]> {
  const folder = temporaryFolder();
  fill(folder, files);
  const result = await loadPolicyDirectory(folder, known);
  if (result.ok) return [];
  // Whatever is wrong, a person is told what to do about it.
  for (const issue of result.issues) if (issue.hint === undefined) throw new Error(`no hint: ${formatIssue(issue)}`);
  return result.issues.map((issue) => formatIssue(issue).replaceAll(`${folder}/`, ''));
}

export function agent(name: string, more: Record<string, unknown> = {}) {
  return {
    apiVersion: 'leasehold.dev/v1',
    kind: 'Agent',
    metadata: { name, owner: 'o', ...more },
    spec: { workloads: [`spiffe://acme.test/agent/${name}`] },
  };
}

export function tool(name: string, tiers: Tier[] = ['read', 'write'], more: Record<string, unknown> = {}) {
  const tier = { provider: 'jwt', revocation: 'immediate', ttl: { min: '1m', default: '5m', max: '1h' } };
  return {
    apiVersion: 'leasehold.dev/v1',
    kind: 'Tool',
    metadata: { name, owner: 'o', ...more },
    spec: { resource: `https://${name}.test`, tiers: Object.fromEntries(tiers.map((name) => [name, tier])) },
  };
}

export function policy(name: string, rules: RuleSpec[]) {
  return { apiVersion: 'leasehold.dev/v1', kind: 'Policy', metadata: { name, owner: 'o' }, spec: { rules } };
}

export function rule(name: string, effect: RuleSpec['effect'], more: Partial<RuleSpec> = {}): RuleSpec {
  return {
    name,
    agents: ['*'],
    tools: ['*'],
    tiers: ['read'],
    effect,
    ...(effect === 'deny' ? { reason: `${name} says no` } : {}),
    ...more,
  };
}

/** A renewal of a credential that is as old as its line, in a task that sends heartbeats. */
export function renewal(count: number, age: number, more: Partial<RenewalContext> = {}): RenewalContext {
  return { count, age, sinceIssue: age, heartbeat: true, ...more };
}

/** A Monday. */
export const now = Date.UTC(2026, 2, 2, 13, 45, 30);

export function input(
  more: {
    context?: Record<string, string>;
    labels?: Record<string, string>;
    tier?: Tier;
    tool?: string;
    agent?: string;
  } = {},
  rest: Partial<DecisionInput> = {},
): DecisionInput {
  return {
    task: {
      taskId: 'tsk_1',
      parentTaskId: undefined,
      agent: more.agent ?? 'a',
      opener: 'spiffe://acme.test/orchestrator',
      context: more.context ?? {},
      labels: more.labels ?? {},
      openedAt: now - 90_000,
      deadline: now + 3_600_000,
    },
    workload: undefined,
    access: { tool: more.tool ?? 't', tier: more.tier ?? 'read' },
    now,
    renewal: undefined,
    // The line that is renewed is all that the task has had.
    ...(rest.renewal === undefined
      ? {}
      : { facts: { ...nothingYet, earlier: { credentials: rest.renewal.count + 1, since: now - rest.renewal.age } } }),
    ...rest,
  };
}
