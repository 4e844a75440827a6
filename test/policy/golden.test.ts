import { describe, expect, test } from 'vitest';
import { formatIssue } from '../../src/config/issue.ts';
import { advise } from '../../src/policy/advise.ts';
import { loadPolicyDirectory } from '../../src/policy/load-policy.ts';
import { checkTests } from '../../src/policy/run-tests.ts';
import { temporaryFolder } from '../config/support.ts';
import { agentYaml, complaints, fill, knownTargets, now, ruleYaml, toolYaml } from './support.ts';

/** With mistakes.test.ts and language.test.ts: every kind of mistake that the check knows, word for word. */

const document = (kind: string, spec: string, metadata = 'name: d, owner: o') =>
  `apiVersion: leasehold.dev/v1\nkind: ${kind}\nmetadata: { ${metadata} }\nspec:\n${spec}`;
const right = { 'a.yaml': agentYaml, 't.yaml': toolYaml };
const argumentTool = toolYaml
  .replace('max: 1h }', 'max: 1h }\n      arguments: { amount: { type: integer }, order: { type: string } }')
  .replace('max: 10m }', 'max: 10m }\n      arguments: { order: { type: string } }');
const vaultTool = (options: string, tier = '') =>
  document(
    'Tool',
    `  resource: https://ledger.acme.test
  tiers:
    read:
      provider: vault
      revocation: immediate
      ttl: { min: 1m, default: 5m, max: 1h }
      vault: { server: main, mount: database, path: creds/ro${options} }
${tier}`,
    'name: ledger, owner: o',
  );

describe('documents that do not go together', () => {
  test.each([
    [
      'a condition that is defined twice',
      {
        'd.yaml': document('Definitions', '  conditions: { office: task.age > 1 }'),
        'e.yaml': document('Definitions', '  conditions: { office: task.age > 2 }', 'name: e, owner: o'),
      },
      'e.yaml:5:25: spec.conditions.office: there is a condition "office" already; see d.yaml:5:17',
    ],
    [
      'a list that is defined twice',
      {
        'd.yaml': document('Definitions', '  lists: { all: [x] }'),
        'e.yaml': document('Definitions', '  lists: { all: [y] }', 'name: e, owner: o'),
      },
      'e.yaml:5:12: spec.lists.all: there is a list "all" already; see d.yaml:5:12',
    ],
    [
      'a condition that names one that nobody defined, seen from its use',
      {
        'd.yaml': document('Definitions', '  conditions: { a: conditions.b && true, c: task.age > 1 }'),
        'p.yaml': ruleYaml('      when: conditions.a'),
      },
      'd.yaml:5:31: spec.conditions.a: there is no condition "b"; did you mean "a"?',
    ],
    [
      'conditions that name others without end',
      {
        'd.yaml': document(
          'Definitions',
          `  conditions:\n    a: ${Array(60).fill('conditions.b').join(' || ')}\n    b: ${Array(60).fill('task.age > 1').join(' || ')}`,
        ),
      },
      'd.yaml:6:8: spec.conditions.a: the conditions that it names make it longer than 32768 characters; name fewer of them, or shorten them',
    ],
    [
      'a time zone of the organisation that is none',
      { 'd.yaml': document('Defaults', '  timeZone: Berlin') },
      'd.yaml:5:13: spec.timeZone: there is no time zone "Berlin"; name a place, such as Europe/Berlin, or UTC',
    ],
    [
      'bounds of the organisation in disorder',
      { 'd.yaml': document('Defaults', '  ttl: { min: 10s, default: 2h, max: 1h }') },
      'd.yaml:5:29: spec.ttl.default: is longer than max (2h > 1h); min ≤ default ≤ max',
    ],
    [
      'an agent whose name would be a list',
      { 'b.yaml': agentYaml.replace('name: analyst', 'name: lists.all') },
      'b.yaml:3:19: metadata.name: begins with "lists.", which in a rule names a list; choose another name',
    ],
    [
      'delegation to an agent that is none',
      {
        'b.yaml': document(
          'Agent',
          '  workloads: [spiffe://acme.test/lead]\n  delegation: { to: [analist] }',
          'name: lead, owner: o',
        ),
      },
      'b.yaml:6:22: spec.delegation.to[0]: there is no agent "analist"; did you mean "analyst"?',
    ],
    [
      'delegation to the same agent twice',
      {
        'b.yaml': document(
          'Agent',
          '  workloads: [spiffe://acme.test/lead]\n  delegation: { to: [analyst, analyst] }',
          'name: lead, owner: o',
        ),
      },
      'b.yaml:6:31: spec.delegation.to[1]: names "analyst" a second time; remove it',
    ],
    [
      'a workload of a trust domain that is not configured',
      { 'b.yaml': document('Agent', '  workloads: [spiffe://other.test/lead]', 'name: lead, owner: o') },
      'b.yaml:5:15: spec.workloads[0]: no trust domain "other.test" is configured; add it to the configuration\'s attestation, or use one of: acme.test',
    ],
  ] as [string, Record<string, string>, string][])('%s', async (_what, files, expected) => {
    const known = { knownTargets, knownTrustDomains: new Set(['acme.test']) };
    expect((await complaints({ ...right, ...files }, known)).join('\n')).toBe(expected);
  });

  test('rules that name more pairs of agents and tools than are looked up', async () => {
    const names = (kind: string, count: number) => Array.from({ length: count }, (_, at) => `${kind}${at}`);
    const agents = names('a', 1_000).map((name) =>
      document('Agent', `  workloads: [spiffe://acme.test/${name}]\n`, `name: ${name}, owner: o`),
    );
    const tools = names('t', 501).map((name) =>
      document(
        'Tool',
        `  resource: https://${name}.test\n  ttl: { min: 1m, default: 5m, max: 1h }\n  tiers:\n    read: { provider: jwt, revocation: immediate }\n`,
        `name: ${name}, owner: o`,
      ),
    );
    const lists = document(
      'Definitions',
      `  lists:\n    agents: [${names('a', 1_000).join()}]\n    tools: [${names('t', 501).join()}]\n`,
    );
    const text = ruleYaml('').replace('[analyst]', '[lists.agents]').replace('[warehouse]', '[lists.tools]');
    const files = { 'a.yaml': agents.join('---\n'), 't.yaml': tools.join('---\n'), 'd.yaml': lists, 'p.yaml': text };
    expect(await complaints(files)).toEqual([
      'p.yaml:6:7: spec.rules[0]: the rules up to here name more than 500000 pairs of agents and tools; use "*"',
    ]);
  });
});

describe('a rule', () => {
  test.each([
    [
      'with an approval that nobody is asked for',
      '      obligations: { approval: { count: 2 } }',
      'p.yaml:11:22: spec.rules[0].obligations.approval: has no effect with allow; put it on a rule with effect require_approval',
    ],
    [
      'with approvers that are none',
      '      obligations: { approval: { approvers: [a b] } }',
      'p.yaml:11:46: spec.rules[0].obligations.approval.approvers[0]: must be a group without spaces, or a workload (spiffe://…) that may end in /*; write it in that form',
    ],
    [
      'with a limit whose minimum is above its maximum',
      '      obligations: { arguments: { amount: { minimum: 5, maximum: 4 } } }',
      'p.yaml:11:54: spec.rules[0].obligations.arguments.amount.minimum: is greater than maximum (5 > 4); no number would fit',
    ],
    [
      'with a limit on a text where a number is taken',
      '      obligations: { arguments: { amount: { enum: [a] } } }',
      'p.yaml:11:52: spec.rules[0].obligations.arguments.amount.enum[0]: is not of type integer; write a number, without quotes',
    ],
    [
      'with a limit on a number where a text is taken',
      '      obligations: { arguments: { order: { enum: [1] } } }',
      'p.yaml:11:51: spec.rules[0].obligations.arguments.order.enum[0]: is not of type string; put it in quotes',
    ],
    [
      'with a life out of bounds',
      '      obligations: { ttl: 8d }',
      'p.yaml:11:27: spec.rules[0].obligations.ttl: 8d is outside 1s to 7d; it means: longest life of a credential under this rule',
    ],
    [
      'with a life that is none',
      '      obligations: { ttl: soon }',
      'p.yaml:11:27: spec.rules[0].obligations.ttl: "soon" is not a duration; write it like 30s, 10m, 1h30m or 7d',
    ],
    [
      'with more uses than there can be',
      '      obligations: { maxUses: 1000001 }',
      'p.yaml:11:31: spec.rules[0].obligations.maxUses: must be at most 1000000; it means: how many credentials of a tool and tier one tree of tasks gets, renewals not counted',
    ],
    [
      'with a condition that is empty',
      "      when: ''",
      'p.yaml:11:13: spec.rules[0].when: must not be empty; fill it in, or leave it out',
    ],
    [
      'with a condition that is too long',
      `      when: "${'x'.repeat(5_000)}"`,
      'p.yaml:11:13: spec.rules[0].when: must be at most 4096 characters long; shorten it',
    ],
    [
      'with a reason that is too long',
      `      reason: ${'x'.repeat(600)}`,
      'p.yaml:11:15: spec.rules[0].reason: must be at most 512 characters long; shorten it',
    ],
    [
      'with a tool of a rate that is not literal',
      "      when: rate.agent('1h', agent.name) < 1",
      "p.yaml:11:30: spec.rules[0].when: the tool must be a literal name; write it like rate.agent('1h', 'crm')",
    ],
    [
      'with a kind of signal that is none',
      "      when: signals.any('owner_lefd')",
      'p.yaml:11:25: spec.rules[0].when: there is no kind of signal "owner_lefd"; did you mean "owner_left"?',
    ],
    [
      'with a kind of signal that is not literal',
      '      when: signals.any(agent.name)',
      "p.yaml:11:25: spec.rules[0].when: the kind of signal must be a literal text; write it like signals.any('owner_left')",
    ],
    [
      'with a time zone that is not literal',
      '      when: time.zone(agent.name).hour > 1',
      "p.yaml:11:23: spec.rules[0].when: the time zone must be a literal text; name a place, for example time.zone('Europe/Berlin').hour",
    ],
    [
      'with a name that the environment lacks',
      "      when: environment.regon == 'eu'",
      'p.yaml:11:25: spec.rules[0].when: the configuration\'s environment has no "regon"; did you mean "region"?',
    ],
    [
      'with an argument that no tool takes, within has()',
      '      when: has(args.amont)',
      'p.yaml:11:22: spec.rules[0].when: none of the rule\'s tools takes an argument "amont"; did you mean "amount"?',
    ],
    [
      'with a list that nobody defined, within has()',
      '      when: has(lists.some)',
      'p.yaml:11:23: spec.rules[0].when: there is no list "some"; define it in a Definitions document, under spec.lists',
    ],
    [
      'with a character that no condition has',
      "      when: 'task.age # 1 ? 2'",
      'p.yaml:11:23: spec.rules[0].when: the condition cannot be read: unexpected character: #; conditions are CEL (https://cel.dev)',
    ],
    [
      'with a pattern that goes back to a group',
      String.raw`      when: tier.matches(r'^(a)\1$')`,
      'p.yaml:11:26: spec.rules[0].when: the pattern refers back to a group; startsWith, endsWith, contains and "in" often do',
    ],
    [
      'with a field twice',
      '      effect: deny',
      'p.yaml:11:7: not valid YAML: map keys must be unique; remove one of the two',
    ],
    [
      'with a value twice',
      '      obligations: { arguments: { order: { enum: [a, a] } } }',
      'p.yaml:11:51: spec.rules[0].obligations.arguments.order.enum[0]: stands in this list twice; remove one of the two',
    ],
  ])('%s', async (_what, fields, expected) => {
    const files = { 'a.yaml': agentYaml, 't.yaml': argumentTool, 'p.yaml': ruleYaml(fields) };
    const found = await complaints(files, { knownTargets, environment: { region: 'eu' } });
    expect(found.join('\n')).toBe(expected);
  });

  test('with a limit on an argument that one of its tiers does not take', async () => {
    const text = ruleYaml('      obligations: { arguments: { amount: { maximum: 1 } } }').replace(
      '[read]',
      '[read, write]',
    );
    expect(await complaints({ 'a.yaml': agentYaml, 't.yaml': argumentTool, 'p.yaml': text })).toEqual([
      'p.yaml:11:35: spec.rules[0].obligations.arguments.amount: warehouse:write takes no argument "amount"; leave that tool or tier out of the rule, or declare the argument there',
    ]);
  });
});

describe('a tool', () => {
  const argument = (spec: string) => toolYaml.replace('max: 1h }', `max: 1h }\n      arguments: { a: ${spec} }`);
  const ttl = (of: string, tier: string) =>
    toolYaml.replace('spec:', `spec:\n  ttl: ${of}`).replace('{ min: 1m, default: 5m, max: 1h }', tier);
  test.each([
    [
      'with no owner',
      toolYaml.replace(', owner: data@acme.test', ''),
      't.yaml:3:1: metadata: "owner" is missing; add owner: who is accountable',
    ],
    [
      'with a minimum for a text',
      argument('{ type: string, minimum: 1 }'),
      't.yaml:11:48: spec.tiers.read.arguments.a.minimum: has no meaning for type string; remove it',
    ],
    [
      'with a value of the wrong type',
      argument('{ type: integer, enum: [1, 1.5] }'),
      't.yaml:11:50: spec.tiers.read.arguments.a.enum[1]: is not of type integer; write a number, without quotes',
    ],
    [
      'with a text where numbers are taken',
      argument('{ type: number, enum: [a] }'),
      't.yaml:11:46: spec.tiers.read.arguments.a.enum[0]: is not of type number; write a number, without quotes',
    ],
    [
      'with a number where texts are taken',
      argument('{ type: string, enum: [1] }'),
      't.yaml:11:46: spec.tiers.read.arguments.a.enum[0]: is not of type string; put it in quotes',
    ],
    [
      'with a minimum above the maximum',
      argument('{ type: number, minimum: 2, maximum: 1 }'),
      't.yaml:11:48: spec.tiers.read.arguments.a.minimum: is greater than maximum (2 > 1); no number would fit',
    ],
    [
      'with a pattern that is none',
      argument("{ type: string, pattern: '(' }"),
      't.yaml:11:48: spec.tiers.read.arguments.a.pattern: the pattern is not a regular expression; enum often does',
    ],
    [
      'with a pattern without bound',
      argument("{ type: string, pattern: '(a+)+' }"),
      't.yaml:11:48: spec.tiers.read.arguments.a.pattern: the pattern repeats a group that itself repeats or chooses; enum often does',
    ],
    [
      'with a pattern for a long text',
      argument("{ type: string, pattern: 'a+', maxLength: 300 }"),
      't.yaml:11:65: spec.tiers.read.arguments.a.maxLength: is more than 256, and the text has a pattern to match; say at most 256, or leave the pattern out',
    ],
    [
      'with an argument that cannot be named',
      argument('{ type: string }').replace('{ a:', '{ A-b:'),
      't.yaml:11:20: spec.tiers.read.arguments.A-b: "A-b" is not a name: a lower-case letter, then at most 62 of a-z, 0-9 and "_"; rename it',
    ],
    [
      'whose tier goes beyond it',
      ttl('{ max: 30m }', '{ min: 1m, default: 5m, max: 1h }'),
      "t.yaml:11:41: spec.tiers.read.ttl.max: is longer than the tool's max (1h > 30m); a level may narrow the bounds above it, never widen them",
    ],
    [
      'whose minimum its own default undercuts',
      ttl('{ min: 2m, max: 1h }', '{ default: 1m, max: 30m }'),
      "t.yaml:11:23: spec.tiers.read.ttl.default: is shorter than the tool's min (1m < 2m); a level may narrow the bounds above it, never widen them\nt.yaml:15:19: spec.tiers.write.ttl.min: is shorter than the tool's min (1m < 2m); a level may narrow the bounds above it, never widen them",
    ],
    [
      'whose tier has a default below its own minimum',
      ttl('{ max: 2h }', '{ min: 10m, default: 5m, max: 1h }'),
      't.yaml:11:19: spec.tiers.read.ttl.min: is longer than default (10m > 5m); min ≤ default ≤ max',
    ],
    [
      'at a Vault server that is none',
      vaultTool('').replace('server: main', 'server: mian'),
      't.yaml:11:24: spec.tiers.read.vault.server: the configuration has no Vault server "mian"; did you mean "main"?',
    ],
    [
      'with a Vault parameter of an argument that is none',
      vaultTool(", parameters: { role: '{{args.role}}' }"),
      't.yaml:11:83: spec.tiers.read.vault.parameters.role: uses args.role, and the tier declares no such argument; declare it under arguments',
    ],
    [
      'that Vault cannot take back at once',
      vaultTool(', leaseless: true, endsWithin: 1h'),
      't.yaml:9:19: spec.tiers.read.revocation: is immediate, but Vault keeps no lease of this secret and cannot take it back; say bounded or none',
    ],
    [
      'that its provider refuses',
      vaultTool('').replace('mount: database', 'mount: sys'),
      't.yaml:11:37: spec.tiers.read.vault.mount: must be the mount of a secrets engine, such as database; not sys, auth, identity or cubbyhole; docs/policies.md lists the options of vault',
    ],
  ])('%s', async (_what, text, expected) => {
    const known = { knownTargets, knownVaults: new Set(['main']) };
    expect((await complaints({ 't.yaml': text }, known)).join('\n')).toBe(expected);
  });
});

describe('a file', () => {
  test.each([
    [
      'that is indented with tabs',
      'a:\n\tb: 1',
      'a.yaml:2:1: not valid YAML: tabs are not allowed as indentation; indent with spaces',
    ],
    [
      'whose quotes do not end',
      'a: "b',
      'a.yaml:1:6: not valid YAML: missing closing "quote; look for a quote or bracket that is not closed',
    ],
    [
      'whose brackets do not end',
      'a: [b',
      'a.yaml:1:6: not valid YAML: flow sequence in block collection must be sufficiently indented and end with a ]; close what is open there, and align it with the lines around it',
    ],
    ['with a tag', 'a: !secret b', 'a.yaml:1:4: not valid YAML: unresolved tag: !secret; leave the tag (!…) out'],
    [
      'that is nested without end',
      '['.repeat(40),
      'a.yaml:1:33: nested too deeply (limit 32 levels); look for a bracket that is not closed',
    ],
    [
      'whose kind is no text',
      'kind: 5',
      'a.yaml:1:7: kind: must be one of Agent, Tool, Policy, Definitions, Defaults, PolicyTest; kinds: Agent, Tool, Policy, Definitions, Defaults, PolicyTest',
    ],
    [
      'with aliases upon aliases',
      `a: &a [x]\nb: &b [${Array(30).fill('*a').join()}]\nc: &c [${Array(30).fill('*b').join()}]\nd: [${Array(30).fill('*c').join()}]`,
      'a.yaml:1:1: uses too many aliases; write the values out',
    ],
  ])('%s', async (_what, text, expected) => {
    expect((await complaints({ 'a.yaml': text })).join('\n')).toBe(expected);
  });
});

describe('what is no mistake and unlikely to be meant', () => {
  const warnings = async (files: Record<string, string>) => {
    const folder = temporaryFolder();
    fill(folder, files);
    const loaded = await loadPolicyDirectory(folder, { knownTargets });
    if (!loaded.ok) throw new Error(loaded.issues.map(formatIssue).join('\n'));
    const { sources, tests, revision } = loaded;
    const found = [...checkTests(tests, sources, revision), ...advise(sources, revision, now)];
    return found.map((issue) => formatIssue(issue).replaceAll(`${folder}/`, '')).join('\n');
  };
  const rules = (...more: string[]) => [
    '    - { name: r, agents: [analyst], tools: [warehouse], tiers: [read, write], effect: allow }',
    ...more.map((text) => `    - { ${text} }`),
  ];
  const policyOf = (...lines: string[]) => document('Policy', `  rules:\n${lines.join('\n')}\n`, 'name: p, owner: o');

  test.each([
    [
      'a condition that always holds',
      policyOf(
        ...rules("name: s, agents: ['*'], tools: [warehouse], tiers: [read], effect: deny, reason: no, when: 1 < 2"),
      ),
      'p.yaml:7:100: spec.rules[1].when: always holds; leave it out, so that nobody takes it for a condition',
    ],
    [
      'a rule that adds nothing to another',
      policyOf(...rules('name: s, agents: [analyst], tools: [warehouse], tiers: [read], effect: allow')),
      'p.yaml:7:7: spec.rules[1]: adds nothing: rule p/r always says the same of all that it is about; remove one of the two',
    ],
    [
      'a constraint that no credential of the tier can meet',
      policyOf(
        ...rules(
          'name: s, agents: [analyst], tools: [warehouse], tiers: [write], effect: allow, obligations: { senderConstraint: dpop }',
        ),
      ),
      'p.yaml:7:121: spec.rules[1].obligations.senderConstraint: warehouse:write is never issued: what provider postgres makes cannot be bound to a key; leave warehouse:write out of the rule',
    ],
    [
      'an approval after some renewals that asking anew gets around',
      policyOf(
        ...rules(
          'name: s, agents: [analyst], tools: [warehouse], tiers: [read], effect: allow, obligations: { renewal: { approvalAfter: { count: 3 } } }',
          'name: t, agents: [analyst], tools: [warehouse], tiers: [read], effect: allow, obligations: { maxUses: 1, renewal: { approvalAfter: { count: 3 } } }',
        ),
      ),
      'p.yaml:7:113: spec.rules[1].obligations.renewal.approvalAfter: an agent that asks anew instead of renewing is not asked about; say maxUses: 1, or add a rule that asks when !renewal.active && held.access(…)',
    ],
    [
      'an agent and a tier that no rule grants anything',
      policyOf('    - { name: r, agents: [other], tools: [warehouse], tiers: [read], effect: allow }'),
      'a.yaml:3:19: metadata.name: no rule grants agent "analyst" anything; add a rule, or remove it\nt.yaml:11:5: spec.tiers.write: no rule grants anybody warehouse:write; add a rule, or remove the tier',
    ],
    [
      'a list that nothing uses, and a rule about no tools',
      `${policyOf(...rules('name: s, agents: [analyst], tools: [lists.none], tiers: [read], effect: allow'))}---\n${document('Definitions', '  lists: { none: [], unused: [x] }')}`,
      'p.yaml:7:37: spec.rules[1].tools: names no tool: its lists are empty; a rule about nothing has no effect\np.yaml:13:22: spec.lists.unused: nothing uses lists.unused; remove it',
    ],
  ])('%s', async (_what, text, expected) => {
    const other = document('Agent', '  workloads: [spiffe://acme.test/other]\n', 'name: other, owner: o');
    const files = { ...right, ...(text.includes('[other]') ? { 'b.yaml': other } : {}), 'p.yaml': text };
    expect(await warnings(files)).toBe(expected);
  });

  test('names in tests that policy does not know', async () => {
    const cases = document(
      'PolicyTest',
      `  cases:
    - { name: a, request: { agent: analyst, tool: warehose, tier: read }, expect: { effect: deny } }
    - { name: b, request: { agent: analyst, tool: warehouse, tier: read, called: { 'crm:read': { reported: 1 } }, signals: [{ subject: agent, kind: gone }] }, expect: { effect: deny } }
`,
    );
    expect(await warnings({ ...right, 'p.yaml': policyOf(...rules()), 'x.yaml': cases })).toBe(
      'x.yaml:6:51: spec.cases[0].request.tool: there is no tool "warehose"; did you mean "warehouse"?\nx.yaml:7:84: spec.cases[1].request.called."crm:read": there is no "crm:read"; write it as tool:tier\nx.yaml:7:149: spec.cases[1].request.signals[0].kind: there is no kind of signal "gone"; kinds of signals: risk, owner_left, image_vulnerable, anomaly, session_revoked, credential_changed, assurance_lowered, device_not_compliant, account_disabled, review_overdue, canary_used, used_elsewhere, … (14 in all); a kind of your own begins with x_',
    );
  });
});
