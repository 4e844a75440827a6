import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { parseDuration } from '../../src/config/duration.ts';
import { limitFault } from '../../src/domain/arguments.ts';
import { decide } from '../../src/domain/decision.ts';
import type { BoundedDecision } from '../../src/domain/decision.ts';
import type { Task } from '../../src/domain/model.ts';
import { compilePolicy } from '../../src/policy/compile.ts';
import type { RuleSpec } from '../../src/policy/documents.ts';
import { agent, input, now, policy, rule } from './support.ts';

const agents = ['a', 'b', 'c'];
const access = { tool: 't', tier: 'read' } as const;
const amounts = Array.from({ length: 20 }, (_, amount) => amount);
const hour = 3_600_000;

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

const conditions: Record<string, (task: Task) => boolean> = {
  'has(task.context.env)': ({ context }) => context['env'] !== undefined,
  '!has(task.context.env)': ({ context }) => context['env'] === undefined,
  'task.remaining > 1800': ({ deadline }) => deadline - now > hour / 2,
};

const maybe = <T>(...values: T[]) => fc.option(fc.constantFrom(...values), { nil: undefined });
const anyRules = fc
  .array(
    fc.record({
      agents: fc.subarray(agents, { minLength: 1 }),
      effect: fc.constantFrom('allow', 'allow', 'allow', 'allow', 'require_approval', 'deny'),
      when: maybe(...Object.keys(conditions)),
      ttl: maybe('2m', '9m', '40m'),
      limit: maybe({ maximum: 15 }, { maximum: 4 }, { minimum: 3 }, { minimum: 12 }),
    }),
    { maxLength: 7 },
  )
  .map((specs) => [
    // Chains that may do nothing at all say little about what is handed down.
    rule('base', 'allow'),
    ...specs.map(({ agents: names, effect, when, ttl, limit }, index): RuleSpec => {
      const obligations = { ...(ttl && { ttl }), ...(limit && { arguments: { amount: limit } }) };
      return {
        ...rule(`r${index}`, effect as RuleSpec['effect'], { agents: names, ...(when && { when }) }),
        ...(effect === 'deny' || Object.keys(obligations).length === 0 ? {} : { obligations }),
      };
    }),
  ]);

const delegating = fc.record(Object.fromEntries(agents.map((name) => [name, fc.subarray(agents, { minLength: 2 })])));

/** From the task that asks up to its root, each with a deadline that is no later than that of the one above it. */
const anyChain = fc
  .array(
    fc.record({
      agent: fc.constantFrom(...agents),
      listed: fc.constantFrom(true, true, true, true, true, false),
      env: fc.boolean(),
      remaining: fc.constantFrom(hour / 4, hour, 2 * hour),
    }),
    { minLength: 2, maxLength: 4 },
  )
  .map((hops) => {
    const ends = hops.map(({ remaining }) => remaining).sort((x, y) => x - y);
    return hops.map(({ agent: name, listed, env }, depth): Task => {
      const task = input({ agent: name, context: env ? { env: 'x' } : {} }).task;
      const taskId = `tsk_${depth}`;
      const parentTaskId = depth === hops.length - 1 ? undefined : `tsk_${depth + 1}`;
      const tools = listed || depth === 0 ? [access] : [];
      return { ...task, taskId, parentTaskId, tools, deadline: now + ends[depth]! } as unknown as Task;
    });
  });

interface Answer {
  effect: string;
  life: number;
  /** Amounts that a credential would be good for. */
  amounts: readonly number[];
}
const nothing: Answer = { effect: 'deny', life: 0, amounts: [] };

/** What one task by itself may do, and then no more than all of them. */
function reference(rules: readonly RuleSpec[], to: Record<string, string[]>, chain: readonly Task[]): Answer {
  const each = chain.map((task): Answer => {
    const about = rules.filter((one) => one.agents.includes('*') || one.agents.includes(task.agent));
    const holding = about.filter(({ when }) => when === undefined || conditions[when]!(task));
    const granting = holding.filter(({ effect }) => effect !== 'deny');
    if (granting.length < holding.length || granting.length === 0 || task.tools.length === 0) return nothing;
    const lives = granting.flatMap(({ obligations }) => parseDuration(obligations?.ttl ?? '') ?? []);
    const life = Math.min(lives.length === 0 ? 20 * 60_000 : Math.min(...lives), task.deadline - now);
    const limits = granting.map(({ obligations }) => obligations?.arguments?.['amount'] ?? {});
    const fitting = amounts.filter((amount) => limits.every((limit) => limitFault(limit, amount) === undefined));
    if (fitting.length === 0) return nothing;
    const asks = granting.some(({ effect }) => effect === 'require_approval');
    return { effect: asks ? 'needs_approval' : 'allow', life, amounts: fitting };
  });
  const handed = chain.slice(1).every((task, depth) => to[task.agent]!.includes(chain[depth]!.agent));
  const common = amounts.filter((amount) => each.every((one) => one.amounts.includes(amount)));
  if (!handed || common.length === 0 || each.some(({ effect }) => effect === 'deny')) return nothing;
  const asks = each.some(({ effect }) => effect === 'needs_approval');
  return {
    effect: asks ? 'needs_approval' : 'allow',
    life: Math.min(...each.map(({ life }) => life)),
    amounts: common,
  };
}

function answerOf(decision: BoundedDecision): Answer {
  if (decision.effect !== 'allow' && decision.effect !== 'needs_approval') return nothing;
  const { life, obligations } = decision.effect === 'allow' ? decision : decision.granted;
  const limit = obligations.argumentLimits?.['amount'] ?? {};
  return { effect: decision.effect, life, amounts: amounts.filter((one) => limitFault(limit, one) === undefined) };
}

const compile = (rules: readonly RuleSpec[], to: Record<string, string[]>) =>
  compilePolicy([
    ...agents.map((name) => ({
      ...agent(name),
      spec: { workloads: [`spiffe://acme.test/agent/${name}`], delegation: { to: to[name] } },
    })),
    tool,
    policy('p', [...rules]),
  ]);

const ask = (revision: ReturnType<typeof compile>, [task, ...above]: readonly Task[]) =>
  answerOf(
    decide(revision, task!, access, {
      workload: undefined,
      now,
      renewal: undefined,
      arguments: {},
      above: above.length === 0 ? undefined : above.map((one) => ({ task: one, facts: undefined, heartbeat: true })),
    }),
  );

describe('for any rules, any delegation and any chain of tasks', () => {
  test('the decision is that of a slow and obvious decider, who asks each task by itself', () => {
    fc.assert(
      fc.property(anyRules, delegating, anyChain, (rules, to, chain) => {
        expect(ask(compile(rules, to), chain)).toEqual(reference(rules, to, chain));
      }),
      { numRuns: 1_000 },
    );
  });

  test('a child has at most what its parent has: no more effects, no longer life, no further amounts', () => {
    const rank: Record<string, number> = { deny: 0, needs_approval: 1, allow: 2 };
    let handedDown = 0;
    fc.assert(
      fc.property(anyRules, delegating, anyChain, (rules, to, chain) => {
        const revision = compile(rules, to);
        const child = ask(revision, chain);
        const parent = ask(revision, chain.slice(1));
        expect(rank[child.effect]).toBeLessThanOrEqual(rank[parent.effect]!);
        if (child.effect === 'deny') return;
        handedDown++;
        expect(child.life).toBeLessThanOrEqual(parent.life);
        expect(parent.amounts).toEqual(expect.arrayContaining([...child.amounts]));
      }),
      { numRuns: 1_000 },
    );
    // Else the property would hold for want of anything to hand down.
    expect(handedDown).toBeGreaterThan(50);
  });
});
