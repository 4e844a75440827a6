import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { parseDuration } from '../../src/config/duration.ts';
import { limitFault } from '../../src/domain/arguments.ts';
import type { Decision, DecisionInput } from '../../src/domain/policy.ts';
import { compilePolicy } from '../../src/policy/compile.ts';
import type { ObligationsSpec, RuleSpec } from '../../src/policy/documents.ts';
import { noneEarlier, nothingYet } from '../../src/domain/facts.ts';
import { agent, input, now, policy, renewal, rule } from './support.ts';

const amounts = [undefined, 10, 60, 200];
const minute = 60_000;

const tool = {
  apiVersion: 'leasehold.dev/v1',
  kind: 'Tool',
  metadata: { name: 't', owner: 'o' },
  spec: {
    resource: 'https://t.test',
    tiers: {
      read: {
        provider: 'jwt',
        revocation: 'immediate',
        ttl: { min: '1m', default: '20m', max: '1h' },
        arguments: { amount: { type: 'integer' } },
      },
    },
  },
};

const maybe = <T>(...values: T[]) => fc.option(fc.constantFrom(...values), { nil: undefined });

/** Conditions with what each comes to, so that the reference needs no expression engine. */
const conditions: Record<string, (of: DecisionInput) => boolean | 'error'> = {
  'args.amount < 100': (of) =>
    of.arguments?.['amount'] === undefined ? 'error' : Number(of.arguments['amount']) < 100,
  'has(args.amount)': (of) => of.arguments?.['amount'] !== undefined,
  'held.tool("t")': (of) => held(of) > 0,
  'count.task("t") < 3': (of) => held(of) < 3,
  'renewal.count < 2': (of) => (of.renewal?.count ?? 0) < 2,
};
const held = (of: DecisionInput) => of.facts!.held!.reduce((sum, { count }) => sum + count, 0);

const anyObligations = fc
  .record({
    ttl: maybe('3m', '10m', '30m'),
    maxUses: maybe(1, 3),
    senderConstraint: maybe('dpop' as const, 'dpop' as const, 'mtls' as const),
    limit: maybe({ maximum: 50 }, { maximum: 100 }, { minimum: 20 }, { minimum: 70 }),
    notBefore: maybe('1m', '2m'),
    requireHeartbeat: maybe(true),
    condition: maybe(...Object.keys(conditions)),
    approvalAfter: maybe<{ count?: number; age?: string }>({ count: 2 }, { age: '5m' }),
  })
  .map(({ limit, notBefore, requireHeartbeat, condition, approvalAfter, ...rest }) => {
    const renews = { notBefore, requireHeartbeat, condition, approvalAfter };
    const hasRenewal = Object.values(renews).some((value) => value !== undefined);
    const all = { ...rest, arguments: limit && { amount: limit }, renewal: hasRenewal ? bare(renews) : undefined };
    return bare(all) as ObligationsSpec;
  });

/** Without what is undefined, as a document has it. */
function bare(of: object): Record<string, unknown> {
  return Object.fromEntries(Object.entries(of).filter(([, value]) => value !== undefined));
}

const anyRule = fc
  .record({
    effect: fc.constantFrom('allow', 'allow', 'allow', 'require_approval', 'deny'),
    when: maybe(...Object.keys(conditions)),
    obligations: fc.option(anyObligations, { nil: undefined }),
  })
  .map(({ effect, when, obligations }): Omit<RuleSpec, 'name'> => {
    const given =
      effect === 'deny' || obligations === undefined || Object.keys(obligations).length === 0 ? {} : { obligations };
    return { ...rule('x', effect as RuleSpec['effect']), ...bare({ when }), ...given };
  });
const anyRules = fc
  .array(anyRule, { maxLength: 5 })
  .map((rules) => rules.map((one, index): RuleSpec => ({ ...one, name: `r${index}` })));

const anyInput = fc
  .record({
    amount: fc.constantFrom(...amounts),
    count: fc.nat(4),
    renewal: fc.option(
      fc.record({
        count: fc.nat(4),
        sinceIssue: fc.constantFrom(0, 90_000, 10 * minute),
        approved: fc.boolean(),
        heartbeat: fc.boolean(),
      }),
      { nil: undefined },
    ),
  })
  .map(({ amount, count, renewal: again }): DecisionInput => {
    const sinceApproval = again?.approved === true ? { count: 0, age: minute } : undefined;
    return input(
      {},
      {
        arguments: amount === undefined ? {} : { amount },
        facts: {
          ...nothingYet,
          held: count === 0 ? [] : [{ tool: 't', tier: 'read', count }],
          earlier: again === undefined ? noneEarlier : { credentials: again.count + 1, since: now - 10 * minute },
        },
        renewal: again && renewal(again.count, 10 * minute, { ...again, sinceApproval }),
      },
    );
  });

const compile = (rules: readonly RuleSpec[]) =>
  compilePolicy([agent('a'), tool, ...(rules.length === 0 ? [] : [policy('p', [...rules])])]);

/** What each obligation means, one after the other, without merging anything. */
function reference(rules: readonly RuleSpec[], of: DecisionInput): { effect: string; ttl: number | undefined } {
  const denied = { effect: 'deny', ttl: undefined };
  const came = (text: string | undefined) => (text === undefined ? true : conditions[text]!(of));
  if (rules.some(({ effect, when }) => effect === 'deny' && came(when) !== false)) return denied;
  if (rules.some(({ effect, when }) => effect === 'require_approval' && came(when) === 'error')) return denied;
  const granting = rules.filter(({ effect, when }) => effect !== 'deny' && came(when) === true);
  if (granting.length === 0) return denied;
  const all = granting.map(({ obligations }) => obligations ?? {});
  let asks = granting.some(({ effect }) => effect === 'require_approval');
  const possible = Array.from({ length: 300 }, (_, amount) => amount);
  const amount = of.arguments!['amount'];
  const fits = (value: number) => all.every((one) => limitFault(one.arguments?.['amount'] ?? {}, value) === undefined);
  if (amount === undefined ? !possible.some(fits) : !fits(amount as number)) return denied;
  // Limits that nothing fits are denied whatever was asked.
  if (!possible.some(fits)) return denied;
  if (new Set(all.flatMap(({ senderConstraint }) => senderConstraint ?? [])).size > 1) return denied;
  for (const { renewal: limits = {}, maxUses } of all) {
    const again = of.renewal;
    if (again === undefined) {
      if (held(of) >= (maxUses ?? Infinity)) return denied;
      continue;
    }
    if (again.sinceIssue < (parseDuration(limits.notBefore ?? '') ?? 0)) return denied;
    if (limits.requireHeartbeat === true && !again.heartbeat) return denied;
    if (came(limits.condition) !== true) return denied;
    const since = again.sinceApproval ?? again;
    if (since.count >= (limits.approvalAfter?.count ?? Infinity)) asks = true;
    if (since.age >= (parseDuration(limits.approvalAfter?.age ?? '') ?? Infinity)) asks = true;
  }
  const lives = all.flatMap(({ ttl }) => parseDuration(ttl ?? '') ?? []);
  const ttl = lives.length === 0 ? 20 * minute : Math.min(...lives);
  return { effect: asks ? 'needs_approval' : 'allow', ttl };
}

const answer = (decision: Decision) => ({ effect: decision.effect, ttl: decision.ttl ?? decision.approval?.ttl });

describe('for any obligations and any question', () => {
  test('the decision is that of a slow and obvious decider', () => {
    fc.assert(
      fc.property(anyRules, fc.array(anyInput, { minLength: 1, maxLength: 6 }), (rules, inputs) => {
        const revision = compile(rules);
        for (const of of inputs) expect(answer(revision.decide(of))).toEqual(reference(rules, of));
      }),
      { numRuns: 1_000 },
    );
  });

  test('order does not matter, even for the rule and reason told', () => {
    const shuffled = anyRules.chain((rules) =>
      fc.tuple(fc.constant(rules), fc.shuffledSubarray(rules, { minLength: rules.length, maxLength: rules.length })),
    );
    fc.assert(
      fc.property(shuffled, anyInput, ([rules, others], of) => {
        expect(compile(others).decide(of)).toEqual(compile(rules).decide(of));
      }),
      { numRuns: 300 },
    );
  });

  test('obligations only tighten: one more on a rule that grants gives nothing that was not given before', () => {
    const rank = { deny: 0, needs_approval: 1, allow: 2 };
    fc.assert(
      fc.property(anyRules, anyObligations, anyInput, (rules, more, of) => {
        const base = [...rules, { ...rule('base', 'allow'), obligations: { ttl: '20m' } }];
        const tighter = [
          ...base,
          { ...rule('more', 'allow'), ...(Object.keys(more).length === 0 ? {} : { obligations: more }) },
        ];
        const [before, after] = [compile(base).decide(of), compile(tighter).decide(of)];
        expect(rank[after.effect]).toBeLessThanOrEqual(rank[before.effect]);
        if (after.effect === 'deny') return;
        expect(answer(after).ttl!).toBeLessThanOrEqual(answer(before).ttl!);
        const limit = after.obligations?.argumentLimits?.['amount'] ?? {};
        const was = before.obligations?.argumentLimits?.['amount'] ?? {};
        expect(limit.maximum ?? Infinity).toBeLessThanOrEqual(was.maximum ?? Infinity);
        expect(limit.minimum ?? -Infinity).toBeGreaterThanOrEqual(was.minimum ?? -Infinity);
        expect(after.obligations?.renewNotBefore ?? 0).toBeGreaterThanOrEqual(before.obligations?.renewNotBefore ?? 0);
        if (before.obligations?.senderConstraint !== undefined) {
          expect(after.obligations?.senderConstraint).toBe(before.obligations.senderConstraint);
        }
      }),
      { numRuns: 400 },
    );
  });
});
