import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { parseDuration } from '../../src/config/duration.ts';
import type { DecisionInput } from '../../src/domain/policy.ts';
import { compilePolicy } from '../../src/policy/compile.ts';
import type { RuleSpec } from '../../src/policy/documents.ts';
import { nothingYet } from '../../src/domain/facts.ts';
import { agent, input, now, policy, renewal as renewing, rule, tool } from './support.ts';

const agents = ['a', 'b'];
const tools = ['t', 'u'];

/** Conditions with what each comes to for a context: obvious, so that the reference needs no expression engine. */
const conditions: Record<string, (context: Record<string, string>) => boolean | 'error'> = {
  true: () => true,
  false: () => false,
  'task.context.env == "x"': (context) => (context['env'] === undefined ? 'error' : context['env'] === 'x'),
  'has(task.context.env)': (context) => context['env'] !== undefined,
};

const someOrStar = (names: string[]): fc.Arbitrary<string[]> =>
  fc.oneof(fc.constant<string[]>(['*']), fc.subarray(names, { minLength: 1 }));

const anyRule = fc
  .record({
    agents: someOrStar(agents),
    tools: someOrStar(tools),
    tiers: fc.subarray(['read', 'write'] as const, { minLength: 1 }),
    effect: fc.constantFrom('allow', 'allow', 'allow', 'deny', 'require_approval'),
    when: fc.option(fc.constantFrom(...Object.keys(conditions)), { nil: undefined }),
    ttl: fc.option(fc.constantFrom('1m', '3m', '20m', '2h'), { nil: undefined }),
    max: fc.option(fc.constantFrom(0, 1, 3), { nil: undefined }),
    maxAge: fc.option(fc.constantFrom('1m', '1h'), { nil: undefined }),
    scope: fc.constantFrom(undefined, 'task' as const, 'line' as const),
  })
  .map(({ ttl, max, maxAge, scope, when, effect, ...rest }): Omit<RuleSpec, 'name'> => {
    const renewal = {
      ...(max === undefined ? {} : { max }),
      ...(maxAge === undefined ? {} : { maxAge }),
      ...(scope === undefined || (max ?? maxAge) === undefined ? {} : { scope }),
    };
    const obligations = {
      ...(ttl === undefined ? {} : { ttl }),
      ...(Object.keys(renewal).length === 0 ? {} : { renewal }),
    };
    return {
      ...rule('x', effect as RuleSpec['effect'], rest),
      ...(when === undefined ? {} : { when }),
      ...(effect === 'allow' && Object.keys(obligations).length > 0 ? { obligations } : {}),
    };
  });
const anyRules = fc
  .array(anyRule, { maxLength: 8 })
  .map((rules) => rules.map((one, index): RuleSpec => ({ ...one, name: `r${index}` })));

const anyInput = fc
  .record({
    agent: fc.constantFrom(...agents),
    tool: fc.constantFrom(...tools),
    tier: fc.constantFrom('read', 'write'),
    context: fc.constantFrom<Record<string, string>[]>({}, { env: 'x' }, { env: 'y' }),
    renewal: fc.option(fc.record({ count: fc.nat(4), age: fc.constantFrom(0, 60_000, 4_000_000) }), { nil: undefined }),
    // Of a task that is a minute and a half old.
    earlier: fc.record({ credentials: fc.nat(5), age: fc.constantFrom(0, 30_000, 80_000) }),
  })
  .map(({ renewal, earlier: { credentials, age }, ...of }) =>
    input(of as Parameters<typeof input>[0], {
      renewal: renewal && renewing(renewal.count, renewal.age),
      facts: { ...nothingYet, earlier: { credentials, since: credentials === 0 ? undefined : now - age } },
    }),
  );

/** Design §3.8 said as plainly as it can be. */
function reference(rules: readonly RuleSpec[], of: DecisionInput): { effect: string; ttl: number | undefined } {
  const about = rules.filter(
    (one) =>
      (one.agents.includes('*') || one.agents.includes(of.task.agent)) &&
      (one.tools.includes('*') || one.tools.includes(of.access.tool)) &&
      one.tiers.includes(of.access.tier),
  );
  const came = (one: RuleSpec) => (one.when === undefined ? true : conditions[one.when]!(of.task.context));
  const denied = { effect: 'deny', ttl: undefined };
  if (about.some((one) => one.effect === 'deny' && came(one) !== false)) return denied;
  if (about.some((one) => one.effect === 'require_approval' && came(one) === 'error')) return denied;
  const allowing = about.filter((one) => one.effect === 'allow' && came(one) === true);
  const asked = about.some((one) => one.effect === 'require_approval' && came(one) === true);
  if (allowing.length === 0 && !asked) return denied;
  for (const { obligations } of allowing) {
    const { scope, max = 0, maxAge } = obligations?.renewal ?? {};
    const { credentials, since = now } = of.facts!.earlier!;
    if (scope === 'line') continue;
    if (max > 0 && credentials > max) return denied;
    if (now - since >= (parseDuration(maxAge ?? '') ?? Infinity)) return denied;
  }
  for (const { obligations } of allowing) {
    if (of.renewal === undefined) break;
    if (of.renewal.count >= (obligations?.renewal?.max ?? Infinity)) return denied;
    if (of.renewal.age >= (parseDuration(obligations?.renewal?.maxAge ?? '') ?? Infinity)) return denied;
  }
  // What may never be renewed is not renewed on an approval either.
  if (asked) return { effect: 'needs_approval', ttl: undefined };
  const lives = allowing.flatMap(({ obligations }) => parseDuration(obligations?.ttl ?? '') ?? []);
  return { effect: 'allow', ttl: lives.length === 0 ? 5 * 60_000 : Math.min(...lives, 60 * 60_000) };
}

const documents = [...agents.map((name) => agent(name)), ...tools.map((name) => tool(name))];
const compile = (rules: readonly RuleSpec[]) =>
  compilePolicy(rules.length === 0 ? documents : [...documents, policy('p', [...rules])]);

describe('for any rules and any question', () => {
  test('the decision is that of a slow and obvious decider', () => {
    fc.assert(
      fc.property(anyRules, fc.array(anyInput, { minLength: 1, maxLength: 5 }), (rules, inputs) => {
        const revision = compile(rules);
        for (const of of inputs) {
          const { effect, ttl } = revision.decide(of);
          expect({ effect, ttl }).toEqual(reference(rules, of));
        }
      }),
      { numRuns: 1_000 },
    );
  });

  test('neither the order of rules nor their spread over policies matters, even for the rule and reason told', () => {
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

  test('one more deny never gives more, and one more approval never allows', () => {
    const rank = { deny: 0, needs_approval: 1, allow: 2 };
    fc.assert(
      fc.property(anyRules, anyRule, anyInput, (rules, more, of) => {
        const before = compile(rules).decide(of);
        const { obligations: _, ...bare } = more;
        const denying: RuleSpec = { ...bare, name: 'more', effect: 'deny', reason: 'no' };
        const asking: RuleSpec = { ...bare, name: 'more', effect: 'require_approval' };
        expect(rank[compile([...rules, denying]).decide(of).effect]).toBeLessThanOrEqual(rank[before.effect]);
        if (before.effect !== 'allow') expect(compile([...rules, asking]).decide(of).effect).not.toBe('allow');
      }),
      { numRuns: 300 },
    );
  });

  test('obligations only tighten: one more rule that allows never lengthens what a rule has limited', () => {
    fc.assert(
      fc.property(anyRules, anyRule, anyInput, (rules, more, of) => {
        const limit: RuleSpec = { ...rule('limit', 'allow'), tiers: ['read', 'write'], obligations: { ttl: '7m' } };
        const before = compile([...rules, limit]).decide(of);
        const after = compile([...rules, limit, { ...more, name: 'more', effect: 'allow' }]).decide(of);
        if (before.effect !== 'allow') expect(after.effect).not.toBe('allow');
        if (after.effect === 'allow') expect(after.ttl!).toBeLessThanOrEqual(before.ttl!);
      }),
      { numRuns: 300 },
    );
  });
});
