import { workloadPatternFault } from '../config/config-rules.ts';
import type { Issue } from '../config/issue.ts';
import { formatPath, quote } from '../config/schema.ts';
import { suggestion } from '../config/suggest.ts';
import type { FieldPath, SourceDocument } from '../config/yaml-document.ts';
import { gatherDefinitions, theDefaults } from './check-definitions.ts';
import type { Definitions } from './check-definitions.ts';
import { checkRule, namesOfRule, shapeOf } from './check-rule.ts';
import type { World } from './check-rule.ts';
import { checkOrder, checkTool } from './check-tool.ts';
import type { Report } from './check-tool.ts';
import { createConditionCompiler } from './condition.ts';
import type { ArgsShape, CompileCondition, Condition } from './condition.ts';
import { inheritTtl } from './defaults.ts';
import type {
  AgentDocument,
  AnyDocument,
  DefaultsDocument,
  DefinitionsDocument,
  PolicyDocument,
  RuleSpec,
  ToolDocument,
} from './documents.ts';
import type { KnownNames } from './known-names.ts';

export type { KnownNames } from './known-names.ts';

export interface Checked {
  issues: Issue[];
  /** By rule: `when`, and the condition of its renewals. */
  conditions: ReadonlyMap<RuleSpec, { when: Condition | undefined; renewal: Condition | undefined }>;
  lists: Readonly<Record<string, readonly string[]>>;
  defaults: DefaultsDocument | undefined;
}

/** Agents times tools that rules may name one by one: what the index of rules grows with. */
const maxPairs = 500_000;

/**
 * What no schema can say: names that other documents define, bounds that depend on each other, conditions that type-check.
 * `maimed` are documents whose shape was wrong: their names count as known, so that one mistake is reported once.
 */
export function checkDocuments(
  sources: readonly SourceDocument[],
  maimed: readonly SourceDocument[],
  known: KnownNames,
): Checked {
  const issues: Issue[] = [];
  const add: Add = (source, at, path, text, hint) =>
    issues.push({
      file: source.file,
      ...at,
      path: formatPath(path),
      message: text,
      hint,
    });
  const report: Report = (source, path, message, hint) => add(source, source.at(path), path, message, hint);

  const of = <T extends AnyDocument>(kind: T['kind']) =>
    sources
      .filter((source) => (source.value as AnyDocument).kind === kind)
      .map((source) => ({ source, document: source.value as T }));
  const agents = of<AgentDocument>('Agent');
  const tools = of<ToolDocument>('Tool');
  const policies = of<PolicyDocument>('Policy');
  const definitions = of<DefinitionsDocument>('Definitions');
  const defaultsDocuments = of<DefaultsDocument>('Defaults');
  for (const group of [agents, tools, policies, definitions]) checkNames(report, group);

  for (const { source, document } of [...agents, ...tools]) {
    document.spec.workloads?.forEach((pattern, index) => {
      const fault = workloadPatternFault(pattern, known.knownTrustDomains);
      if (fault !== undefined) report(source, ['spec', 'workloads', index], ...fault);
    });
  }
  checkDelegation(report, agents, namesOf(maimed, 'Agent'));

  const defaults = theDefaults(report, defaultsDocuments);
  if (defaults?.spec.ttl !== undefined) {
    const { ttl } = inheritTtl(defaults, undefined, undefined);
    checkOrder(report, defaultsDocuments[0]!.source, ['spec', 'ttl'], ttl, 'organisation');
  }
  checkTools(report, tools, namesOf(maimed, 'Defaults').length > 0 ? undefined : defaults, known);

  const defined = gatherDefinitions(report, definitions);
  const world: World = {
    agents: new Set([...agents.map(({ document }) => document.metadata.name), ...namesOf(maimed, 'Agent')]),
    tools: new Map(tools.map(({ document }) => [document.metadata.name, document])),
    maimedTools: new Set(namesOf(maimed, 'Tool')),
    lists: defined.lists,
    listsUnknown: namesOf(maimed, 'Definitions').length > 0,
    defaults,
  };
  const { environment } = known;
  const compile = createConditionCompiler({ conditions: defined.conditions, lists: defined.lists, environment });
  const broken = checkDefinedConditions(add, defined, compile, world);
  const conditions = checkPolicies(report, add, policies, world, compile, broken);
  return { issues, conditions, lists: defined.lists, defaults };
}

type Add = (
  source: SourceDocument,
  at: { line: number; column: number },
  path: FieldPath,
  text: string,
  hint: string,
) => void;

function checkDelegation(
  report: Report,
  agents: readonly { source: SourceDocument; document: AgentDocument }[],
  maimed: readonly string[],
): void {
  const names = new Set([...agents.map(({ document }) => document.metadata.name), ...maimed]);
  for (const { source, document } of agents) {
    const seen = new Set<string>();
    document.spec.delegation?.to.forEach((name, index) => {
      const path = ['spec', 'delegation', 'to', index];
      if (!names.has(name)) {
        report(source, path, `there is no agent ${quote(name)}`, suggestion(name, names, 'agents'));
      } else if (seen.has(name)) report(source, path, `names ${quote(name)} a second time`, 'remove it');
      seen.add(name);
    });
  }
}

function checkTools(
  report: Report,
  tools: readonly { source: SourceDocument; document: ToolDocument }[],
  defaults: DefaultsDocument | undefined,
  known: KnownNames,
): void {
  const resources = new Map<string, string>();
  for (const { source, document } of tools) {
    checkTool(report, source, document, defaults, known);
    const { resource } = document.spec;
    const other = resources.get(resource);
    if (other !== undefined) {
      // Its tokens would be good at the other tool as well (invariant 2).
      report(source, ['spec', 'resource'], `is the resource of tool ${quote(other)} too`, 'give each tool its own');
    } else resources.set(resource, document.metadata.name);
  }
}

/** Each by itself, with the arguments of all tools; a use of it is checked again with those of its rule. */
function checkDefinedConditions(
  add: Add,
  { conditions, places }: Definitions,
  compile: CompileCondition,
  world: World,
): ReadonlySet<string> {
  const broken = new Set<string>();
  if (conditions.size === 0) return broken;
  const shape = shapeOf(
    [...world.tools.values()].flatMap((tool) =>
      Object.entries(tool.spec.tiers).map(([tier, spec]) => ({ tool, tier: tier as 'read', spec })),
    ),
  );
  for (const [name, text] of conditions) {
    const result = compile(text, shape);
    if ('condition' in result) continue;
    broken.add(name);
    // What is wrong inside another condition is told there.
    if (result.fault.message.startsWith('in condition ')) continue;
    const source = places.get(name)!;
    const path = ['spec', 'conditions', name];
    add(source, source.within(path, result.fault.offset), path, result.fault.message, result.fault.hint);
  }
  return broken;
}

function checkPolicies(
  report: Report,
  add: Add,
  policies: readonly { source: SourceDocument; document: PolicyDocument }[],
  world: World,
  compile: CompileCondition,
  broken: ReadonlySet<string>,
): Checked['conditions'] {
  const conditions = new Map<RuleSpec, { when: Condition | undefined; renewal: Condition | undefined }>();
  const shapes = new Map<string, ArgsShape>();
  let pairs = 0;
  for (const { source, document } of policies) {
    const rules = new Set<string>();
    document.spec.rules.forEach((rule, index) => {
      const path = ['spec', 'rules', index];
      if (rules.has(rule.name)) {
        report(source, [...path, 'name'], `this policy has a rule ${quote(rule.name)} already`, 'rename one of them');
      }
      rules.add(rule.name);
      const covered = checkRule(report, source, path, rule, world);
      const before = pairs;
      pairs += namesOfRule(rule.agents, world.lists).length * namesOfRule(rule.tools, world.lists).length;
      if (pairs > maxPairs && before <= maxPairs) {
        report(source, path, `the rules up to here name more than ${maxPairs} pairs of agents and tools`, 'use "*"');
      }
      const shapeKey = `${rule.tiers.join()} ${rule.tools.join()}`;
      const compiled = (text: string | undefined, at: FieldPath): Condition | undefined => {
        if (text === undefined) return undefined;
        let shape = shapes.get(shapeKey);
        if (shape === undefined) shapes.set(shapeKey, (shape = shapeOf(covered)));
        const result = compile(text, shape);
        if ('condition' in result) return result.condition;
        const { offset, message, hint } = result.fault;
        const names = [...text.matchAll(/conditions\s*\.\s*(\w+)/g)].map(([, name]) => name!);
        if (message.startsWith('in condition ') && names.some((name) => broken.has(name))) return undefined;
        add(source, source.within(at, offset), at, message, hint);
        return undefined;
      };
      const when = compiled(rule.when, [...path, 'when']);
      const at = [...path, 'obligations', 'renewal', 'condition'];
      const renewal = compiled(rule.obligations?.renewal?.condition, at);
      if (when !== undefined || renewal !== undefined) conditions.set(rule, { when, renewal });
    });
  }
  return conditions;
}

function checkNames(report: Report, group: readonly { source: SourceDocument; document: AnyDocument }[]): void {
  const seen = new Map<string, SourceDocument>();
  for (const { source, document } of group) {
    const { name } = document.metadata;
    if (name.startsWith('lists.') && (document.kind === 'Agent' || document.kind === 'Tool')) {
      report(source, ['metadata', 'name'], 'begins with "lists.", which in a rule names a list', 'choose another name');
    }
    const first = seen.get(name);
    if (first === undefined) seen.set(name, source);
    else {
      const at = first.at(['metadata', 'name']);
      report(
        source,
        ['metadata', 'name'],
        `there is a ${document.kind} ${quote(name)} already`,
        `see ${first.file}:${at.line}:${at.column}`,
      );
    }
  }
}

function namesOf(sources: readonly SourceDocument[], kind: AnyDocument['kind']): string[] {
  return sources.flatMap((source) => {
    const value = source.value as { kind?: unknown; metadata?: { name?: unknown } } | null;
    return value?.kind === kind && typeof value.metadata?.name === 'string' ? [value.metadata.name] : [];
  });
}
