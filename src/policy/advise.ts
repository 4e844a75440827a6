import { formatDuration, parseDuration } from '../config/duration.ts';
import type { Issue } from '../config/issue.ts';
import { formatPath, quote } from '../config/schema.ts';
import type { FieldPath, SourceDocument } from '../config/yaml-document.ts';
import type { Tier } from '../domain/model.ts';
import type { PolicyRevision } from '../domain/policy.ts';
import { reviewOverdue } from '../domain/review.ts';
import type { Instant } from '../domain/time.ts';
import { listName, namesOfRule } from './check-rule.ts';
import { constantOf } from './condition.ts';
import type { AnyDocument, DefinitionsDocument, PolicyDocument, RuleSpec } from './documents.ts';

interface Placed {
  source: SourceDocument;
  path: FieldPath;
  id: string;
  rule: RuleSpec;
  agents: ReadonlySet<string>;
  tools: ReadonlySet<string>;
  /** What its condition always comes to; undefined when that depends. */
  always: boolean | undefined;
}

type Warn = (source: SourceDocument, path: FieldPath, message: string, hint: string) => void;

/** What is no mistake and yet is unlikely to be meant: rules without effect, grants without takers, reviews that are due. */
export function advise(sources: readonly SourceDocument[], revision: PolicyRevision, now: Instant): Issue[] {
  const warnings: Issue[] = [];
  const warn: Warn = (source, path, message, hint) =>
    warnings.push({
      file: source.file,
      ...source.at(path),
      path: formatPath(path),
      message,
      hint,
    });
  const rules = placedRules(sources);
  adviseRules(warn, rules, revision);
  adviseAgentsAndTools(warn, sources, rules, revision, now);
  adviseDefinitions(warn, sources);
  return warnings;
}

function placedRules(sources: readonly SourceDocument[]): Placed[] {
  const lists: Record<string, readonly string[]> = {};
  for (const { value } of sources) {
    const document = value as AnyDocument;
    if (document.kind === 'Definitions') Object.assign(lists, document.spec.lists);
  }
  return sources.flatMap((source) => {
    const document = source.value as AnyDocument;
    if (document.kind !== 'Policy') return [];
    return document.spec.rules.map((rule, index) => ({
      source,
      path: ['spec', 'rules', index],
      id: `${document.metadata.name}/${rule.name}`,
      rule,
      agents: new Set(namesOfRule(rule.agents, lists)),
      tools: new Set(namesOfRule(rule.tools, lists)),
      always: rule.when === undefined ? true : constantOf(rule.when),
    }));
  });
}

function adviseRules(warn: Warn, rules: readonly Placed[], revision: PolicyRevision): void {
  // By one agent that it names: a rule that covers another names, or stars, that other's first agent too.
  const unconditional = new Map<string, Placed[]>();
  for (const one of rules) {
    if (one.always !== true) continue;
    for (const agent of one.agents) {
      const list = unconditional.get(agent);
      if (list === undefined) unconditional.set(agent, [one]);
      else list.push(one);
    }
  }
  for (const one of rules) {
    const { source, path, rule } = one;
    if (one.agents.size === 0 || one.tools.size === 0) {
      const [field, what] = one.agents.size === 0 ? ['agents', 'agent'] : ['tools', 'tool'];
      warn(source, [...path, field!], `names no ${what}: its lists are empty`, 'a rule about nothing has no effect');
      continue;
    }
    if (one.always === false) {
      warn(source, [...path, 'when'], 'can never hold', 'remove the rule, or mend its condition');
      continue;
    }
    if (rule.when !== undefined && one.always === true) {
      warn(source, [...path, 'when'], 'always holds', 'leave it out, so that nobody takes it for a condition');
    }
    adviseLimits(warn, one, revision);
    adviseConstraint(warn, one, revision);
    adviseApprovalAfter(warn, one, rules);
    const [agent] = one.agents;
    const candidates = [...(unconditional.get(agent!) ?? []), ...(agent === '*' ? [] : (unconditional.get('*') ?? []))];
    const over = candidates.find((other) => other !== one && covers(other, one) && overrules(other, one));
    if (over === undefined) continue;
    const why =
      over.rule.effect === 'deny' && rule.effect !== 'deny'
        ? `can never grant anything: rule ${over.id} always denies what it is about`
        : `adds nothing: rule ${over.id} always says the same of all that it is about`;
    warn(source, path, why, 'remove one of the two');
  }
}

/** Only tokens can be bound: whatever else such a rule allows is never issued. */
function adviseConstraint(warn: Warn, { source, path, rule, tools }: Placed, revision: PolicyRevision): void {
  const constraint = rule.obligations?.senderConstraint;
  if (constraint === undefined) return;
  const at = [...path, 'obligations', 'senderConstraint'];
  const named = tools.has('*')
    ? [...revision.tools.values()]
    : [...tools].flatMap((name) => revision.tools.get(name) ?? []);
  for (const tool of named) {
    for (const tier of rule.tiers) {
      const provider = tool.tiers[tier]?.provider;
      if (provider === undefined || provider === 'jwt') continue;
      const name = `${tool.name}:${tier}`;
      warn(
        source,
        at,
        `${name} is never issued: what provider ${provider} makes cannot be bound to a key`,
        `leave ${name} out of the rule`,
      );
      return;
    }
  }
}

/** `approvalAfter` is about renewals: an agent that asks anew instead is asked about only where another rule says so. */
function adviseApprovalAfter(warn: Warn, one: Placed, rules: readonly Placed[]): void {
  const { source, path, rule } = one;
  if (rule.effect !== 'allow' || rule.obligations?.renewal?.approvalAfter === undefined) return;
  if (rule.obligations.maxUses !== undefined) return;
  if (rules.some((other) => other.rule.effect !== 'allow' && other.always !== false && covers(other, one))) return;
  warn(
    source,
    [...path, 'obligations', 'renewal', 'approvalAfter'],
    'an agent that asks anew instead of renewing is not asked about',
    'say maxUses: 1, or add a rule that asks when !renewal.active && held.access(…)',
  );
}

function covers(wide: Placed, narrow: Placed): boolean {
  const within = (a: ReadonlySet<string>, b: ReadonlySet<string>) => b.has('*') || [...a].every((name) => b.has(name));
  return (
    within(narrow.agents, wide.agents) &&
    within(narrow.tools, wide.tools) &&
    narrow.rule.tiers.every((tier) => wide.rule.tiers.includes(tier))
  );
}

/** `over` always applies. Whatever the other comes to then changes no decision; of twins the second is told. */
function overrules(over: Placed, one: Placed): boolean {
  if (over.rule.effect === 'deny') {
    if (one.rule.effect !== 'deny') return true;
  } else if (over.rule.effect !== one.rule.effect || one.rule.obligations !== undefined) return false;
  if (over.rule.effect === 'require_approval') return false;
  const twins = covers(one, over) && one.always === true && over.rule.obligations === undefined;
  return !twins || over.id < one.id;
}

function adviseLimits(warn: Warn, { source, path, rule, tools }: Placed, revision: PolicyRevision): void {
  const ttl = parseDuration(rule.obligations?.ttl ?? '');
  if (ttl === undefined) return;
  const names = tools.has('*') ? [...revision.tools.keys()] : [...tools];
  const maxima = names.flatMap((name) =>
    rule.tiers.flatMap((tier) => revision.tools.get(name)?.tiers[tier]?.ttl.max ?? []),
  );
  const most = Math.max(...maxima);
  if (maxima.length > 0 && ttl > most) {
    const message = `is longer than any of its tools allows (${formatDuration(most)})`;
    warn(source, [...path, 'obligations', 'ttl'], message, 'the tier’s max holds; say that, or raise it there');
  }
}

function adviseAgentsAndTools(
  warn: Warn,
  sources: readonly SourceDocument[],
  rules: readonly Placed[],
  revision: PolicyRevision,
  now: Instant,
): void {
  const granting = rules.filter(({ rule, always }) => rule.effect !== 'deny' && always !== false);
  const anyAgent = granting.some(({ agents, tools }) => agents.has('*') && tools.size > 0);
  const granted = new Set(granting.flatMap(({ agents }) => [...agents]));
  const reached = new Set(
    granting
      .filter(({ agents }) => agents.size > 0)
      .flatMap(({ tools, rule }) => [...tools].flatMap((tool) => rule.tiers.map((tier) => `${tool}:${tier}`))),
  );
  for (const source of sources) {
    const document = source.value as AnyDocument;
    const { name } = document.metadata;
    if (document.kind === 'Agent') {
      const agent = revision.agents.get(name)!;
      if (reviewOverdue(agent, now)) {
        const message = `the review was due on ${agent.reviewBy!}`;
        warn(source, ['metadata', 'reviewBy'], message, `${agent.owner} has to look at it, and set the next date`);
      }
      if (!anyAgent && !granted.has(name)) {
        warn(source, ['metadata', 'name'], `no rule grants agent ${quote(name)} anything`, 'add a rule, or remove it');
      }
    } else if (document.kind === 'Tool') {
      const unused = (Object.keys(document.spec.tiers) as Tier[]).filter(
        (tier) => !reached.has(`${name}:${tier}`) && !reached.has(`*:${tier}`),
      );
      for (const tier of unused) {
        const message = `no rule grants anybody ${name}:${tier}`;
        warn(source, ['spec', 'tiers', tier], message, 'add a rule, or remove the tier');
      }
    }
  }
}

function adviseDefinitions(warn: Warn, sources: readonly SourceDocument[]): void {
  const documents = sources.map(({ value }) => value as AnyDocument);
  const policies = documents.filter((document): document is PolicyDocument => document.kind === 'Policy');
  const definitions = documents.filter((document): document is DefinitionsDocument => document.kind === 'Definitions');
  const expressions = [
    ...policies.flatMap(({ spec }) =>
      spec.rules.flatMap(({ when, obligations }) => [when ?? '', obligations?.renewal?.condition ?? '']),
    ),
    ...definitions.flatMap(({ spec }) => Object.values(spec.conditions ?? {})),
  ];
  const used = new Set(
    expressions.flatMap((text) =>
      [...text.matchAll(/\b(conditions|lists)\s*\.\s*(\w+)/g)].map(([, kind, name]) => `${kind} ${name}`),
    ),
  );
  for (const { spec } of policies) {
    for (const entry of spec.rules.flatMap(({ agents, tools }) => [...agents, ...tools])) {
      const list = listName(entry);
      if (list !== undefined) used.add(`lists ${list}`);
    }
  }
  for (const source of sources) {
    const document = source.value as AnyDocument;
    if (document.kind !== 'Definitions') continue;
    for (const kind of ['conditions', 'lists'] as const) {
      for (const name of Object.keys(document.spec[kind] ?? {})) {
        if (used.has(`${kind} ${name}`)) continue;
        warn(source, ['spec', kind, name], `nothing uses ${kind}.${name}`, 'remove it');
      }
    }
  }
}
