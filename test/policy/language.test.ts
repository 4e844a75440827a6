import { describe, expect, test } from 'vitest';
import { compilePolicy } from '../../src/policy/compile.ts';
import { noneEarlier } from '../../src/domain/facts.ts';
import type { Facts } from '../../src/domain/facts.ts';
import type { DecisionInput } from '../../src/domain/policy.ts';
import type { ObligationsSpec, RuleSpec } from '../../src/policy/documents.ts';
import { agent, complaints, input, policy, renewal, rule, ruleYaml, agentYaml, toolYaml } from './support.ts';

const minute = 60_000;
const spec = (more: Record<string, unknown>) => ({
  apiVersion: 'leasehold.dev/v1',
  kind: 'Tool',
  metadata: { name: 't', owner: 'o', labels: { sensitivity: 'customer' } },
  spec: {
    resource: 'https://t.test',
    tiers: {
      read: {
        provider: 'jwt',
        revocation: 'immediate',
        ttl: { min: '1m', default: '5m', max: '1h' },
        arguments: {
          repository: { type: 'string' },
          amount: { type: 'integer' },
          ratio: { type: 'number' },
          force: { type: 'boolean' },
        },
        ...more,
      },
    },
  },
});
const definitions = (of: object) => ({
  apiVersion: 'leasehold.dev/v1',
  kind: 'Definitions',
  metadata: { name: 'd', owner: 'o' },
  spec: of,
});
const environment = { region: 'eu' };
const compile = (rules: RuleSpec[], more: unknown[] = []) =>
  compilePolicy([agent('a', { reviewBy: '2026-03-01' }), spec({}), policy('p', rules), ...more], { environment });
const ask = (rules: RuleSpec[], rest: Partial<DecisionInput> = {}, more: unknown[] = []) =>
  compile(rules, more).decide(input({}, { arguments: {}, facts, ...rest }));
const facts: Facts = {
  held: [
    { tool: 't', tier: 'read', count: 2 },
    { tool: 'gone', tier: 'write', count: 1 },
  ],
  lineage: undefined,
  earlier: noneEarlier,
  rates: new Map([
    ['agent 3600000 ', 4],
    ['tool 600000 ', 9],
  ]),
};

describe('a condition sees', () => {
  const holds = (when: string, rest: Partial<DecisionInput> = {}, more: unknown[] = []) =>
    ask([rule('r', 'allow', { when })], rest, more);
  const args = { repository: 'acme/shop', amount: 40, ratio: 0.5, force: true };

  test.each([
    'args.amount == 40 && args.amount < 41 && args.ratio < 1.0 && args.force && args.repository.startsWith("acme/")',
    'has(args.amount)',
    'agent.overdue && agent.reviewBy < time.now',
    'tool.sensitivity == "customer"',
    'task.depth == 0 && task.orchestrator == task.opener && task.remaining == 3600',
    'time.hour == 13 && time.zone("America/New_York").hour == 8 && time.zone("Asia/Kolkata").minute == 15',
    'time.date == "2026-03-02" && time.zone("Pacific/Kiritimati").date == "2026-03-03"',
    'held.tool("t") && !held.tool("u") && held.access("t", "read") && held.label("sensitivity", "customer")',
    'held.items.exists(h, h.tool == "gone" && h.count == 1)',
    'count.task() == 3 && count.task("t") == 2 && count.task(tool) == 2',
    'rate.agent("1h") == 4 && rate.tool("10m") == 9',
    'environment.region == "eu"',
    'conditions.small && "x" in lists.some',
  ])('%s', (when) => {
    const more = [definitions({ conditions: { small: 'args.amount < 50 // few' }, lists: { some: ['x', 'y'] } })];
    expect(holds(when, { arguments: args }, more)).toMatchObject({ effect: 'allow' });
  });

  test.each([
    ['args.amount < 41', {}, 'no such key: amount'],
    ['agent.risk == "low"', {}, 'no such key: risk'],
    [
      'environment.region == "eu" && args.amount > 1',
      { arguments: undefined },
      'it looks at the arguments of a request, and there is none yet',
    ],
    ['held.tool("t")', { facts: undefined }, 'it looks at what is known only when a credential is asked for'],
    ['rate.agent("2h") < 1', {}, 'it looks at what is known only when a credential is asked for'],
  ] as [string, Partial<DecisionInput>, string][])(
    'nothing in %s when that is not known: an allow does not, a deny does',
    (when, rest, why) => {
      expect(holds(when, rest)).toMatchObject({
        effect: 'deny',
        reason: `no rule allows agent a to use t:read; the condition of p/r could not be evaluated: ${why}`,
      });
      const both = [rule('all', 'allow'), rule('no', 'deny', { when })];
      expect(ask(both, rest).reason).toBe(`no says no (denied because a condition could not be evaluated: ${why})`);
    },
  );

  test('the clocks of the rule’s own time zone, or of the organisation’s', () => {
    const when = 'time.hour == 14';
    expect(ask([rule('r', 'allow', { when, timeZone: 'Europe/Berlin' })]).effect).toBe('allow');
    const defaults = {
      apiVersion: 'leasehold.dev/v1',
      kind: 'Defaults',
      metadata: { name: 'd', owner: 'o' },
      spec: { timeZone: 'Europe/Berlin' },
    };
    expect(ask([rule('r', 'allow', { when })], {}, [defaults]).effect).toBe('allow');
    expect(ask([rule('r', 'allow', { when, timeZone: 'UTC' })], {}, [defaults]).effect).toBe('deny');
  });

  test('storage only for rules that ask it', () => {
    const revision = compile([
      rule('plain', 'allow', { when: 'args.amount > 1' }),
      rule('writes', 'allow', { agents: ['a'], tiers: ['read'], when: 'rate.agent("1h", "t") < 3 && task.depth < 2' }),
      rule('renews', 'allow', { obligations: { renewal: { condition: 'held.tool("t")' } } }),
    ]);
    const rates = [{ scope: 'agent', window: 3_600_000, tool: 't' }];
    const needs = { held: false, called: false, lineage: true, earlier: false, rates, signals: false };
    expect(revision.needs('a', { tool: 't', tier: 'read' }, false, 0)).toEqual(needs);
    expect(revision.needs('a', { tool: 't', tier: 'read' }, true, 0)).toEqual({ ...needs, held: true });
    expect(compile([rule('plain', 'allow')]).needs('a', { tool: 't', tier: 'read' }, true, 0)).toBeUndefined();
  });
});

describe('obligations', () => {
  const allow = (name: string, obligations: ObligationsSpec) => rule(name, 'allow', { obligations });

  test('of arguments narrow from rule to rule, and what does not fit is denied by the rule that says so', () => {
    const rules = [
      allow('x', { arguments: { amount: { minimum: 1, maximum: 100 }, repository: { enum: ['a', 'b'] } } }),
      allow('y', { arguments: { amount: { maximum: 50 }, repository: { enum: ['b', 'c'] } } }),
    ];
    expect(ask(rules).obligations).toEqual({
      argumentLimits: { amount: { minimum: 1, maximum: 50 }, repository: { enum: ['b'] } },
    });
    expect(ask(rules, { arguments: { amount: 51 } })).toMatchObject({
      effect: 'deny',
      rule: 'p/y',
      reason: 'rule p/y limits arguments.amount: it must be at most 50',
    });
    const never = [...rules, allow('z', { arguments: { repository: { enum: ['d'] } } })];
    expect(ask(never).reason).toBe('no value of arguments.repository fits the limits of p/x and p/y and p/z');
  });

  test('of number of uses count credentials of the tree, and not at a renewal', () => {
    expect(ask([allow('x', { maxUses: 3 })]).effect).toBe('allow');
    expect(ask([allow('x', { maxUses: 3 }), allow('y', { maxUses: 2 })])).toMatchObject({
      effect: 'deny',
      reason: 'rule p/y allows t:read 2 times in one task, which have been used',
    });
    expect(ask([allow('y', { maxUses: 2 })], { renewal: renewal(0, 0) }).effect).toBe('allow');
    expect(ask([allow('y', { maxUses: 2 })], { facts: undefined }).effect).toBe('deny');
  });

  test('of who may send it are kept for the broker, and two that no credential meets are denied', () => {
    const bound = allow('x', { senderConstraint: 'dpop' });
    expect(ask([bound]).obligations).toEqual({ senderConstraint: 'dpop' });
    expect(ask([bound, allow('y', { senderConstraint: 'mtls' })])).toMatchObject({ effect: 'deny', rule: 'p/x' });
  });

  test('of renewal: not before, only with a heartbeat, only while a condition holds, and with approval again', () => {
    const renew = (limits: ObligationsSpec['renewal'], ...of: Parameters<typeof renewal>) =>
      ask([allow('x', { renewal: limits! })], { renewal: renewal(...of) });
    expect(renew({ notBefore: '3m' }, 0, 2 * minute).reason).toBe(
      'rule p/x renews a credential once it is 3m old: ask again in 1m',
    );
    expect(renew({ notBefore: '3m' }, 0, 3 * minute)).toMatchObject({
      effect: 'allow',
      obligations: { renewNotBefore: 3 * minute },
    });
    expect(renew({ requireHeartbeat: true }, 0, 0, { heartbeat: false }).effect).toBe('deny');
    expect(renew({ requireHeartbeat: true }, 0, 0).effect).toBe('allow');
    expect(renew({ condition: 'renewal.count < 2' }, 1, 0).effect).toBe('allow');
    expect(renew({ condition: 'renewal.count < 2' }, 2, 0).reason).toBe(
      'the renewal condition of rule p/x does not hold',
    );
    expect(ask([allow('x', { renewal: { condition: 'renewal.active' } })]).effect).toBe('allow');
    expect(renew({ approvalAfter: { count: 5 } }, 4, 0).effect).toBe('allow');
    expect(renew({ approvalAfter: { count: 5 } }, 5, 0)).toMatchObject({
      effect: 'needs_approval',
      rule: 'p/x',
      reason: 'rule p/x asks for approval again after 5 renewals since the first credential',
      approval: { ttl: 5 * minute },
    });
    const since = { sinceApproval: { count: 1, age: 30 * minute } };
    expect(renew({ approvalAfter: { count: 5, age: '1h' } }, 9, 90 * minute, since).effect).toBe('allow');
    expect(renew({ approvalAfter: { age: '20m' } }, 9, 90 * minute, since).reason).toBe(
      'rule p/x asks for approval again 20m since the last approval',
    );
  });
});

describe('what is new in the language is refused with file, line, column and a hint when it is', () => {
  const right = { 'a.yaml': agentYaml };
  const argumentTool = toolYaml.replace(
    'ttl: { min: 1m, default: 5m, max: 1h }',
    'ttl: { min: 1m, default: 5m, max: 1h }\n      arguments: { amount: { type: integer }, order: { type: string } }',
  );
  const withRule = (fields: string) => complaints({ ...right, 't.yaml': argumentTool, 'p.yaml': ruleYaml(fields) });

  test.each([
    [
      'an argument that no tool takes',
      '      when: args.amont > 1',
      '11:18: spec.rules[0].when: none of the rule\'s tools takes an argument "amont"; did you mean "amount"?',
    ],
    [
      'an argument of another type',
      '      when: args.amount == "x"',
      '11:13: spec.rules[0].when: types do not fit: no such overload: int == string; labels and context hold text; int("…") makes a number of it',
    ],
    [
      'a condition that nobody defined',
      '      when: conditions.office',
      '11:24: spec.rules[0].when: there is no condition "office"; define it in a Definitions document, under spec.conditions',
    ],
    [
      'a list that nobody defined',
      '      when: \'"x" in lists.some\'',
      '11:27: spec.rules[0].when: there is no list "some"; define it in a Definitions document, under spec.lists',
    ],
    [
      'a time zone that is none',
      '      when: time.zone("Berlin").hour > 1',
      '11:23: spec.rules[0].when: there is no time zone "Berlin"; name a place, for example time.zone(\'Europe/Berlin\').hour',
    ],
    [
      'a time zone of the rule that is none',
      '      timeZone: CEST+1',
      '11:17: spec.rules[0].timeZone: there is no time zone "CEST+1"; name a place, such as Europe/Berlin, or UTC',
    ],
    [
      'a window that is no duration',
      '      when: rate.agent("hour") < 1',
      '11:24: spec.rules[0].when: "hour" is not a duration between 1s and 31d; write it like rate.agent(\'1h\')',
    ],
    [
      'a window that is not literal',
      '      when: rate.agent(agent.name) < 1',
      "11:24: spec.rules[0].when: the window must be a literal text; write it like rate.agent('1h')",
    ],
    [
      'a limit on an unknown argument',
      '      obligations: { arguments: { amont: { maximum: 1 } } }',
      '11:35: spec.rules[0].obligations.arguments.amont: none of the rule\'s tools takes an argument "amont"; did you mean "amount"?',
    ],
    [
      'a limit without meaning',
      '      obligations: { arguments: { order: { maximum: 1 } } }',
      '11:53: spec.rules[0].obligations.arguments.order.maximum: has no meaning for type string; remove it',
    ],
    [
      'a renewal that could never be',
      '      obligations: { ttl: 5m, renewal: { notBefore: 5m } }',
      '11:53: spec.rules[0].obligations.renewal.notBefore: is no earlier than the end of a credential of warehouse:read (5m); a credential is renewed while it lives; for none at all say max: 0',
    ],
    [
      'a renewal condition with a mistake',
      '      obligations: { renewal: { condition: task.contxt == "" } }',
      '11:49: spec.rules[0].obligations.renewal.condition: task has no field "contxt"; did you mean "context"?',
    ],
  ])('%s', async (_what, fields, expected) => {
    expect(await withRule(fields)).toEqual([`p.yaml:${expected}`]);
  });

  const define = (body: string) => `apiVersion: leasehold.dev/v1
kind: Definitions
metadata: { name: d, owner: o }
spec:
${body}`;
  test.each([
    [
      'a circle',
      '  conditions:\n    a: conditions.b\n    b: conditions.a',
      [
        'd.yaml:6:8: spec.conditions.a: condition "b" depends on itself: b → a → b; write out in one of them what it takes from the other',
        'd.yaml:7:8: spec.conditions.b: condition "a" depends on itself: a → b → a; write out in one of them what it takes from the other',
      ],
    ],
    [
      'a mistake inside',
      '  conditions:\n    a: task.contxt == ""',
      ['d.yaml:6:13: spec.conditions.a: task has no field "contxt"; did you mean "context"?'],
    ],
    [
      'a name that is nearly right',
      '  conditions:\n    office_hours: time.hour > 8\n    b: conditions.office_hour',
      ['d.yaml:7:19: spec.conditions.b: there is no condition "office_hour"; did you mean "office_hours"?'],
    ],
  ])('definitions with %s', async (_what, body, expected) => {
    const files = { ...right, 't.yaml': argumentTool, 'd.yaml': define(body), 'p.yaml': ruleYaml('') };
    expect(await complaints(files)).toEqual(expected);
  });

  test('a list of tools with a tool that is none, and a list that is none', async () => {
    const text = ruleYaml('').replace('tools: [warehouse]', 'tools: [lists.all, lists.al]');
    const files = {
      ...right,
      't.yaml': argumentTool,
      'd.yaml': define('  lists: { all: [warehouse, warehose] }'),
      'p.yaml': text,
    };
    expect(await complaints(files)).toEqual([
      'p.yaml:8:15: spec.rules[0].tools[0]: in list "all": there is no tool "warehose"; did you mean "warehouse"?',
      'p.yaml:8:26: spec.rules[0].tools[1]: there is no list "al"; did you mean "all"?',
    ]);
  });

  const defaults = (ttl: string, name = 'org') => `apiVersion: leasehold.dev/v1
kind: Defaults
metadata: { name: ${name}, owner: o }
spec: { ttl: ${ttl} }
`;
  test('durations that go beyond the organisation’s, and two documents of defaults', async () => {
    const files = {
      ...right,
      't.yaml': toolYaml,
      'd.yaml': defaults('{ min: 2m, default: 5m, max: 30m }'),
      'e.yaml': defaults('{ max: 1h }', 'other'),
    };
    expect(await complaints(files)).toEqual([
      'e.yaml:3:19: metadata.name: there is a Defaults document already, and one directory has one; put both into d.yaml:3:19',
      "t.yaml:10:19: spec.tiers.read.ttl.min: is shorter than the organisation's min (1m < 2m); a level may narrow the bounds above it, never widen them",
      "t.yaml:10:41: spec.tiers.read.ttl.max: is longer than the organisation's max (1h > 30m); a level may narrow the bounds above it, never widen them",
      "t.yaml:14:19: spec.tiers.write.ttl.min: is shorter than the organisation's min (1m < 2m); a level may narrow the bounds above it, never widen them",
    ]);
  });

  test('bounds are inherited from organisation to tool to tier', async () => {
    const bare = toolYaml.replaceAll(/\n {6}ttl: .*/g, '').replace('spec:', 'spec:\n  ttl: { max: 20m }');
    expect(
      await complaints({ ...right, 't.yaml': bare, 'd.yaml': defaults('{ min: 2m, default: 25m, max: 30m }') }),
    ).toEqual([]);
    expect(await complaints({ ...right, 't.yaml': bare })).toEqual([
      't.yaml:8:5: spec.tiers.read: "ttl.min" and "ttl.default" are missing; add min: here, under spec.ttl of the tool, or in a Defaults document',
      't.yaml:11:5: spec.tiers.write: "ttl.min" and "ttl.default" are missing; add min: here, under spec.ttl of the tool, or in a Defaults document',
    ]);
  });
});
