import { parseDuration } from '../config/duration.ts';
import { deepFreeze } from '../config/freeze.ts';
import { ConfigError } from '../config/issue.ts';
import type { Issue } from '../config/issue.ts';
import { validateShape } from '../config/schema.ts';
import { suggestion } from '../config/suggest.ts';
import { workloadIndex } from '../config/workload-pattern.ts';
import type { SourceDocument } from '../config/yaml-document.ts';
import { defaultMaxLength } from '../domain/arguments.ts';
import type { ArgumentSpec, ArgumentSpecs } from '../domain/arguments.ts';
import type { Agent, Decision, DecisionInput, PolicyRevision, Tool, ToolTier } from '../domain/policy.ts';
import { approvalOf } from './approval.ts';
import { ListsView, ToolView } from './activation.ts';
import { canonicalDocuments, digestOf, remember } from './canonical.ts';
import { checkDocuments } from './check-documents.ts';
import type { Checked, KnownNames } from './check-documents.ts';
import { namesOfRule } from './check-rule.ts';
import { decideByRules, needsOfRules, watchedByRules } from './decide.ts';
import type { Subject, World } from './decide.ts';
import { ttlOf } from './defaults.ts';
import { forecastByRules } from './forecast.ts';
import type {
  AgentDocument,
  AnyDocument,
  DefaultsDocument,
  PolicyDocument,
  PolicyTestDocument,
  ProviderName,
  RuleSpec,
  TierSpec,
  ToolDocument,
} from './documents.ts';
import { refusal } from './obligations.ts';
import type { CompiledRule, RuleRenewal } from './obligations.ts';

const kinds = {
  Agent: 'agent',
  Tool: 'tool',
  Policy: 'policy',
  Definitions: 'definitions',
  Defaults: 'defaults',
  PolicyTest: 'policytest',
} as const;

/** Makes a revision of plain documents, for example those of `describeRevision`. Throws ConfigError. */
export function compilePolicy(documents: readonly unknown[], known: KnownNames = {}): PolicyRevision {
  const position = { line: 1, column: 1 };
  const sources = documents.map((value, index): SourceDocument => ({
    file: `documents[${index}]`,
    value,
    at: () => position,
    atKey: () => position,
    within: () => position,
  }));
  const result = compileSources(sources, known);
  if ('issues' in result) throw new ConfigError(result.issues);
  return result.revision;
}

export function compileSources(
  sources: readonly SourceDocument[],
  known: KnownNames,
): { revision: PolicyRevision; sources: SourceDocument[]; tests: SourceDocument[] } | { issues: Issue[] } {
  const shape: Issue[] = [];
  const sound: SourceDocument[] = [];
  const maimed: SourceDocument[] = [];
  const tests: SourceDocument[] = [];
  for (const source of sources) {
    const issues = checkShape(source);
    shape.push(...issues);
    if (issues.length > 0) maimed.push(source);
    // Tests are about a revision and no part of it: to add one changes nothing that runs.
    else if ((source.value as PolicyTestDocument).kind === 'PolicyTest') tests.push(source);
    else sound.push(source);
  }
  const checked = checkDocuments(sound, maimed, known);
  const issues = [...shape, ...checked.issues];
  if (issues.length > 0) return { issues };
  const documents = sound.map((source) => structuredClone(source.value) as AnyDocument);
  return { revision: build(documents, sound, checked, known), sources: sound, tests };
}

function checkShape(source: SourceDocument): Issue[] {
  const { value } = source;
  const issue = (path: string, at: { line: number; column: number }, message: string, hint: string): Issue[] => [
    { file: source.file, ...at, path, message, hint },
  ];
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    return issue('', source.at([]), 'is not a document', 'it begins with apiVersion, kind, metadata, spec');
  }
  const kind = (value as { kind?: unknown }).kind;
  if (kind === undefined)
    return issue(
      '',
      source.at([]),
      '"kind" is missing',
      'add kind: Agent, Tool, Policy, Definitions, Defaults or PolicyTest',
    );
  if (typeof kind !== 'string' || !Object.hasOwn(kinds, kind)) {
    const hint = suggestion(String(kind), Object.keys(kinds), 'kinds');
    return issue(
      'kind',
      source.at(['kind']),
      'must be one of Agent, Tool, Policy, Definitions, Defaults, PolicyTest',
      hint,
    );
  }
  return validateShape(kinds[kind as keyof typeof kinds], source);
}

function build(
  documents: readonly AnyDocument[],
  sources: readonly SourceDocument[],
  checked: Checked,
  known: KnownNames,
): PolicyRevision {
  const agents = new Map<string, Agent>();
  const tools = new Map<string, Tool>();
  const policies: PolicyDocument[] = [];
  const { defaults } = checked;
  documents.forEach((document, index) => {
    if (document.kind === 'Agent') agents.set(document.metadata.name, deepFreeze(agentOf(document)));
    else if (document.kind === 'Tool') tools.set(document.metadata.name, deepFreeze(toolOf(document, defaults)));
    // The source's own objects: conditions are kept by rule.
    else if (document.kind === 'Policy') policies.push(sources[index]!.value as PolicyDocument);
  });
  const toolViews = new Map([...tools].map(([name, tool]) => [name, new ToolView(tool)]));
  const index = indexRules(policies, checked);
  const world: World = {
    tools,
    lists: new ListsView(structuredClone(checked.lists)),
    environment: { ...known.environment },
    timeZone: defaults?.spec.timeZone ?? 'UTC',
  };
  const canonical = canonicalDocuments(documents);

  const revision: PolicyRevision = {
    digest: digestOf(canonical),
    agents,
    tools,
    reevaluate: policies.some(({ spec }) => spec.reevaluate === true),
    agentsOf: workloadIndex(
      [...agents.values()].flatMap((agent) =>
        agent.workloads.map((pattern): [string, string] => [pattern, agent.name]),
      ),
    ),
    toolsOf: workloadIndex(
      [...tools.values()].flatMap((tool) => tool.workloads.map((pattern): [string, string] => [pattern, tool.name])),
    ),
    watching: [...index.values()].some((byTool) =>
      [...byTool.values()].flat().some(({ condition }) => condition?.watches === true),
    ),
    watches: (agent, access) => watchedByRules(index, agent, access),
    needs: (agent, access, renewal, taskAge) => needsOfRules(index, agent, access, renewal, taskAge),
    decide: (input, considered) => {
      const subject = subjectOf(input);
      return 'effect' in subject ? subject : decideByRules(index, world, subject, input, considered);
    },
    forecast: (input) => {
      const subject = subjectOf(input);
      return 'effect' in subject ? subject : forecastByRules(index, world, subject, input);
    },
  };

  function subjectOf({ task, access }: DecisionInput): Subject | Decision {
    const agent = agents.get(task.agent);
    if (agent === undefined) return refusal('', `policy registers no agent ${task.agent}`);
    const tool = toolViews.get(access.tool);
    if (tool === undefined) return refusal('', `policy registers no tool ${access.tool}`);
    const tier = tools.get(access.tool)!.tiers[access.tier];
    if (tier === undefined) return refusal('', `tool ${access.tool} has no tier ${access.tier}`);
    return { agent, tool, tier };
  }
  return remember(Object.freeze(revision), canonical);
}

function indexRules(policies: readonly PolicyDocument[], checked: Checked): Map<string, Map<string, CompiledRule[]>> {
  const index = new Map<string, Map<string, CompiledRule[]>>();
  const rules = policies
    .flatMap(({ metadata, spec }) => spec.rules.map((rule) => ({ id: `${metadata.name}/${rule.name}`, rule })))
    .sort((a, b) => (a.id < b.id ? -1 : 1));
  rules.forEach(({ id, rule }, order) => {
    const compiled = compiledRule(id, order, rule, checked);
    for (const agent of namesOfRule(rule.agents, checked.lists)) {
      const byTool = index.get(agent) ?? new Map<string, CompiledRule[]>();
      index.set(agent, byTool);
      for (const tool of namesOfRule(rule.tools, checked.lists)) {
        const list = byTool.get(tool);
        if (list === undefined) byTool.set(tool, [compiled]);
        else list.push(compiled);
      }
    }
  });
  return index;
}

function compiledRule(id: string, order: number, rule: RuleSpec, checked: Checked): CompiledRule {
  const conditions = checked.conditions.get(rule);
  const { obligations = {} } = rule;
  const { renewal = {} } = obligations;
  const compiledRenewal: RuleRenewal = {
    ofTask: renewal.scope !== 'line',
    max: renewal.max,
    maxAge: optionalMillis(renewal.maxAge),
    notBefore: optionalMillis(renewal.notBefore),
    condition: conditions?.renewal,
    requireHeartbeat: renewal.requireHeartbeat ?? false,
    approvalAfterCount: renewal.approvalAfter?.count,
    approvalAfterAge: optionalMillis(renewal.approvalAfter?.age),
  };
  return {
    id,
    order,
    tiers: new Set(rule.tiers),
    effect: rule.effect,
    condition: conditions?.when,
    timeZone: rule.timeZone,
    reason: rule.reason,
    ttl: optionalMillis(obligations.ttl),
    maxUses: obligations.maxUses,
    renewal: compiledRenewal,
    senderConstraint: obligations.senderConstraint,
    argumentLimits: obligations.arguments,
    approval: approvalOf(id, obligations.approval),
  };
}

function agentOf({ metadata, spec }: AgentDocument): Agent {
  return {
    name: metadata.name,
    owner: metadata.owner,
    description: metadata.description ?? '',
    reviewBy: metadata.reviewBy,
    risk: spec.risk,
    labels: metadata.labels ?? {},
    workloads: spec.workloads,
    ...(spec.delegation === undefined ? {} : { delegation: { maxDepth: 1, maxOpenChildren: 16, ...spec.delegation } }),
  };
}

function toolOf(document: ToolDocument, defaults: DefaultsDocument | undefined): Tool {
  const { metadata, spec } = document;
  return {
    name: metadata.name,
    owner: metadata.owner,
    description: metadata.description ?? '',
    resource: spec.resource,
    labels: metadata.labels ?? {},
    workloads: spec.workloads ?? [],
    tiers: Object.fromEntries(
      Object.entries(spec.tiers).map(([name, tier]) => [name, tierOf(tier, document, defaults)]),
    ),
  };
}

function tierOf(tier: TierSpec, tool: ToolDocument, defaults: DefaultsDocument | undefined): ToolTier {
  return {
    provider: tier.provider,
    revocation: tier.revocation,
    ...(tier.canary === true ? { canary: true } : {}),
    ttl: ttlOf(defaults, tool, tier),
    actions: tier.actions ?? [],
    ...(tier.arguments === undefined ? {} : { arguments: argumentsOf(tier.arguments) }),
    options: tier[tier.provider as ProviderName] ?? {},
  };
}

function argumentsOf(declared: NonNullable<TierSpec['arguments']>): ArgumentSpecs {
  const specs: Record<string, ArgumentSpec> = {};
  for (const [name, { required = false, description = '', ...spec }] of Object.entries(declared)) {
    const length = spec.type === 'string' ? { maxLength: spec.maxLength ?? defaultMaxLength } : {};
    specs[name] = { ...spec, ...length, required, description };
  }
  return specs;
}

function optionalMillis(text: string | undefined): number | undefined {
  return text === undefined ? undefined : parseDuration(text);
}
