import { readFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { runCli } from '../cli/run-cli.ts';
import { temporaryFolder } from '../config/support.ts';
import { fill } from './support.ts';

const documents = `apiVersion: leasehold.dev/v1
kind: Agent
metadata: { name: analyst, owner: ann, reviewBy: 2020-01-31 }
spec: { workloads: [spiffe://acme.test/agent/analyst] }
---
apiVersion: leasehold.dev/v1
kind: Tool
metadata: { name: pay, owner: pat }
spec:
  resource: https://pay.test
  ttl: { min: 1m, default: 5m, max: 10m }
  tiers:
    read: { provider: jwt, revocation: immediate }
    write:
      provider: jwt
      revocation: immediate
      arguments: { amount: { type: integer, required: true } }
---
apiVersion: leasehold.dev/v1
kind: Definitions
metadata: { name: common, owner: ann }
spec:
  conditions:
    office_hours: time.zone('Europe/Berlin').hour >= 9 && time.zone('Europe/Berlin').hour < 17
    forgotten: 'true'
  lists: { payers: [analyst], nobody: [] }
---
apiVersion: leasehold.dev/v1
kind: Policy
metadata: { name: p, owner: ann }
spec:
  rules:
    - name: small
      agents: [lists.payers]
      tools: [pay]
      tiers: [write]
      effect: allow
      when: args.amount <= 100 && conditions.office_hours
      obligations: { ttl: 20m }
    - { name: big, agents: [analyst], tools: [pay], tiers: [write], effect: require_approval, when: args.amount > 100 }
    - { name: off, agents: ['*'], tools: ['*'], tiers: [write], effect: deny, when: 1 > 2, reason: never }
    - { name: none, agents: [lists.nobody], tools: [pay], tiers: [write], effect: allow }
    - { name: reads, agents: [analyst], tools: [pay], tiers: [read], effect: allow, when: task.age < 60 }
    - { name: no-reads, agents: ['*'], tools: [pay], tiers: [read], effect: deny, reason: frozen }
`;

const cases = (...lines: string[]) => `apiVersion: leasehold.dev/v1
kind: PolicyTest
metadata: { name: payments, owner: ann }
spec:
  cases:
${lines.map((line) => `    - ${line}`).join('\n')}
`;

const ask = '{ agent: analyst, tool: pay, tier: write, arguments: { amount: 50 } }';

function folderOf(files: Record<string, string>): string {
  const folder = temporaryFolder();
  fill(folder, files);
  return folder;
}

async function run(folder: string, ...args: string[]) {
  const { code, stdout, stderr } = await runCli(['policy', ...args]);
  const plain = (text: string) => text.replaceAll(`${folder}/`, '');
  return { code, stdout: plain(stdout), stderr: plain(stderr) };
}

describe('labels of a task in policy tests', () => {
  const labelled = (labels: string, effect: string) =>
    `{ name: ${effect}, request: { agent: analyst, tool: pay, tier: read, task: { labels: ${labels} } }, expect: { effect: ${effect} } }`;
  const rule = `  rules:
    - { name: live, agents: [analyst], tools: [pay], tiers: [read], effect: allow, when: task.labels.env == "prod" }
`;
  const only = `${documents.slice(0, documents.indexOf('  rules:'))}${rule}`;

  test('are what its rules see', async () => {
    const folder = folderOf({
      'p.yaml': only,
      't.yaml': cases(labelled('{ env: prod }', 'allow'), labelled('{ env: test }', 'deny')),
    });
    const { code, stdout } = await run(folder, 'test', folder);
    expect(stdout).toContain('2 of 2 cases as expected');
    expect(code).toBe(0);
  });

  test('are bounded as those of agents and tools', async () => {
    const folder = folderOf({
      'p.yaml': only,
      't.yaml': cases(labelled('{ Env: prod }', 'deny'), labelled('{ level: 3 }', 'deny')),
    });
    const { code, stdout } = await run(folder, 'check', folder);
    expect(code).toBe(9);
    expect(stdout.split('\n').filter((line) => line.includes('mistake'))).toEqual([
      't.yaml:6:89: mistake: spec.cases[0].request.task.labels.Env: "Env" is not a name: lower-case letters, digits, ".", "_" and "-", at most 63, starting with a letter; rename it',
      't.yaml:7:96: mistake: spec.cases[1].request.task.labels.level: must be a string, not a number; put numbers and true/false in quotes',
    ]);
  });
});

describe('leasehold policy check', () => {
  test('warns of what is unlikely to be meant, each at its place, and --strict refuses it', async () => {
    const folder = folderOf({ 'p.yaml': documents });
    const relaxed = await run(folder, 'check', folder);
    expect(relaxed.code).toBe(0);
    expect(relaxed.stdout.trim().split('\n').slice(0, -1)).toEqual([
      'p.yaml:3:50: warning: metadata.reviewBy: the review was due on 2020-01-31; ann has to look at it, and set the next date',
      'p.yaml:25:16: warning: spec.conditions.forgotten: nothing uses conditions.forgotten; remove it',
      'p.yaml:39:27: warning: spec.rules[0].obligations.ttl: is longer than any of its tools allows (10m); the tier’s max holds; say that, or raise it there',
      'p.yaml:41:85: warning: spec.rules[2].when: can never hold; remove the rule, or mend its condition',
      'p.yaml:42:21: warning: spec.rules[3].agents: names no agent: its lists are empty; a rule about nothing has no effect',
      'p.yaml:43:7: warning: spec.rules[4]: can never grant anything: rule p/no-reads always denies what it is about; remove one of the two',
    ]);
    expect(relaxed.stdout).toMatch(/valid, with 6 warnings: 1 agents, 1 tools, revision sha256:/);
    const strict = await run(folder, 'check', folder, '--strict', '--json');
    expect(strict.code).toBe(9);
    expect(JSON.parse(strict.stdout)).toMatchObject({ valid: false, mistakes: [], warnings: { length: 6 } });
  });

  test('lists mistakes, in tests as well, and exits with 9', async () => {
    const text = cases(
      '{ name: a, request: { agent: analist, tool: pay, tier: execute }, expect: { effect: deny, rule: p/smal } }',
      `{ name: b, request: { agent: analyst, tool: pay, tier: write, held: { 'pay:raed': 1 }, rates: { often: 2 } }, expect: { effect: deny } }`,
    );
    const folder = folderOf({ 'p.yaml': documents, 't.yaml': text });
    const { code, stdout } = await run(folder, 'check', folder);
    expect(code).toBe(9);
    expect(stdout.split('\n').filter((line) => line.includes('mistake'))).toEqual([
      't.yaml:6:36: mistake: spec.cases[0].request.agent: there is no agent "analist"; did you mean "analyst"?',
      't.yaml:6:62: mistake: spec.cases[0].request.tier: tool "pay" has no tier execute; it has read, write',
      't.yaml:6:103: mistake: spec.cases[0].expect.rule: there is no rule "p/smal"; did you mean "p/small"?',
      't.yaml:7:89: mistake: spec.cases[1].request.held."pay:raed": there is no "pay:raed"; write it as tool:tier',
      `t.yaml:7:110: mistake: spec.cases[1].request.rates.often: is not the call that it stands for; write it like rate.agent('1h')`,
    ]);
  });
});

describe('leasehold policy test', () => {
  test('shows what differs, where it was expected, and which rules no case reaches', async () => {
    const text = cases(
      `{ name: small amounts are paid, request: ${ask}, expect: { effect: allow, rule: p/small, ttl: 10m } }`,
      `{ name: at night as well, request: ${ask.replace(' }', ` }, now: '2026-03-02T23:00:00Z'`)}, expect: { effect: allow, ttl: 5m } }`,
    );
    const folder = folderOf({ 'p.yaml': documents, 't.yaml': text });
    const junit = path.join(folder, 'results.xml');
    const { code, stdout } = await run(folder, 'test', folder, '--junit', junit);
    expect(code).toBe(6);
    expect(stdout.split('\n')).toEqual([
      't.yaml:7:15: failed: at night as well',
      '  effect (line 7, column 160)',
      '    - expected  allow',
      '    + got       deny',
      '  ttl (line 7, column 172)',
      '    - expected  5m',
      '    + got       none',
      '  policy says: no rule allows agent analyst to use pay:write; the condition of p/small does not hold',
      '1 of 2 cases as expected',
      '1 of 6 rules reached (17 %)',
      '  not reached: p/big (p.yaml:40:15)',
      '  not reached: p/off (p.yaml:41:15)',
      '  not reached: p/none (p.yaml:42:15)',
      '  not reached: p/reads (p.yaml:43:15)',
      '  not reached: p/no-reads (p.yaml:44:15)',
      '',
    ]);
    expect(readFileSync(junit, 'utf8')).toContain('<testsuite name="payments" tests="2" failures="1">');
  });

  test('passes what is as expected, down to the coverage that is asked for', async () => {
    const text = cases(`{ name: small, request: ${ask}, expect: { effect: allow } }`);
    const folder = folderOf({ 'p.yaml': documents, 't.yaml': text });
    expect((await run(folder, 'test', folder)).code).toBe(0);
    expect((await run(folder, 'test', folder, '--min-coverage', '16')).code).toBe(0);
    const short = await run(folder, 'test', folder, '--min-coverage', '50');
    expect(short.code).toBe(6);
    expect(short.stderr).toMatch(/16.7 % of the rules are reached by a case, and --min-coverage wants 50 %/);
  });
});
