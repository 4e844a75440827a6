import { noneEarlier } from '../../src/domain/facts.ts';
import { describe, expect, test } from 'vitest';
import { decideAgain, type RecordedDecision } from '../../src/domain/decision-record.ts';
import type { SignalFact } from '../../src/domain/signals/model.ts';
import { compilePolicy } from '../../src/policy/compile.ts';
import type { RuleSpec } from '../../src/policy/documents.ts';
import { agent, agentYaml, complaints, input, policy, rule, ruleYaml, tool, toolYaml } from './support.ts';

const compile = (rules: RuleSpec[]) => compilePolicy([agent('a'), tool('t'), policy('p', rules)]);
const facts = (signals: SignalFact[] | undefined) => ({
  held: [],
  lineage: undefined,
  earlier: noneEarlier,
  rates: new Map(),
  signals,
});
const said: SignalFact[] = [
  { subject: 'agent', kind: 'risk', value: 40, source: 'siem' },
  { subject: 'agent', kind: 'risk', value: 60, source: 'idp' },
  { subject: 'tool', kind: 'image_vulnerable', value: 90, source: 'scanner' },
  { subject: 'task', kind: 'x_quarantine', value: 100, source: 'ops' },
];

describe('a condition about signals', () => {
  test.each([
    'risk.agent == 60 && risk.tool == 0 && risk.highest == 60',
    'signals.any("image_vulnerable") && signals.tool("image_vulnerable") && !signals.agent("image_vulnerable")',
    'signals.value("image_vulnerable") == 90 && signals.value("anomaly") == 0',
    'signals.task("x_quarantine") && !signals.workload("x_quarantine")',
    'signals.items.exists(s, s.kind == "risk" && s.source == "siem" && s.value < 50 && s.subject == "agent")',
  ])('%s', (when) => {
    const revision = compile([rule('r', 'allow', { when })]);
    expect(revision.decide(input({}, { facts: facts(said) })).effect).toBe('allow');
  });

  test('fails when they are not known: an allow does not, a deny does', () => {
    for (const when of ['risk.agent < 50', '!signals.any("anomaly")', 'signals.items.size() == 0']) {
      const allow = compile([rule('r', 'allow', { when })]);
      expect(allow.decide(input({}, { facts: facts(undefined) })).effect).toBe('deny');
      const deny = compile([rule('all', 'allow'), rule('no', 'deny', { when })]);
      expect(deny.decide(input({}, { facts: undefined })).reason).toMatch(/^no says no \(denied because/);
    }
  });

  test('asks for signals and for nothing else; a review date is watched, and asks for nothing', () => {
    const access = { tool: 't', tier: 'read' } as const;
    const reads = compile([rule('r', 'deny', { when: 'risk.highest > 50' })]);
    expect(reads.needs('a', access, false, 0)).toEqual({
      held: false,
      called: false,
      lineage: false,
      earlier: false,
      rates: [],
      signals: true,
    });
    expect([reads.watching, reads.watches('a', access), reads.watches('a', { ...access, tier: 'write' })]).toEqual([
      true,
      true,
      false,
    ]);
    const review = compile([rule('r', 'deny', { when: 'agent.overdue' })]);
    expect([review.needs('a', access, false, 0), review.watches('a', access)]).toEqual([undefined, true]);
    const plain = compile([rule('r', 'deny', { when: 'task.age > 50' })]);
    expect([plain.watching, plain.watches('a', access)]).toEqual([false, false]);
  });
});

test('a recorded decision says which signals it saw, and comes out the same again', () => {
  const revision = compile([rule('r', 'allow', { when: 'risk.agent <= 60' })]);
  const { task } = input();
  const record = (signals: SignalFact[]): RecordedDecision => ({
    at: 0,
    workload: 'w',
    task: { ...task, rootTaskId: task.taskId, tools: [{ tool: 't', tier: 'read' }] },
    above: [],
    leaseId: undefined,
    detail: {
      decision_id: 'dec_1',
      tool: 't',
      tier: 'read',
      effect: 'allow',
      rule: 'p/r',
      reason: '',
      policy_revision: revision.digest,
      asked: { deadline: 3_600_000, facts: { held: [], lineage: undefined, earlier: noneEarlier, rates: [], signals } },
    },
  });
  expect(decideAgain(revision, record(said)).effect).toBe('allow');
  const worse = said.map((one) => ({ ...one, value: 61 }));
  expect(decideAgain(revision, record(worse)).effect).toBe('deny');
});

describe('a mistake is told at load', () => {
  test.each([
    [`signals.any('onwer_left')`, 'there is no kind of signal "onwer_left"; did you mean "owner_left"?'],
    [`signals.any('fraud')`, '(14 in all); a kind of your own begins with x_'],
    [`signals.agent(tier)`, "the kind of signal must be a literal text; write it like signals.agent('owner_left')"],
    [`risk.owner > 1`, 'risk has no field "owner"'],
  ])('%s', async (when, complaint) => {
    const [first] = await complaints({
      'a.yaml': agentYaml,
      't.yaml': toolYaml,
      'p.yaml': ruleYaml(`      when: ${when}\n`),
    });
    expect(first).toContain(complaint);
  });
});
