import { parseDuration } from '../config/duration.ts';
import { deepFreeze } from '../config/freeze.ts';
import { ConfigError } from '../config/issue.ts';
import type { Issue } from '../config/issue.ts';
import { validateShape } from '../config/schema.ts';
import { suggestion } from '../config/suggest.ts';
import { workloadIndex } from '../config/workload-pattern.ts';
import type { SourceDocument } from '../config/yaml-document.ts';
import type { Agent, PolicyRevision, Tool, ToolTier } from '../domain/policy.ts';
import { approvalOf } from './approval.ts';
import { AgentView, ToolView } from './activation.ts';
import { canonicalDocuments, digestOf, remember } from './canonical.ts';
import { checkDocuments } from './check-documents.ts';
import type { Checked, KnownNames } from './check-documents.ts';
import { decideByRules, refusal } from './decide.ts';
import type { CompiledRule } from './decide.ts';
import type { AgentDocument, AnyDocument, PolicyDocument, TierSpec, ToolDocument } from './documents.ts';

const kinds = { Agent: 'agent', Tool: 'tool', Policy: 'policy' } as const;

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
): { revision: PolicyRevision } | { issues: Issue[] } {
  const shape: Issue[] = [];
  const sound: SourceDocument[] = [];
  const maimed: SourceDocument[] = [];
  for (const source of sources) {
    const issues = checkShape(source);
    shape.push(...issues);
    (issues.length === 0 ? sound : maimed).push(source);
  }
  const checked = checkDocuments(sound, maimed, known);
  const issues = [...shape, ...checked.issues];
  if (issues.length > 0) return { issues };
  return {
    revision: build(
      sound.map((source) => structuredClone(source.value) as AnyDocument),
      sound,
      checked,
    ),
  };
}

function checkShape(source: SourceDocument): Issue[] {
  const { value } = source;
  const issue = (path: string, at: { line: number; column: number }, message: string, hint?: string): Issue[] => [
    { file: source.file, ...at, path, message, ...(hint === undefined ? {} : { hint }) },
  ];
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    return issue('', source.at([]), 'is not a document', 'it begins with apiVersion, kind, metadata, spec');
  }
  const kind = (value as { kind?: unknown }).kind;
  if (kind === undefined) return issue('', source.at([]), '"kind" is missing', 'add kind: Agent, Tool or Policy');
  if (typeof kind !== 'string' || !Object.hasOwn(kinds, kind)) {
    const hint = typeof kind === 'string' ? suggestion(kind, Object.keys(kinds), 'kinds') : undefined;
    return issue('kind', source.at(['kind']), 'must be one of Agent, Tool, Policy', hint);
  }
  return validateShape(kinds[kind as keyof typeof kinds], source);
}

function build(
  documents: readonly AnyDocument[],
  sources: readonly SourceDocument[],
  checked: Checked,
): PolicyRevision {
  const agents = new Map<string, Agent>();
  const tools = new Map<string, Tool>();
  const policies: PolicyDocument[] = [];
  documents.forEach((document, index) => {
    if (document.kind === 'Agent') agents.set(document.metadata.name, deepFreeze(agentOf(document)));
    else if (document.kind === 'Tool') tools.set(document.metadata.name, deepFreeze(toolOf(document)));
    // The source's own objects: conditions are kept by rule.
    else policies.push(sources[index]!.value as PolicyDocument);
  });
  const agentViews = new Map([...agents].map(([name, agent]) => [name, new AgentView(agent)]));
  const toolViews = new Map([...tools].map(([name, tool]) => [name, new ToolView(tool)]));
  const index = indexRules(policies, checked);
  const canonical = canonicalDocuments(documents);

  const revision: PolicyRevision = {
    digest: digestOf(canonical),
    agents,
    tools,
    agentsOf: workloadIndex(
      [...agents.values()].flatMap((agent) =>
        agent.workloads.map((pattern): [string, string] => [pattern, agent.name]),
      ),
    ),
    decide: (input) => {
      const { agent: agentName } = input.task;
      const { tool: toolName, tier: tierName } = input.access;
      const agent = agentViews.get(agentName);
      if (agent === undefined) return refusal('', `policy registers no agent ${agentName}`);
      const tool = toolViews.get(toolName);
      if (tool === undefined) return refusal('', `policy registers no tool ${toolName}`);
      const tier = tools.get(toolName)!.tiers[tierName];
      if (tier === undefined) return refusal('', `tool ${toolName} has no tier ${tierName}`);
      return decideByRules(index, { agent, tool, tier }, input);
    },
  };
  return remember(Object.freeze(revision), canonical);
}

function indexRules(policies: readonly PolicyDocument[], checked: Checked): Map<string, Map<string, CompiledRule[]>> {
  const index = new Map<string, Map<string, CompiledRule[]>>();
  const rules = policies
    .flatMap(({ metadata, spec }) => spec.rules.map((rule) => ({ id: `${metadata.name}/${rule.name}`, rule })))
    .sort((a, b) => (a.id < b.id ? -1 : 1));
  rules.forEach(({ id, rule }, order) => {
    const compiled: CompiledRule = {
      id,
      order,
      tiers: new Set(rule.tiers),
      effect: rule.effect,
      condition: checked.conditions.get(rule),
      reason: rule.reason,
      ttl: optionalMillis(rule.obligations?.ttl),
      maxRenewals: rule.obligations?.renewal?.max,
      maxAge: optionalMillis(rule.obligations?.renewal?.maxAge),
      approval: rule.effect === 'require_approval' ? approvalOf(id, rule.obligations?.approval) : undefined,
    };
    for (const agent of rule.agents) {
      const byTool = index.get(agent) ?? new Map<string, CompiledRule[]>();
      index.set(agent, byTool);
      for (const tool of rule.tools) {
        const list = byTool.get(tool);
        if (list === undefined) byTool.set(tool, [compiled]);
        else list.push(compiled);
      }
    }
  });
  return index;
}

function agentOf({ metadata, spec }: AgentDocument): Agent {
  return {
    name: metadata.name,
    owner: metadata.owner,
    description: metadata.description ?? '',
    reviewBy: metadata.reviewBy,
    labels: metadata.labels ?? {},
    workloads: spec.workloads,
  };
}

function toolOf({ metadata, spec }: ToolDocument): Tool {
  return {
    name: metadata.name,
    owner: metadata.owner,
    description: metadata.description ?? '',
    resource: spec.resource,
    labels: metadata.labels ?? {},
    tiers: Object.fromEntries(Object.entries(spec.tiers).map(([name, tier]) => [name, tierOf(tier)])),
  };
}

function tierOf(tier: TierSpec): ToolTier {
  return {
    provider: tier.provider,
    revocation: tier.revocation,
    ttl: {
      min: parseDuration(tier.ttl.min)!,
      default: parseDuration(tier.ttl.default)!,
      max: parseDuration(tier.ttl.max)!,
    },
    actions: tier.actions ?? [],
    options: tier[tier.provider as 'jwt' | 'postgres'] ?? {},
  };
}

function optionalMillis(text: string | undefined): number | undefined {
  return text === undefined ? undefined : parseDuration(text);
}
