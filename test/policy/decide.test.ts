import { describe, expect, test } from 'vitest';
import type { RenewalSpec, RuleSpec } from '../../src/policy/documents.ts';
import { describeRevision } from '../../src/policy/canonical.ts';
import { compilePolicy } from '../../src/policy/compile.ts';
import { ConfigError } from '../../src/config/issue.ts';
import { agent, input, now, policy, renewal, rule, tool } from './support.ts';

const minute = 60_000;
const compile = (...rules: RuleSpec[]) => compilePolicy([agent('a'), tool('t'), policy('p', rules)]);
const decide = (rules: RuleSpec[], ...of: Parameters<typeof input>) => compile(...rules).decide(input(...of));

describe('a decision (design §3.8)', () => {
  test('is a deny that names agent, tool and tier when no rule matches', () => {
    expect(decide([rule('r', 'allow', { tiers: ['write'] })])).toEqual({
      effect: 'deny',
      rule: '',
      reason: 'no rule allows agent a to use t:read',
      ttl: undefined,
    });
  });

  test('is a deny for an agent, a tool or a tier that policy does not register', () => {
    const rules = [rule('r', 'allow', { tiers: ['read', 'write'] })];
    expect(decide(rules, { agent: 'b' }).reason).toBe('policy registers no agent b');
    expect(decide(rules, { tool: 'u' }).reason).toBe('policy registers no tool u');
    expect(decide(rules, { tier: 'execute' }).reason).toBe('tool t has no tier execute');
    for (const of of [{ agent: 'b' }, { tool: 'u' }, { tier: 'execute' as const }]) {
      expect(decide(rules, of).effect).toBe('deny');
    }
  });

  test('is an allow for the tier’s default life when a rule allows', () => {
    expect(decide([rule('r', 'allow')])).toEqual({
      effect: 'allow',
      rule: 'p/r',
      reason: 'rule p/r allows it for 5m',
      ttl: 5 * minute,
    });
  });

  test('is a deny, with its reason, when any rule denies, whatever others say', () => {
    expect(decide([rule('a', 'allow'), rule('b', 'deny'), rule('c', 'require_approval')])).toEqual({
      effect: 'deny',
      rule: 'p/b',
      reason: 'b says no',
      ttl: undefined,
    });
  });

  test('needs approval when a rule asks for it and none denies', () => {
    const rules = [rule('a', 'allow'), rule('c', 'require_approval')];
    expect(decide(rules)).toMatchObject({
      effect: 'needs_approval',
      rule: 'p/c',
      reason: "rule p/c asks for a person's approval of t:read",
      ttl: undefined,
    });
    expect(decide([rule('c', 'require_approval', { reason: 'ask Ann' })]).reason).toBe('ask Ann');
  });

  test('matches rules by name and by star, for agent and tool alike', () => {
    for (const of of [{}, { agents: ['a'] }, { tools: ['t'] }, { agents: ['a'], tools: ['t'] }]) {
      expect(decide([rule('r', 'allow', of)]).effect).toBe('allow');
    }
    const revision = compilePolicy([
      agent('a'),
      agent('b'),
      tool('t'),
      tool('u'),
      policy('p', [rule('r', 'allow', { agents: ['b'] }), rule('s', 'allow', { tools: ['u'] })]),
    ]);
    expect(revision.decide(input()).effect).toBe('deny');
    expect(revision.decide(input({ agent: 'b' })).rule).toBe('p/r');
    expect(revision.decide(input({ tool: 'u' })).rule).toBe('p/s');
  });
});

describe('a condition', () => {
  const allows = (when: string, ...of: Parameters<typeof input>) =>
    decide([rule('r', 'allow', { when })], ...of).effect === 'allow';

  test.each([
    ['agent.name == "a" && agent.owner == "o" && agent.labels.team == "data"'],
    ['tool.name == "t" && tool.owner == "o" && tool.labels["level"] == "high"'],
    ['task.id == "tsk_1" && task.opener == "spiffe://acme.test/orchestrator"'],
    ['task.age == 90'],
    ['task.context.env == "prod" && task.context["a.b"] == "c"'],
    ['task.labels.env == "live" && !has(task.labels.other)'],
    ['has(task.context.env) && !has(task.context.other)'],
    ['tier == "read"'],
    ['caller.workload == ""'],
    ['!renewal.active && renewal.count == 0 && renewal.age == 0'],
    ['time.hour == 13 && time.minute == 45 && time.weekday == 1'],
    ['time.now > timestamp("2026-03-02T13:45:29Z") && time.now < timestamp("2026-03-02T13:45:31Z")'],
    ['task.context.exists(k, k.startsWith("en"))'],
    ['task.context.env.matches("^pr.d$")'],
    ['task.context.other == "x" || tier == "read"'],
  ])('sees what it names: %s', (when) => {
    const revision = compilePolicy([
      agent('a', { labels: { team: 'data' } }),
      tool('t', ['read'], { labels: { level: 'high' } }),
      policy('p', [rule('r', 'allow', { when })]),
    ]);
    expect(revision.decide(input({ context: { env: 'prod', 'a.b': 'c' }, labels: { env: 'live' } }))).toMatchObject({
      effect: 'allow',
    });
  });

  test('sees who asks and what is renewed', () => {
    expect(allows('caller.workload == "w"', {}, { workload: 'w' })).toBe(true);
    const third = { renewal: renewal(2, 61_999) };
    expect(allows('renewal.active && renewal.count == 2 && renewal.age == 61', {}, third)).toBe(true);
  });

  test('that does not hold keeps its rule from matching, and is named when nothing else matches', () => {
    expect(decide([rule('r', 'allow', { when: 'tier == "write"' })]).reason).toBe(
      'no rule allows agent a to use t:read; the condition of p/r does not hold',
    );
    const rules = [
      rule('r', 'allow'),
      rule('d', 'deny', { when: 'tier == "write"' }),
      rule('q', 'require_approval', { when: 'false' }),
    ];
    expect(decide(rules).effect).toBe('allow');
  });

  test('does not take what every object has for a field of the context', () => {
    for (const name of ['constructor', 'toString', '__proto__', 'hasOwnProperty']) {
      expect(allows(`has(task.context.${name})`)).toBe(false);
      expect(allows(`task.context.${name} == "x"`)).toBe(false);
    }
  });
});

describe('a condition that cannot be evaluated (design §3.7)', () => {
  const when = 'task.context.env == "prod"';

  test('does not allow', () => {
    expect(decide([rule('r', 'allow', { when })])).toMatchObject({
      effect: 'deny',
      rule: '',
      reason: 'no rule allows agent a to use t:read; the condition of p/r could not be evaluated: no such key: env',
    });
    expect(decide([rule('r', 'allow', { when }), rule('s', 'allow')])).toMatchObject({ effect: 'allow', rule: 'p/s' });
  });

  test('denies where it might have denied', () => {
    expect(decide([rule('r', 'allow'), rule('d', 'deny', { when })])).toMatchObject({
      effect: 'deny',
      rule: 'p/d',
      reason: 'd says no (denied because a condition could not be evaluated: no such key: env)',
    });
  });

  test('denies where it might have asked for approval', () => {
    expect(decide([rule('r', 'allow'), rule('q', 'require_approval', { when })])).toMatchObject({
      effect: 'deny',
      rule: 'p/q',
    });
  });

  test('does not tell the values that it failed on', () => {
    const when = 'timestamp(task.context.at) < time.now && int(task.context.at) > 1';
    const { reason } = decide([rule('d', 'deny', { when })], { context: { at: 'hunter2' } });
    expect(reason).toContain('could not be evaluated');
    expect(reason).not.toContain('hunter2');
  });
});

describe('the life that a decision grants (invariant 4)', () => {
  const ttl = (...texts: string[]) =>
    decide(texts.map((text, index) => rule(`r${index}`, 'allow', { obligations: { ttl: text } })));

  test('is the least of all rules that allow, whichever comes first', () => {
    expect(ttl('10m', '3m', '20m')).toMatchObject({ ttl: 3 * minute, rule: 'p/r1' });
    expect(ttl('3m', '10m')).toMatchObject({ ttl: 3 * minute, rule: 'p/r0' });
  });

  test('may be above the default, and never above the tier’s maximum', () => {
    expect(ttl('20m').ttl).toBe(20 * minute);
    expect(ttl('5h').ttl).toBe(60 * minute);
  });

  test('is not loosened by a rule that says nothing', () => {
    expect(decide([rule('a', 'allow'), rule('b', 'allow', { obligations: { ttl: '2m' } })])).toMatchObject({
      ttl: 2 * minute,
      rule: 'p/b',
    });
  });
});

describe('a renewal (invariant 4)', () => {
  const renew = (count: number, age: number, ...rules: RuleSpec[]) =>
    decide(rules, {}, { renewal: renewal(count, age) });
  const limited = (name: string, limits: RenewalSpec) => rule(name, 'allow', { obligations: { renewal: limits } });

  test('is refused once the allowed number has been made', () => {
    expect(renew(1, 0, limited('r', { max: 2 })).effect).toBe('allow');
    expect(renew(2, 0, limited('r', { max: 2 }))).toMatchObject({
      effect: 'deny',
      rule: 'p/r',
      reason: 'rule p/r allows renewal at most 2 times, which have been used',
    });
    expect(renew(0, 0, limited('r', { max: 0 })).reason).toBe('rule p/r allows no renewal');
    expect(renew(1, 0, limited('r', { max: 1 })).reason).toBe(
      'rule p/r allows renewal at most once, which have been used',
    );
  });

  test('is refused once its line is too old', () => {
    expect(renew(9, 60 * minute - 1, limited('r', { maxAge: '1h' })).effect).toBe('allow');
    expect(renew(0, 60 * minute, limited('r', { maxAge: '1h' }))).toMatchObject({
      effect: 'deny',
      rule: 'p/r',
      reason: 'rule p/r allows renewal until 1h after the first issue, which is over',
    });
  });

  test('keeps to the strictest of all rules that allow', () => {
    const rules = [limited('r', { max: 5, maxAge: '1h' }), limited('s', { max: 3 }), limited('t', { maxAge: '10m' })];
    expect(renew(3, 0, ...rules)).toMatchObject({ effect: 'deny', rule: 'p/s' });
    expect(renew(0, 10 * minute, ...rules)).toMatchObject({ effect: 'deny', rule: 'p/t' });
    expect(renew(2, 9 * minute, ...rules).effect).toBe('allow');
  });

  test('has no limit of its own where no rule sets one, and the limits do not touch a first issue', () => {
    expect(renew(1_000, 1_000 * minute, rule('r', 'allow')).effect).toBe('allow');
    expect(decide([limited('r', { max: 0 })]).effect).toBe('allow');
  });
});

describe('a revision', () => {
  const documents = [
    agent('a'),
    agent('b'),
    tool('t'),
    policy('p', [rule('r', 'allow')]),
    policy('q', [rule('r', 'deny')]),
  ];

  test('has a digest of its documents, whatever their order and the order of their fields', () => {
    const digest = compilePolicy(documents).digest;
    expect(digest).toMatch(/^sha256:[0-9a-f]{64}$/);
    expect(compilePolicy([...documents].reverse()).digest).toBe(digest);
    const turned = documents.map((one) => Object.fromEntries(Object.entries(one).reverse()));
    expect(compilePolicy(turned).digest).toBe(digest);
    expect(compilePolicy([...documents.slice(1), agent('a', { owner: 'x' })]).digest).not.toBe(digest);
  });

  test('can be written down and made again from that', () => {
    const revision = compilePolicy(documents);
    const again = compilePolicy(JSON.parse(describeRevision(revision)) as unknown[]);
    expect(again.digest).toBe(revision.digest);
    expect(describeRevision(again)).toBe(describeRevision(revision));
  });

  test('says which agents a workload can act as', () => {
    const revision = compilePolicy([
      agent('a'),
      { ...agent('b'), spec: { workloads: ['spiffe://acme.test/agent/*'] } },
    ]);
    expect(revision.agentsOf('spiffe://acme.test/agent/a')).toEqual(new Set(['a', 'b']));
    expect(revision.agentsOf('spiffe://acme.test/agent/a/b')).toEqual(new Set(['b']));
    expect(revision.agentsOf('spiffe://acme.test/agent')).toEqual(new Set());
    expect(revision.agentsOf('spiffe://evil.test/agent/a')).toEqual(new Set());
  });

  test('carries agents and tools as registered, and cannot be changed', () => {
    const revision = compilePolicy([
      agent('a', { description: 'd', reviewBy: '2027-01-01', labels: { team: 'x' } }),
      {
        ...tool('t'),
        spec: {
          resource: 'https://t.test',
          tiers: {
            write: {
              provider: 'postgres',
              revocation: 'bounded',
              ttl: { min: '1m', default: '5m', max: '1h' },
              actions: ['insert'],
              postgres: { target: 'w', groupRole: 'g' },
            },
          },
        },
      },
    ]);
    expect(revision.agents.get('a')).toEqual({
      name: 'a',
      owner: 'o',
      description: 'd',
      reviewBy: '2027-01-01',
      labels: { team: 'x' },
      workloads: ['spiffe://acme.test/agent/a'],
    });
    expect(revision.tools.get('t')).toEqual({
      name: 't',
      owner: 'o',
      description: '',
      resource: 'https://t.test',
      labels: {},
      tiers: {
        write: {
          provider: 'postgres',
          revocation: 'bounded',
          ttl: { min: minute, default: 5 * minute, max: 60 * minute },
          actions: ['insert'],
          options: { target: 'w', groupRole: 'g' },
        },
      },
      workloads: [],
    });
    expect(() => Object.assign(revision.tools.get('t')!.tiers.write!.ttl, { max: 1 })).toThrow(TypeError);
    expect(() => Object.assign(revision, { digest: '' })).toThrow(TypeError);
  });

  test('is not made of documents that are wrong', () => {
    expect(() => compilePolicy([agent('a'), agent('a')])).toThrow(ConfigError);
    expect(() => compilePolicy([policy('p', [rule('r', 'allow', { agents: ['nobody'] })])])).toThrow(
      /there is no agent "nobody"/,
    );
  });

  test('does not change when the documents do, after it was made', () => {
    const rules = [rule('r', 'allow')];
    const document = policy('p', rules);
    const revision = compilePolicy([agent('a'), tool('t'), document]);
    rules[0]!.effect = 'deny';
    rules.push(rule('d', 'deny'));
    expect(revision.decide(input({}, { now })).effect).toBe('allow');
  });

  test('of rules that name too many pairs one by one is refused', () => {
    const agents = Array.from({ length: 500 }, (_, n) => agent(`a${n}`));
    const tools = Array.from({ length: 500 }, (_, n) => tool(`t${n}`));
    const names = { agents: agents.map((a) => a.metadata.name), tools: tools.map((t) => t.metadata.name) };
    const rules = ['r', 's', 't'].map((name) => rule(name, 'allow', names));
    expect(() => compilePolicy([...agents, ...tools, policy('p', rules)])).toThrow(
      /spec\.rules\[2\]: the rules up to here name more than 500000 pairs of agents and tools; use "\*"$/,
    );
  });
});
