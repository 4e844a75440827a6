import { workloadPatternFault } from '../config/config-rules.ts';
import { formatDuration, parseDuration } from '../config/duration.ts';
import type { Issue } from '../config/issue.ts';
import { formatPath, quote } from '../config/schema.ts';
import { suggestion } from '../config/suggest.ts';
import type { FieldPath, SourceDocument } from '../config/yaml-document.ts';
import type { Tier } from '../domain/model.ts';
import { validateJwtTierOptions } from '../providers/jwt/provider.ts';
import type { OptionIssue } from '../providers/options.ts';
import { validateTierOptions } from '../providers/postgres/options.ts';
import { compileCondition } from './condition.ts';
import type { Condition } from './condition.ts';
import type { AgentDocument, AnyDocument, PolicyDocument, RuleSpec, TierSpec, ToolDocument } from './documents.ts';

export interface KnownNames {
  /** Targets of the configuration; without it any target name will do. */
  knownTargets?: ReadonlySet<string>;
  /** Trust domains that callers can be of (undefined: workloads without a scheme); without it any will do. */
  knownTrustDomains?: ReadonlySet<string | undefined>;
}

export interface Checked {
  issues: Issue[];
  conditions: ReadonlyMap<RuleSpec, Condition>;
}

const providers: Record<string, (options: Readonly<Record<string, unknown>>, path: string) => OptionIssue[]> = {
  jwt: validateJwtTierOptions,
  postgres: validateTierOptions,
};
/** Agents times tools that rules may name one by one: what the index of rules grows with. */
const maxPairs = 500_000;

type Report = (source: SourceDocument, path: FieldPath, message: string, hint?: string) => void;

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
  const add = (
    source: SourceDocument,
    at: { line: number; column: number },
    path: FieldPath,
    text: string,
    hint?: string,
  ) =>
    issues.push({
      file: source.file,
      ...at,
      path: formatPath(path),
      message: text,
      ...(hint === undefined ? {} : { hint }),
    });
  const report: Report = (source, path, message, hint) => add(source, source.at(path), path, message, hint);

  const of = <T extends AnyDocument>(kind: T['kind']) =>
    sources
      .filter((source) => (source.value as AnyDocument).kind === kind)
      .map((source) => ({ source, document: source.value as T }));
  const agents = of<AgentDocument>('Agent');
  const tools = of<ToolDocument>('Tool');
  const policies = of<PolicyDocument>('Policy');
  for (const group of [agents, tools, policies]) checkNames(report, group);

  for (const { source, document } of agents) {
    document.spec.workloads.forEach((pattern, index) => {
      const fault = workloadPatternFault(pattern, known.knownTrustDomains);
      if (fault !== undefined) report(source, ['spec', 'workloads', index], ...fault);
    });
  }

  const resources = new Map<string, string>();
  for (const { source, document } of tools) {
    checkTool(report, source, document, known);
    const { resource } = document.spec;
    const other = resources.get(resource);
    if (other !== undefined) {
      // Its tokens would be good at the other tool as well (invariant 2).
      report(source, ['spec', 'resource'], `is the resource of tool ${quote(other)} too`, 'give each tool its own');
    } else resources.set(resource, document.metadata.name);
  }

  const world: World = {
    agents: new Set([...agents.map(({ document }) => document.metadata.name), ...namesOf(maimed, 'Agent')]),
    tools: new Map(tools.map(({ document }) => [document.metadata.name, document])),
    maimedTools: new Set(namesOf(maimed, 'Tool')),
  };
  const conditions = new Map<RuleSpec, Condition>();
  const compiled = new Map<string, ReturnType<typeof compileCondition>>();
  let pairs = 0;
  for (const { source, document } of policies) {
    const rules = new Set<string>();
    document.spec.rules.forEach((rule, index) => {
      const path = ['spec', 'rules', index];
      if (rules.has(rule.name)) {
        report(source, [...path, 'name'], `this policy has a rule ${quote(rule.name)} already`, 'rename one of them');
      }
      rules.add(rule.name);
      checkRule(report, source, path, rule, world);
      pairs += rule.agents.length * rule.tools.length;
      if (pairs > maxPairs && pairs - rule.agents.length * rule.tools.length <= maxPairs) {
        report(source, path, `the rules up to here name more than ${maxPairs} pairs of agents and tools`, 'use "*"');
      }
      if (rule.when === undefined) return;
      const result = compiled.get(rule.when) ?? compileCondition(rule.when);
      compiled.set(rule.when, result);
      if ('condition' in result) conditions.set(rule, result.condition);
      else {
        const when = [...path, 'when'];
        add(source, source.within(when, result.fault.offset), when, result.fault.message, result.fault.hint);
      }
    });
  }
  return { issues, conditions };
}

function checkNames(report: Report, group: readonly { source: SourceDocument; document: AnyDocument }[]): void {
  const seen = new Map<string, SourceDocument>();
  for (const { source, document } of group) {
    const { name } = document.metadata;
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

function checkTool(report: Report, source: SourceDocument, tool: ToolDocument, known: KnownNames): void {
  const { resource, tiers } = tool.spec;
  // RFC 8707 §2: an absolute URI without a fragment.
  if (!URL.canParse(resource) || resource.includes('#')) {
    report(
      source,
      ['spec', 'resource'],
      'is not an absolute URI without a fragment',
      'write it like https://reports.acme.test',
    );
  }
  for (const [name, tier] of Object.entries(tiers)) {
    const path = ['spec', 'tiers', name];
    checkTtl(report, source, [...path, 'ttl'], tier.ttl);
    if (!Object.hasOwn(providers, tier.provider)) {
      report(
        source,
        [...path, 'provider'],
        `there is no provider ${quote(tier.provider)}`,
        suggestion(tier.provider, Object.keys(providers), 'providers'),
      );
      continue;
    }
    for (const other of Object.keys(providers) as ('jwt' | 'postgres')[]) {
      if (other !== tier.provider && tier[other] !== undefined) {
        report(
          source,
          [...path, other],
          `has options of ${other}, but its provider is ${tier.provider}`,
          `remove them, or say provider: ${other}`,
        );
      }
    }
    const options = tier[tier.provider as 'jwt' | 'postgres'];
    if (options === undefined && tier.provider !== 'jwt') {
      report(source, path, `${quote(tier.provider)} is missing`, `add the provider's options under ${tier.provider}:`);
      continue;
    }
    for (const issue of providers[tier.provider]!(options ?? {}, '')) {
      const steps = [...issue.path.matchAll(/[^.[\]]+/g)].map(([step]) => (/^\d+$/.test(step) ? Number(step) : step));
      report(source, [...path, tier.provider, ...steps], issue.message);
    }
    const target = options?.['target'];
    if (typeof target === 'string' && known.knownTargets !== undefined && !known.knownTargets.has(target)) {
      report(
        source,
        [...path, tier.provider, 'target'],
        `the configuration has no target ${quote(target)}`,
        suggestion(target, known.knownTargets, 'targets'),
      );
    }
  }
}

function checkTtl(report: Report, source: SourceDocument, path: FieldPath, ttl: TierSpec['ttl']): void {
  const [min, usual, max] = [ttl.min, ttl.default, ttl.max].map((text) => parseDuration(text)!) as [
    number,
    number,
    number,
  ];
  if (min > usual) report(source, [...path, 'min'], `is longer than default (${ttl.min} > ${ttl.default})`);
  if (usual > max) report(source, [...path, 'default'], `is longer than max (${ttl.default} > ${ttl.max})`);
}

interface World {
  agents: ReadonlySet<string>;
  tools: ReadonlyMap<string, ToolDocument>;
  maimedTools: ReadonlySet<string>;
}

function checkRule(report: Report, source: SourceDocument, path: FieldPath, rule: RuleSpec, world: World): void {
  for (const field of ['agents', 'tools'] as const) {
    if (rule[field].length > 1 && rule[field].includes('*')) {
      report(source, [...path, field], '"*" stands beside names that it covers already', 'keep one or the other');
    }
  }
  rule.agents.forEach((name, index) => {
    if (name === '*' || world.agents.has(name)) return;
    report(
      source,
      [...path, 'agents', index],
      `there is no agent ${quote(name)}`,
      suggestion(name, world.agents, 'agents'),
    );
  });
  rule.tools.forEach((name, index) => {
    if (name === '*' || world.maimedTools.has(name)) return;
    const tool = world.tools.get(name);
    if (tool === undefined) {
      const hint = suggestion(name, world.tools.keys(), 'tools');
      report(source, [...path, 'tools', index], `there is no tool ${quote(name)}`, hint);
    } else if (!rule.tiers.some((tier) => tool.spec.tiers[tier] !== undefined)) {
      const has = Object.keys(tool.spec.tiers).join(', ');
      report(source, [...path, 'tools', index], `tool ${quote(name)} has none of the rule's tiers`, `it has ${has}`);
    }
  });
  const covered = rule.tools.includes('*')
    ? [...world.tools.values()]
    : rule.tools.flatMap((name) => world.tools.get(name) ?? []);
  rule.tiers.forEach((tier, index) => {
    if (rule.tools.some((name) => world.maimedTools.has(name) || (name !== '*' && !world.tools.has(name)))) return;
    // A tool with none of the tiers has been reported above.
    if (!covered.some((tool) => rule.tiers.some((one) => tool.spec.tiers[one] !== undefined))) return;
    if (covered.some((tool) => tool.spec.tiers[tier] !== undefined)) return;
    report(source, [...path, 'tiers', index], `none of the rule's tools has a tier ${tier}`, 'remove it');
  });
  checkEffect(report, source, path, rule, covered);
}

function checkEffect(
  report: Report,
  source: SourceDocument,
  path: FieldPath,
  rule: RuleSpec,
  covered: readonly ToolDocument[],
): void {
  if (rule.effect === 'deny' && rule.reason === undefined) {
    report(source, path, '"reason" is missing', 'a rule that denies says why, and what to do instead');
  }
  const { approval, ...others } = rule.obligations ?? {};
  if (rule.effect !== 'allow' && Object.keys(others).length > 0) {
    report(source, [...path, 'obligations'], `has no effect with ${rule.effect}`, 'put it on the rule that allows');
  }
  if (rule.effect !== 'require_approval' && approval !== undefined) {
    report(
      source,
      [...path, 'obligations', 'approval'],
      `has no effect with ${rule.effect}`,
      'put it on a rule with effect require_approval',
    );
  }
  const ttl = parseDuration(rule.obligations?.ttl ?? '');
  if (ttl === undefined) return;
  // Lengthening a life to the tier's minimum would give more than the rule says; so it is a mistake to be mended here.
  const shorter = covered.flatMap((tool) =>
    rule.tiers.flatMap((tier: Tier) => {
      const min = parseDuration(tool.spec.tiers[tier]?.ttl.min ?? '') ?? 0;
      return ttl < min ? [`${tool.metadata.name}:${tier} (${formatDuration(min)})`] : [];
    }),
  );
  if (shorter.length > 0) {
    report(
      source,
      [...path, 'obligations', 'ttl'],
      `is shorter than the minimum of ${shorter.slice(0, 3).join(', ')}`,
      'raise it, or leave that tool or tier out of the rule',
    );
  }
}

function namesOf(sources: readonly SourceDocument[], kind: AnyDocument['kind']): string[] {
  return sources.flatMap((source) => {
    const value = source.value as { kind?: unknown; metadata?: { name?: unknown } } | null;
    return value?.kind === kind && typeof value.metadata?.name === 'string' ? [value.metadata.name] : [];
  });
}
