import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { plan } from '../../src/domain/decision.ts';
import { noneEarlier, nothingYet, rateKey } from '../../src/domain/facts.ts';
import type { Facts } from '../../src/domain/facts.ts';
import type { Task } from '../../src/domain/model.ts';
import type { DecisionInput } from '../../src/domain/policy.ts';
import { compilePolicy } from '../../src/policy/compile.ts';
import type { RuleSpec } from '../../src/policy/documents.ts';
import { agent, input, now, policy, rule, tool } from './support.ts';

const declared = {
  amount: { type: 'integer' },
  env: { type: 'string', required: true },
} as const;

function payments(rules: RuleSpec[]) {
  const one = tool('t', ['read']);
  Object.assign(one.spec.tiers['read']!, { arguments: declared });
  return compilePolicy([
    agent('a'),
    one,
    tool('u'),
    policy(
      'p',
      rules.map((one) => ({ ...one, tools: ['t'] })),
    ),
  ]);
}

const noFacts = nothingYet;
const ask = (rules: RuleSpec[], more: Partial<DecisionInput> = {}, context: Record<string, string> = {}) =>
  payments(rules).forecast(input({ context }, { facts: noFacts, ...more }));

describe('what a plan says of a tool whose rules look at the request', () => {
  const small = rule('small', 'allow', { when: 'args.amount <= 50' });
  const large = rule('large', 'require_approval', { when: 'args.env == "prod"' });

  test('is no deny but that it depends, on which arguments, and on what it can still come to', () => {
    expect(ask([small])).toMatchObject({
      effect: 'depends',
      dependsOn: ['args.amount'],
      possible: ['allow', 'deny'],
      reason: 'it depends on args.amount: rule p/small may allow it',
    });
  });

  test('is that an approval may be needed when a rule about an argument asks for one', () => {
    expect(ask([rule('any', 'allow'), large])).toMatchObject({
      effect: 'depends',
      dependsOn: ['args.env'],
      possible: ['allow', 'needs_approval'],
      reason: 'it depends on args.env: rule p/any allows it, rule p/large may ask for approval',
    });
  });

  test('counts that a rule which asks for approval denies when its argument need not be given', () => {
    const unsure = rule('large', 'require_approval', { when: 'args.amount > 50' });
    expect(ask([rule('any', 'allow'), unsure])).toMatchObject({ possible: ['allow', 'needs_approval', 'deny'] });
  });

  test('is a deny where no argument can change that', () => {
    const no = rule('no', 'deny', { when: 'args.amount > 50 || task.context.env == "x"' });
    expect(ask([small, no], {}, { env: 'x' })).toMatchObject({ effect: 'deny', rule: 'p/no' });
    expect(ask([small, no], {}, { env: 'y' })).toMatchObject({ effect: 'depends', possible: ['allow', 'deny'] });
  });

  test('is an allow where no argument can change that, for the least life that it may have', () => {
    const shorter = rule('short', 'allow', { when: 'args.amount > 50', obligations: { ttl: '2m' } });
    expect(ask([rule('any', 'allow', { obligations: { ttl: '4m' } }), shorter])).toMatchObject({
      effect: 'allow',
      rule: 'p/any',
      ttl: 120_000,
    });
  });

  test('is a deny when a condition fails on something else, whatever the arguments are', () => {
    const ticketed = rule('ticketed', 'allow', { when: 'task.context.ticket == "x" && args.amount < 50' });
    expect(ask([ticketed])).toMatchObject({
      effect: 'deny',
      reason: expect.stringContaining('the condition of p/ticketed'),
    });
    expect(ask([ticketed], {}, { ticket: 'x' })).toMatchObject({ effect: 'depends' });
  });

  test('names limits that obligations put on arguments', () => {
    const limited = rule('limited', 'allow', { obligations: { arguments: { amount: { maximum: 50 } } } });
    expect(ask([limited])).toMatchObject({
      effect: 'depends',
      dependsOn: ['args.amount'],
      possible: ['allow', 'deny'],
      reason: 'it depends on args.amount: rule p/limited allows it within limits on args.amount',
    });
  });

  test('names who calls while no workload is pinned, and decides once one is', () => {
    const one = rule('one', 'allow', { when: 'caller.workload == "spiffe://acme.test/agent/a"' });
    expect(ask([one])).toMatchObject({ effect: 'depends', dependsOn: ['caller.workload'] });
    expect(ask([one], { workload: 'spiffe://acme.test/agent/a' })).toMatchObject({ effect: 'allow' });
    expect(ask([one], { workload: 'spiffe://acme.test/agent/b' })).toMatchObject({ effect: 'deny' });
  });

  test('names rates that are counted when the agent asks, and what the tree holds where that is not known', () => {
    const slow = rule('slow', 'allow', { when: "rate.agent('1h') < 10 && !held.tool('u')" });
    expect(ask([slow])).toMatchObject({ effect: 'depends', dependsOn: ["rate.agent('1h')"] });
    expect(ask([slow], { facts: undefined })).toMatchObject({ dependsOn: ['held', "rate.agent('1h')"] });
    const once = rule('once', 'allow', { obligations: { maxUses: 1 } });
    expect(ask([once])).toMatchObject({ effect: 'allow' });
    expect(ask([once], { facts: undefined })).toMatchObject({ effect: 'depends', dependsOn: ['count'] });
  });

  test('says that a key is needed, and is no deny because none is offered yet', () => {
    const bound = rule('bound', 'allow', { obligations: { senderConstraint: 'dpop' } });
    const { task, access } = input();
    const whole = { ...task, tools: [access] } as unknown as Task;
    expect(plan(payments([bound]), whole, access, { workload: undefined, now, facts: noFacts })).toMatchObject({
      effect: 'allow',
      obligations: { senderConstraint: 'dpop' },
    });
    expect(
      plan(payments([rule('x', 'allow', { when: 'args.amount < 5' }), bound]), whole, access, {
        workload: undefined,
        now,
        facts: noFacts,
      }),
    ).toMatchObject({ effect: 'allow', obligations: { senderConstraint: 'dpop' } });
  });
});

describe('a forecast and the decisions that follow', () => {
  const leaves = [
    'args.amount < 10',
    'args.amount in [5, 20]',
    'has(args.amount)',
    'args.env == "prod"',
    'args.env.startsWith("p")',
    '100 / args.amount > 5',
    'task.context.x == "1"',
    'has(task.context.x)',
    'caller.workload == "w1"',
    "rate.agent('1h') < 3",
    "rate.tool('1h') < 3",
    "held.tool('u')",
    'count.task() > 0',
    'true',
    'false',
  ];
  const condition = fc.letrec<{ node: string }>((tie) => ({
    node: fc.oneof(
      { maxDepth: 3, withCrossShrink: true },
      fc.constantFrom(...leaves),
      fc.tuple(tie('node'), fc.constantFrom('&&', '||'), tie('node')).map(([a, op, b]) => `(${a} ${op} ${b})`),
      tie('node').map((a) => `!(${a})`),
      fc.tuple(tie('node'), tie('node'), tie('node')).map(([a, b, c]) => `(${a} ? ${b} : ${c})`),
    ),
  })).node;
  const anyRule = fc.record({
    effect: fc.constantFrom('allow' as const, 'allow' as const, 'deny' as const, 'require_approval' as const),
    when: fc.option(condition, { nil: undefined }),
    ttl: fc.option(fc.constantFrom('1m', '3m', '20m'), { nil: undefined }),
    maxUses: fc.option(fc.constantFrom(1, 2), { nil: undefined }),
    most: fc.option(fc.constantFrom(5, 20), { nil: undefined }),
    senderConstraint: fc.option(fc.constantFrom('dpop' as const, 'mtls' as const), { nil: undefined, freq: 6 }),
  });
  const anyRules = fc.array(anyRule, { minLength: 1, maxLength: 5 }).map((rules) =>
    rules.map(({ effect, when, ttl, maxUses, most, senderConstraint }, index): RuleSpec => {
      const obligations = {
        ...(ttl === undefined ? {} : { ttl }),
        ...(maxUses === undefined ? {} : { maxUses }),
        ...(most === undefined ? {} : { arguments: { amount: { maximum: most } } }),
        ...(senderConstraint === undefined ? {} : { senderConstraint }),
      };
      return rule(`r${index}`, effect, {
        ...(when === undefined ? {} : { when }),
        ...(effect === 'deny' || Object.keys(obligations).length === 0 ? {} : { obligations }),
      });
    }),
  );
  const anyRequest = fc.record({
    amount: fc.option(fc.constantFrom(0, 5, 15, 20, 100), { nil: undefined }),
    env: fc.constantFrom('prod', 'test'),
    workload: fc.constantFrom('w1', 'w2'),
    agentRate: fc.constantFrom(0, 5),
    toolRate: fc.constantFrom(0, 5),
  });
  const heldNow = fc.constantFrom<Facts['held']>([], [{ tool: 'u', tier: 'read', count: 1 }]);

  test('never disagree: what was said to be certain holds for every request, and what is open names every way out', () => {
    fc.assert(
      fc.property(
        anyRules,
        fc.constantFrom<Record<string, string>[]>({}, { x: '1' }, { x: '2' }),
        heldNow,
        fc.boolean(),
        fc.boolean(),
        fc.array(anyRequest, { minLength: 1, maxLength: 12 }),
        (rules, context, held, isHeldKnown, isPinned, requests) => {
          const revision = payments(rules);
          const forecast = revision.forecast(
            input(
              { context },
              {
                workload: isPinned ? 'w1' : undefined,
                facts: isHeldKnown ? { held, lineage: undefined, earlier: noneEarlier, rates: new Map() } : undefined,
              },
            ),
          );
          for (const { amount, env, workload, agentRate, toolRate } of requests) {
            const rates = new Map([
              [rateKey({ scope: 'agent', window: 3_600_000, tool: undefined }), agentRate],
              [rateKey({ scope: 'tool', window: 3_600_000, tool: undefined }), toolRate],
            ]);
            const decision = revision.decide(
              input(
                { context },
                {
                  workload: isPinned ? 'w1' : workload,
                  arguments: { env, ...(amount === undefined ? {} : { amount }) },
                  facts: { held, lineage: undefined, earlier: noneEarlier, rates },
                },
              ),
            );
            if (forecast.effect === 'depends') {
              expect(forecast.possible).toContain(decision.effect);
              expect(forecast.possible.length).toBeGreaterThan(1);
              expect(forecast.dependsOn).not.toEqual([]);
              if (decision.ttl !== undefined) expect(decision.ttl).toBeLessThanOrEqual(forecast.ttl);
            } else {
              expect(decision.effect).toBe(forecast.effect);
              if (forecast.effect === 'allow') expect(decision.ttl).toBeGreaterThanOrEqual(forecast.ttl!);
            }
          }
        },
      ),
      { numRuns: 1_500 },
    );
  });
});
