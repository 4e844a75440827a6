import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { formatIssue } from '../../src/config/issue.ts';
import { loadPolicyDirectory } from '../../src/policy/load-policy.ts';
import { listPolicyFiles } from '../../src/policy/read-directory.ts';
import { temporaryFolder } from '../config/support.ts';
import { agentYaml, complaints, fill, ruleYaml, toolYaml } from './support.ts';

const right = { 'a.yaml': agentYaml, 't.yaml': toolYaml };

test('documents that are right load, whether in one file or several, in folders or not', async () => {
  expect(await complaints({ ...right, 'p.yaml': ruleYaml('') })).toEqual([]);
  expect(await complaints({ 'all.yml': [agentYaml, toolYaml, ruleYaml('')].join('---\n') })).toEqual([]);
  expect(await complaints({ 'x/y/a.yaml': agentYaml, 'x/t.yaml': toolYaml, 'p.yaml': ruleYaml('') })).toEqual([]);
});

describe('a rule with a mistake (fault 20)', () => {
  test.each([
    [
      'an unknown agent',
      'agents: [analyst]',
      'agents: [analist]',
      '7:16: spec.rules[0].agents[0]: there is no agent "analist"; did you mean "analyst"?',
    ],
    [
      'an unknown tool',
      'tools: [warehouse]',
      'tools: [warehose]',
      '8:15: spec.rules[0].tools[0]: there is no tool "warehose"; did you mean "warehouse"?',
    ],
    [
      'an unknown tier',
      'tiers: [read]',
      'tiers: [raed]',
      '9:15: spec.rules[0].tiers[0]: must be one of read, write, execute; did you mean "read"?',
    ],
    [
      'a tier that the tool does not have',
      'tiers: [read]',
      'tiers: [execute]',
      '8:15: spec.rules[0].tools[0]: tool "warehouse" has none of the rule\'s tiers; it has read, write',
    ],
    [
      'a tier that no tool of the rule has',
      'tiers: [read]',
      'tiers: [read, execute]',
      "9:21: spec.rules[0].tiers[1]: none of the rule's tools has a tier execute; remove it",
    ],
    [
      'an unknown effect',
      'effect: allow',
      'effect: permit',
      '10:15: spec.rules[0].effect: must be one of allow, deny, require_approval; take one of these',
    ],
    [
      'a star beside names',
      'agents: [analyst]',
      "agents: [analyst, '*']",
      '7:7: spec.rules[0].agents: "*" stands beside names that it covers already; keep one or the other',
    ],
    [
      'a star beside tools',
      'tools: [warehouse]',
      "tools: ['*', warehouse]",
      '8:7: spec.rules[0].tools: "*" stands beside names that it covers already; keep one or the other',
    ],
    [
      'a deny that does not say why',
      'effect: allow',
      'effect: deny',
      '6:7: spec.rules[0]: "reason" is missing; a rule that denies says why, and what to do instead',
    ],
    [
      'a name that is none',
      'name: r',
      'name: R one',
      '6:13: spec.rules[0].name: must be a name: lower-case letters, digits, ".", "_" and "-", at most 63, starting and ending with a letter or digit; write it in that form',
    ],
    [
      'no agents',
      'agents: [analyst]',
      'agents: []',
      '7:7: spec.rules[0].agents: must have at least 1 entry; name what it needs',
    ],
  ])('is refused for %s', async (_what, from, to, expected) => {
    const text = ruleYaml('').replace(from, to);
    expect(await complaints({ ...right, 'p.yaml': text })).toEqual([`p.yaml:${expected}`]);
  });

  test.each([
    [
      'an unknown field',
      '      whne: task.age > 1',
      '11:7: spec.rules[0].whne: unknown field "whne"; did you mean "when"?',
    ],
    [
      'an obligation that is none',
      '      obligations: { tll: 5m }',
      '11:22: spec.rules[0].obligations.tll: unknown field "tll"; did you mean "ttl"?',
    ],
    [
      'a bad duration',
      '      obligations: { ttl: 5 }',
      '11:27: spec.rules[0].obligations.ttl: must be a string, not a number; write it like 30s, 10m, 1h30m or 7d',
    ],
    [
      'a life below the tier’s minimum',
      '      obligations: { ttl: 30s }',
      '11:27: spec.rules[0].obligations.ttl: is shorter than the minimum of warehouse:read (1m); raise it, or leave that tool or tier out of the rule',
    ],
    [
      'renewals below none',
      '      obligations: { renewal: { max: -1 } }',
      '11:38: spec.rules[0].obligations.renewal.max: must be at least 0; it means: how often a credential may be renewed',
    ],
    [
      'empty obligations',
      '      obligations: {}',
      '11:7: spec.rules[0].obligations: must have at least 1 entry; fill it in, or leave it out',
    ],
    [
      'a condition that is not text',
      '      when: true',
      '11:13: spec.rules[0].when: must be a string, not a boolean; put it in quotes',
    ],
  ])('is refused for %s', async (_what, fields, expected) => {
    expect(await complaints({ ...right, 'p.yaml': ruleYaml(fields) })).toEqual([`p.yaml:${expected}`]);
  });

  test('is refused for obligations on a deny, and not on an approval', async () => {
    const text = (effect: string) =>
      ruleYaml('      reason: no\n      obligations: { ttl: 5m }').replace('allow', effect);
    expect(await complaints({ ...right, 'p.yaml': text('deny') })).toEqual([
      'p.yaml:12:7: spec.rules[0].obligations: has no effect with deny; put it on the rule that allows',
    ]);
    expect(await complaints({ ...right, 'p.yaml': text('require_approval') })).toEqual([]);
  });

  test('is refused for the name of another rule of the policy', async () => {
    const text = ruleYaml('') + ruleYaml('').split('rules:\n')[1]!;
    expect(await complaints({ ...right, 'p.yaml': text })).toEqual([
      'p.yaml:11:13: spec.rules[1].name: this policy has a rule "r" already; rename one of them',
    ]);
  });
});

describe('a condition with a mistake (fault 20)', () => {
  const when = '      when: ';
  test.each([
    ['an unknown variable', 'taks.id == "x"', '11:13', 'unknown variable "taks"; did you mean "task"?'],
    [
      'an unknown field',
      'tier == "read" && task.contxt.env == "x"',
      '11:36',
      'task has no field "contxt"; did you mean "context"?',
    ],
    [
      'the intent, which never decides',
      'task.intent == "x"',
      '11:18',
      'task has no field "intent"; free text never decides; put what decides into task.context',
    ],
    [
      'an unknown field within has()',
      'tier == "read" && has(task.contxt)',
      '11:40',
      'task has no field "contxt"; did you mean "context"?',
    ],
    [
      'an unknown field deep within has()',
      'has(task.contxt.env)',
      '11:22',
      'task has no field "contxt"; did you mean "context"?',
    ],
    [
      'the intent within has()',
      'has(task.intent)',
      '11:22',
      'task has no field "intent"; free text never decides; put what decides into task.context',
    ],
    [
      'a label taken for a number',
      'task.labels.level == 3',
      '11:13',
      'types do not fit: no such overload: string == int; labels and context hold text; int("…") makes a number of it',
    ],
    [
      'types that do not fit',
      'task.age == "5"',
      '11:13',
      'types do not fit: no such overload: int == string; labels and context hold text; int("…") makes a number of it',
    ],
    [
      'an unknown function',
      'tier.beginsWith("r")',
      '11:13',
      'types do not fit: found no matching overload for \'string.beginsWith(string)\'; labels and context hold text; int("…") makes a number of it',
    ],
    [
      'a result that is text',
      'task.context.env',
      '11:13',
      'the condition gives string, not true or false; compare it with something, for example with ==',
    ],
    [
      'a result that is a number',
      'task.age',
      '11:13',
      'the condition gives int, not true or false; compare it with something, for example with ==',
    ],
    [
      'a single =',
      'tier = "read"',
      '11:18',
      'the condition cannot be read: unexpected character: =; write == to compare',
    ],
    [
      'an end in the middle',
      'tier ==',
      '11:20',
      'the condition cannot be read: unexpected token: EOF; conditions are CEL (https://cel.dev); look for a missing operand, bracket or quote',
    ],
    ['dyn()', 'dyn(task).intent == "x"', '11:13', 'dyn() hides mistakes from the check; leave it out'],
    [
      'a regular expression that is none',
      "tier.matches('(')",
      '11:26',
      'the pattern is not a regular expression; startsWith, endsWith, contains and "in" often do',
    ],
    [
      'a regular expression without bound',
      "tier.matches('^(a+)+$')",
      '11:26',
      'the pattern repeats a group that itself repeats or chooses; startsWith, endsWith, contains and "in" often do',
    ],
    [
      'a pattern that callers choose',
      'tier.matches(task.context.p)',
      '11:26',
      'the pattern must be a literal text, so that it can be checked; startsWith, endsWith, contains and "in" often do',
    ],
    [
      'loops within loops within loops',
      "'[1].all(a, [1].all(b, [1].all(c, a == c)))'",
      '11:36',
      'all() is nested more than 2 deep; use a list and "in"',
    ],
    ['a list without end', `tier in [${Array(300).fill('"x"').join(',')}]`, undefined, undefined],
    ['brackets without end', `${'('.repeat(100)}true${')'.repeat(100)}`, undefined, undefined],
  ])('is refused for %s', async (_what, expression, place, expected) => {
    const found = await complaints({ ...right, 'p.yaml': ruleYaml(when + expression) });
    if (place !== undefined) expect(found).toEqual([`p.yaml:${place}: spec.rules[0].when: ${expected}`]);
    else
      expect(found).toEqual([
        expect.stringMatching(/^p\.yaml:11:\d+: spec\.rules\[0\]\.when: the condition cannot be read: /),
      ]);
  });

  test('is shown at its own line and column within a block', async () => {
    const text = ruleYaml('      when: |\n        tier == "read" &&\n        task.agee > 5\n');
    expect(await complaints({ ...right, 'p.yaml': text })).toEqual([
      'p.yaml:13:14: spec.rules[0].when: task has no field "agee"; did you mean "age"?',
    ]);
  });
});

describe('a tool with a mistake (fault 20)', () => {
  test.each([
    [
      'an unknown provider',
      'provider: jwt',
      'provider: jtw',
      '8:17: spec.tiers.read.provider: there is no provider "jtw"; did you mean "jwt"?',
    ],
    ['an unknown tier', '    read:', '    raed:', '7:5: spec.tiers.raed: unknown field "raed"; did you mean "read"?'],
    [
      'an unknown kind of revocation',
      'revocation: immediate',
      'revocation: instant',
      '9:19: spec.tiers.read.revocation: must be one of immediate, bounded, none; take one of these',
    ],
    [
      'a minimum above the default',
      'min: 1m, default: 5m, max: 1h',
      'min: 6m, default: 5m, max: 1h',
      '10:19: spec.tiers.read.ttl.min: is longer than default (6m > 5m); min ≤ default ≤ max',
    ],
    [
      'a default above the maximum',
      'min: 1m, default: 5m, max: 1h',
      'min: 1m, default: 2h, max: 1h',
      '10:32: spec.tiers.read.ttl.default: is longer than max (2h > 1h); min ≤ default ≤ max',
    ],
    [
      'no maximum',
      ', max: 1h',
      '',
      '10:7: spec.tiers.read.ttl: "max" is missing; add max: here, under spec.ttl of the tool, or in a Defaults document',
    ],
    [
      'options of another provider',
      'max: 1h }\n',
      'max: 1h }\n      postgres: { target: warehouse, groupRole: r }\n',
      '11:7: spec.tiers.read.postgres: has options of postgres, but its provider is jwt; remove them, or say provider: postgres',
    ],
    [
      'options that are missing',
      '      postgres: { target: warehouse, groupRole: writers }\n',
      '',
      '11:5: spec.tiers.write: "postgres" is missing; add the provider\'s options under postgres:',
    ],
    [
      'an unknown option',
      'groupRole: writers',
      'groupRole: writers, grupRole: x',
      '15:58: spec.tiers.write.postgres.grupRole: unknown field "grupRole"; did you mean "groupRole"?',
    ],
    [
      'an unknown target',
      'target: warehouse',
      'target: warehous',
      '15:27: spec.tiers.write.postgres.target: the configuration has no target "warehous"; did you mean "warehouse"?',
    ],
    [
      'a resource that is no URI',
      'https://warehouse.acme.test',
      'warehouse',
      '5:13: spec.resource: is not an absolute URI without a fragment; write it like https://reports.acme.test',
    ],
    [
      'a resource with a fragment',
      'https://warehouse.acme.test',
      '"https://warehouse.acme.test#a"',
      '5:13: spec.resource: is not an absolute URI without a fragment; write it like https://reports.acme.test',
    ],
  ])('is refused for %s', async (_what, from, to, expected) => {
    expect(await complaints({ 't.yaml': toolYaml.replace(from, to) })).toEqual([`t.yaml:${expected}`]);
  });

  test('is refused for what its provider refuses', async () => {
    const text = toolYaml.replace('groupRole: writers', 'groupRole: pg_monitor');
    expect(await complaints({ 't.yaml': text })).toEqual([
      expect.stringMatching(/^t\.yaml:15:49: spec\.tiers\.write\.postgres\.groupRole: /),
    ]);
  });

  test('is refused for the resource of another tool, at which its tokens would be good too', async () => {
    const other = toolYaml.replace('name: warehouse', 'name: other');
    expect(await complaints({ 'a.yaml': toolYaml, 'b.yaml': other })).toEqual([
      'b.yaml:5:13: spec.resource: is the resource of tool "warehouse" too; give each tool its own',
    ]);
  });
});

describe('a document with a mistake (fault 20)', () => {
  test.each([
    [
      'no kind',
      agentYaml.replace('kind: Agent\n', ''),
      '1:1: "kind" is missing; add kind: Agent, Tool, Policy, Definitions, Defaults or PolicyTest',
    ],
    [
      'an unknown kind',
      agentYaml.replace('Agent', 'Agnet'),
      '2:7: kind: must be one of Agent, Tool, Policy, Definitions, Defaults, PolicyTest; did you mean "Agent"?',
    ],
    ['another version', agentYaml.replace('/v1', '/v9'), '1:13: apiVersion: must be "leasehold.dev/v1"; write it so'],
    [
      'no owner',
      agentYaml.replace(', owner: data@acme.test', ''),
      '3:1: metadata: "owner" is missing; add owner: who is accountable',
    ],
    [
      'a date that is none',
      agentYaml.replace('owner:', 'reviewBy: 2026-13-01, owner:'),
      '3:38: metadata.reviewBy: must be a date such as 2026-12-31; year, month and day of a real day',
    ],
    [
      'a label that is not text',
      agentYaml.replace('owner:', 'labels: { level: 3 }, owner:'),
      '3:45: metadata.labels.level: must be a string, not a number; put numbers and true/false in quotes',
    ],
    [
      'a label that cannot be named',
      agentYaml.replace('owner:', 'labels: { __proto__: x }, owner:'),
      '3:38: metadata.labels.__proto__: "__proto__" is not a name: lower-case letters, digits, ".", "_" and "-", at most 63, starting with a letter; rename it',
    ],
    [
      'a pattern of part of a segment',
      agentYaml.replace('analyst]', 'ana*]'),
      '4:21: spec.workloads[0]: "spiffe://acme.test/agent/ana*" is not a workload or a pattern of workloads; write spiffe://<trust domain>/<path>, or end it in /* to cover everything below',
    ],
    ['text instead of a document', 'hello', '1:1: is not a document; it begins with apiVersion, kind, metadata, spec'],
    [
      'YAML that is none',
      'a: b: c',
      '1:4: not valid YAML: nested mappings are not allowed in compact mappings; look at the quotes, brackets and indentation there',
    ],
  ])('is refused for %s', async (_what, text, expected) => {
    expect(await complaints({ 'a.yaml': text })).toEqual([`a.yaml:${expected}`]);
  });

  test.each([
    ['Agent', agentYaml, 'analyst', '3:19'],
    ['Tool', toolYaml, 'warehouse', '3:19'],
  ])('is refused for the name of another %s, and says where that is', async (kind, text, name, place) => {
    const first = kind === 'Tool' ? text.replace('https://', 'https://first.') : text;
    expect(await complaints({ 'a.yaml': first, 'b.yaml': text })).toEqual([
      expect.stringMatching(
        new RegExp(`^b\\.yaml:${place}: metadata\\.name: there is a ${kind} "${name}" already; see a\\.yaml:${place}$`),
      ),
    ]);
  });

  test('is refused for the name of another Policy', async () => {
    expect(await complaints({ ...right, 'p.yaml': ruleYaml(''), 'q.yaml': ruleYaml('') })).toEqual([
      'q.yaml:3:19: metadata.name: there is a Policy "p" already; see p.yaml:3:19',
    ]);
  });

  test('does not make the documents that name it wrong as well', async () => {
    const files = { 'a.yaml': agentYaml.replace('spec:', 'spce:'), 't.yaml': toolYaml.replace('resource', 'resuorce') };
    const found = await complaints({ ...files, 'p.yaml': ruleYaml('') });
    expect(found.filter((line) => line.startsWith('p.yaml'))).toEqual([]);
    const unread = await complaints({ 'a.yaml': 'a: b: c', 't.yaml': toolYaml, 'p.yaml': ruleYaml('') });
    expect(unread).toHaveLength(1);
  });

  test('is reported with all others of all files', async () => {
    const found = await complaints({
      'a.yaml': agentYaml.replace('spec:', 'spce:'),
      't.yaml': toolYaml.replace('min: 1m', 'min: 7m'),
      'p.yaml': ruleYaml('      when: task.agee > 1'),
    });
    expect(found.map((line) => line.split(':')[0])).toEqual(['a.yaml', 'a.yaml', 'p.yaml', 't.yaml']);
  });
});

describe('a policy directory', () => {
  const issues = async (folder: string) => {
    const result = await loadPolicyDirectory(folder);
    return result.ok ? [] : result.issues.map((issue) => formatIssue(issue).replaceAll(folder, '.'));
  };

  test('that does not exist, or holds nothing, is refused', async () => {
    const folder = temporaryFolder();
    expect(await issues(folder)).toEqual([
      '.:1:1: holds no policy documents; add *.yaml files with Agent, Tool and Policy documents',
    ]);
    const none = await loadPolicyDirectory(path.join(folder, 'none'));
    expect(none.ok).toBe(false);
  });

  test('may not lead out of itself by a link', async () => {
    const folder = temporaryFolder();
    const elsewhere = temporaryFolder();
    fill(elsewhere, { 'a.yaml': agentYaml, 'sub/b.yaml': agentYaml });
    fill(folder, { 'own.yaml': agentYaml });
    symlinkSync(path.join(elsewhere, 'a.yaml'), path.join(folder, 'linked.yaml'));
    symlinkSync(path.join(elsewhere, 'sub'), path.join(folder, 'folder'));
    symlinkSync(path.join(elsewhere, 'sub'), path.join(folder, 'folder.yaml'));
    expect(await issues(folder)).toEqual([
      './folder:1:1: is a link to a folder, which is not followed; copy the folder here',
      './folder.yaml:1:1: is a link that leads out of the policy directory; copy the file here',
      './linked.yaml:1:1: is a link that leads out of the policy directory; copy the file here',
    ]);
  });

  test('may hold links within itself, as a mounted Kubernetes ConfigMap does, and may be one', async () => {
    const folder = temporaryFolder();
    fill(folder, { 'real/..2026/a.yaml': agentYaml, 'real/.a.yaml.swp': 'a: b: c', 'real/notes.txt': 'a: b: c' });
    symlinkSync('..2026', path.join(folder, 'real/..data'));
    symlinkSync('..data/a.yaml', path.join(folder, 'real/a.yaml'));
    symlinkSync('real', path.join(folder, 'link'));
    const result = await loadPolicyDirectory(path.join(folder, 'link'));
    expect(result).toMatchObject({ ok: true });
  });

  test('is bounded in the size of its files and its depth', async () => {
    const folder = temporaryFolder();
    fill(folder, { 'big.yaml': `# ${'x'.repeat(1024 * 1024)}`, 'a.yaml': agentYaml });
    mkdirSync(path.join(folder, '1/2/3/4/5/6/7/8/9'), { recursive: true });
    expect(await issues(folder)).toEqual([
      './1/2/3/4/5/6/7/8/9:1:1: is more than 8 folders deep; move its files up',
      './big.yaml:1:1: is larger than 1048576 bytes; split it into several files',
    ]);
  });

  test.each([
    [{ entries: 3 }, '3 entries'],
    [{ files: 2 }, '2 files'],
    [{ totalBytes: 5 }, '5 bytes'],
  ])('is bounded by %j', async (bound, expected) => {
    const folder = temporaryFolder();
    const generous = { depth: 8, entries: 4, files: 3, totalBytes: 6 };
    fill(folder, { 'a.yaml': '#1', 'b.yaml': '#2', 'c.yaml': '#3', notes: '' });
    expect((await listPolicyFiles(folder, generous)).issues).toEqual([]);
    const { files, issues } = await listPolicyFiles(folder, { ...generous, ...bound });
    expect(files).toEqual([]);
    expect(issues.map((issue) => issue.message)).toEqual([`holds more than ${expected}`]);
  });

  test('may hold only UTF-8', async () => {
    const folder = temporaryFolder();
    writeFileSync(path.join(folder, 'a.yaml'), Buffer.from([0x61, 0xff]));
    expect(await issues(folder)).toEqual(['./a.yaml:1:1: is not UTF-8 text']);
  });
});
