import { formatDuration, parseDuration } from '../config/duration.ts';
import type { Issue } from '../config/issue.ts';
import { formatPath, quote } from '../config/schema.ts';
import { suggestion } from '../config/suggest.ts';
import type { FieldPath, Position, SourceDocument } from '../config/yaml-document.ts';
import { checkArguments } from '../domain/arguments.ts';
import { noneEarlier, rateKey } from '../domain/facts.ts';
import type { Earlier, Facts, RateNeed } from '../domain/facts.ts';
import type { Tier } from '../domain/model.ts';
import type { Instant } from '../domain/time.ts';
import type { DecisionInput, PolicyRevision, RenewalContext } from '../domain/policy.ts';
import { highestValue, isSignalKind, knownKinds } from '../domain/signals/model.ts';
import type { PolicyCase, PolicyDocument, PolicyTestDocument } from './documents.ts';

/** One expectation that was not met. */
export interface Difference {
  field: 'effect' | 'rule' | 'ttl' | 'reason';
  expected: string;
  got: string;
  place: Position;
}

export interface CaseResult {
  suite: string;
  name: string;
  file: string;
  place: Position;
  /** What policy said, in a sentence. */
  reason: string;
  differences: Difference[];
}

export interface RuleCoverage {
  rule: string;
  file: string;
  place: Position;
  /** Some case made its condition hold. */
  covered: boolean;
}

export interface TestRun {
  cases: CaseResult[];
  rules: RuleCoverage[];
}

/** A Monday at noon, UTC: a time at which nobody is surprised by what policy says. */
const usualNow = Date.UTC(2026, 2, 2, 12);
const usualRemaining = 3_600_000;

/** Names in tests that policy does not know: a case about a misspelt agent would pass as a deny for ever. */
export function checkTests(
  tests: readonly SourceDocument[],
  sources: readonly SourceDocument[],
  revision: PolicyRevision,
): Issue[] {
  const issues: Issue[] = [];
  const rules = rulesOf(sources).map(({ rule }) => rule);
  for (const source of tests) {
    const report = (path: FieldPath, message: string, hint: string) =>
      issues.push({
        file: source.file,
        ...source.at(path),
        path: formatPath(path),
        message,
        hint,
      });
    (source.value as PolicyTestDocument).spec.cases.forEach((one, index) => {
      const at = ['spec', 'cases', index];
      const { agent, tool, tier, held, called, rates, signals } = one.request;
      if (!revision.agents.has(agent)) {
        const hint = suggestion(agent, revision.agents.keys(), 'agents');
        report([...at, 'request', 'agent'], `there is no agent ${quote(agent)}`, hint);
      }
      const registered = revision.tools.get(tool);
      if (registered === undefined) {
        const hint = suggestion(tool, revision.tools.keys(), 'tools');
        report([...at, 'request', 'tool'], `there is no tool ${quote(tool)}`, hint);
      } else if (registered.tiers[tier] === undefined) {
        const has = Object.keys(registered.tiers).join(', ');
        report([...at, 'request', 'tier'], `tool ${quote(tool)} has no tier ${tier}`, `it has ${has}`);
      }
      for (const [field, accesses] of Object.entries({ held, called })) {
        for (const name of Object.keys(accesses ?? {})) {
          const [ofTool, ofTier] = accessOf(name);
          if (revision.tools.get(ofTool)?.tiers[ofTier] !== undefined) continue;
          report([...at, 'request', field, name], `there is no ${quote(name)}`, 'write it as tool:tier');
        }
      }
      for (const name of Object.keys(rates ?? {})) {
        if (rateOf(name) !== undefined) continue;
        report(
          [...at, 'request', 'rates', name],
          'is not the call that it stands for',
          "write it like rate.agent('1h')",
        );
      }
      for (const [place, { kind }] of (signals ?? []).entries()) {
        if (isSignalKind(kind)) continue;
        report(
          [...at, 'request', 'signals', place, 'kind'],
          `there is no kind of signal ${quote(kind)}`,
          `${suggestion(kind, Object.keys(knownKinds), 'kinds of signals')}; a kind of your own begins with x_`,
        );
      }
      const { rule } = one.expect;
      if (rule === undefined || rule === '' || rules.includes(rule)) return;
      report([...at, 'expect', 'rule'], `there is no rule ${quote(rule)}`, suggestion(rule, rules, 'rules'));
    });
  }
  return issues;
}

/** `revisionFor` gives the revision under an environment of the configuration that a case describes. */
export function runTests(
  tests: readonly SourceDocument[],
  sources: readonly SourceDocument[],
  revisionFor: (environment: Readonly<Record<string, string>> | undefined) => PolicyRevision,
): TestRun {
  const covered = new Set<string>();
  const cases = tests.flatMap((source) => {
    const document = source.value as PolicyTestDocument;
    return document.spec.cases.map((one, index): CaseResult => {
      const path = ['spec', 'cases', index];
      const revision = revisionFor(one.request.environment);
      const got = ask(revision, one, (rule) => covered.add(rule));
      return {
        suite: document.metadata.name,
        name: one.name,
        file: source.file,
        place: source.at([...path, 'name']),
        reason: got.reason,
        differences: differences(one, got).map((difference) => ({
          ...difference,
          place: source.at([...path, 'expect', difference.field]),
        })),
      };
    });
  });
  const rules = rulesOf(sources).map(({ rule, source, path }) => ({
    rule,
    file: source.file,
    place: source.at([...path, 'name']),
    covered: covered.has(rule),
  }));
  return { cases, rules };
}

interface Answer {
  effect: string;
  rule: string;
  reason: string;
  ttl: number | undefined;
}

function ask(revision: PolicyRevision, one: PolicyCase, onHeld: (rule: string) => void): Answer {
  const input = inputOf(revision, one);
  const { tool, tier } = input.access;
  const specs = revision.tools.get(tool)?.tiers[tier]?.arguments ?? {};
  try {
    checkArguments(`${tool}:${tier}`, specs, input.arguments ?? {});
  } catch (error) {
    return { effect: 'deny', rule: '', reason: (error as Error).message, ttl: undefined };
  }
  const decision = revision.decide(input, ({ rule, held }) => {
    if (held === true) onHeld(rule);
  });
  const { effect, rule, reason } = decision;
  return { effect, rule, reason, ttl: decision.ttl ?? decision.approval?.ttl };
}

function differences({ expect }: PolicyCase, got: Answer): Omit<Difference, 'place'>[] {
  const found: Omit<Difference, 'place'>[] = [];
  if (expect.effect !== got.effect) found.push({ field: 'effect', expected: expect.effect, got: got.effect });
  if (expect.rule !== undefined && expect.rule !== got.rule) {
    found.push({ field: 'rule', expected: expect.rule || 'none', got: got.rule || 'none' });
  }
  if (expect.ttl !== undefined && parseDuration(expect.ttl) !== got.ttl) {
    found.push({ field: 'ttl', expected: expect.ttl, got: got.ttl === undefined ? 'none' : formatDuration(got.ttl) });
  }
  if (expect.reason !== undefined && !got.reason.includes(expect.reason)) {
    found.push({ field: 'reason', expected: `… ${expect.reason} …`, got: got.reason });
  }
  return found;
}

/** The same question as a broker would put it. */
function inputOf(revision: PolicyRevision, { request }: PolicyCase): DecisionInput {
  const { agent, tool, tier, task = {}, renewal } = request;
  const now = request.now === undefined ? usualNow : Date.parse(request.now);
  const access = { tool, tier };
  const depth = task.depth ?? 0;
  const opener = task.opener ?? 'spiffe://example.test/orchestrator';
  // A task that has had something for so long is as old at least.
  const taskAge = parseDuration(task.age ?? request.earlier?.age ?? '') ?? 0;
  const needs = revision.needs(agent, access, renewal !== undefined, taskAge);
  const given = new Map(
    Object.entries(request.rates ?? {}).map(([call, count]) => [rateKey(rateOf(call)!), count] as const),
  );
  const facts: Facts = {
    held: Object.entries(request.held ?? {}).map(([name, count]) => {
      const [heldTool, heldTier] = accessOf(name);
      return { tool: heldTool, tier: heldTier, count };
    }),
    called: Object.entries(request.called ?? {}).map(([name, { reported = 0, attested = 0 }]) => {
      const [calledTool, calledTier] = accessOf(name);
      return { tool: calledTool, tier: calledTier, reported, attested };
    }),
    lineage: { depth, orchestrator: task.orchestrator ?? opener },
    earlier: earlierOf(request, now),
    rates: new Map((needs?.rates ?? []).map((need) => [rateKey(need), given.get(rateKey(need)) ?? 0])),
    signals: (request.signals ?? []).map(({ value = highestValue, source = 'test', ...signal }) => ({
      ...signal,
      value,
      source,
    })),
  };
  return {
    task: {
      taskId: `tsk_${'0'.repeat(32)}`,
      parentTaskId: depth === 0 ? undefined : `tsk_${'1'.repeat(32)}`,
      agent,
      opener,
      context: task.context ?? {},
      labels: task.labels ?? {},
      openedAt: now - taskAge,
      deadline: now + (parseDuration(task.remaining ?? '') ?? usualRemaining),
    },
    workload: request.workload ?? revision.agents.get(agent)?.workloads[0]?.replace(/\/\*$/, '/a'),
    access,
    now,
    renewal: renewal === undefined ? undefined : renewalOf(renewal, task.heartbeat ?? false),
    arguments: request.arguments ?? {},
    facts,
  };
}

function renewalOf(
  { count = 0, age = '0s', sinceIssue = age, sinceApproval }: NonNullable<PolicyCase['request']['renewal']>,
  heartbeat: boolean,
): RenewalContext {
  const last = sinceApproval && { count: sinceApproval.count, age: parseDuration(sinceApproval.age)! };
  return { count, age: parseDuration(age)!, sinceIssue: parseDuration(sinceIssue)!, sinceApproval: last, heartbeat };
}

/** What the task has had: as told, else the line that is renewed and nothing beside it. */
function earlierOf({ earlier, renewal }: PolicyCase['request'], now: Instant): Earlier {
  if (earlier !== undefined) return { credentials: earlier.credentials, since: now - parseDuration(earlier.age)! };
  if (renewal === undefined) return noneEarlier;
  return { credentials: (renewal.count ?? 0) + 1, since: now - (parseDuration(renewal.age ?? '') ?? 0) };
}

function accessOf(name: string): [tool: string, tier: Tier] {
  const colon = name.lastIndexOf(':');
  return [name.slice(0, colon), name.slice(colon + 1) as Tier];
}

function rateOf(call: string): RateNeed | undefined {
  const match = /^rate\.(task|agent|tool)\(\s*['"]([^'"]+)['"]\s*(?:,\s*['"]([^'"]+)['"]\s*)?\)$/.exec(call);
  const window = parseDuration(match?.[2] ?? '');
  if (match === null || window === undefined) return undefined;
  return { scope: match[1] as RateNeed['scope'], window, tool: match[3] };
}

function rulesOf(sources: readonly SourceDocument[]): { rule: string; source: SourceDocument; path: FieldPath }[] {
  return sources.flatMap((source) => {
    const document = source.value as PolicyDocument;
    if (document.kind !== 'Policy') return [];
    return document.spec.rules.map((rule, index) => ({
      rule: `${document.metadata.name}/${rule.name}`,
      source,
      path: ['spec', 'rules', index],
    }));
  });
}
