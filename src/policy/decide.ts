import { formatDuration } from '../config/duration.ts';
import type { Tier } from '../domain/model.ts';
import type { Decision, DecisionInput, ToolTier } from '../domain/policy.ts';
import type { Millis } from '../domain/time.ts';
import { mergeApprovals } from './approval.ts';
import type { RuleApproval } from './approval.ts';
import { CallerView, RenewalView, TaskView, TimeView } from './activation.ts';
import type { Activation, AgentView, ToolView } from './activation.ts';
import type { Condition, ConditionResult } from './condition.ts';
import type { RuleSpec } from './documents.ts';

/** A rule ready to be asked. `order` is its place by policy and name: what is reported does not hang on files. */
export interface CompiledRule {
  id: string;
  order: number;
  tiers: ReadonlySet<Tier>;
  effect: RuleSpec['effect'];
  condition: Condition | undefined;
  reason: string | undefined;
  ttl: Millis | undefined;
  maxRenewals: number | undefined;
  maxAge: Millis | undefined;
  approval: RuleApproval | undefined;
}

/** Rules by agent and tool, `*` included, so that rules about others cost nothing. */
export type RuleIndex = ReadonlyMap<string, ReadonlyMap<string, readonly CompiledRule[]>>;

export interface Subject {
  agent: AgentView;
  tool: ToolView;
  tier: ToolTier;
}

/** Deny wins over approval, approval over allow, and nothing matching is a deny (design §3.8). Pure. */
export function decideByRules(index: RuleIndex, subject: Subject, input: DecisionInput): Decision {
  const { task, access } = input;
  let deny: CompiledRule | undefined;
  let denyFault: string | undefined;
  const approvals: CompiledRule[] = [];
  const allows: CompiledRule[] = [];
  let missed: CompiledRule | undefined;
  let missedFault: string | undefined;

  let activation: Activation | undefined;
  for (const byTool of [index.get(task.agent), index.get('*')]) {
    if (byTool === undefined) continue;
    for (const rules of [byTool.get(access.tool), byTool.get('*')]) {
      if (rules === undefined) continue;
      for (const rule of rules) {
        if (!rule.tiers.has(access.tier)) continue;
        let holds: ConditionResult = true;
        if (rule.condition !== undefined) {
          activation ??= activationFor(subject, input);
          holds = rule.condition(activation);
        }
        const failed = typeof holds === 'object' ? holds.failed : undefined;
        if (rule.effect !== 'allow' && failed !== undefined) {
          // Fail closed: what may have been meant to stop this does stop it (design §3.7).
          if (deny === undefined || rule.order < deny.order) [deny, denyFault] = [rule, failed];
        } else if (holds !== true) {
          if (rule.effect === 'allow' && (missed === undefined || rule.order < missed.order)) {
            [missed, missedFault] = [rule, failed];
          }
        } else if (rule.effect === 'deny') {
          if (deny === undefined || rule.order < deny.order) [deny, denyFault] = [rule, undefined];
        } else if (rule.effect === 'require_approval') {
          approvals.push(rule);
        } else allows.push(rule);
      }
    }
  }

  if (deny !== undefined) {
    const why = deny.reason ?? `rule ${deny.id} applies`;
    return refusal(
      deny.id,
      denyFault === undefined ? why : `${why} (denied because a condition could not be evaluated: ${denyFault})`,
    );
  }
  if (approvals.length > 0) return approvable(approvals, allows, subject.tier, input);
  if (allows.length === 0) return noMatch(input, missed, missedFault);
  return allowance(allows, subject.tier, input);
}

/** What the rules that allow say holds for what is approved as well. */
function approvable(
  approvals: readonly CompiledRule[],
  allows: readonly CompiledRule[],
  tier: ToolTier,
  input: DecisionInput,
): Decision {
  const allowed = allows.length === 0 ? undefined : allowance(allows, tier, input);
  if (allowed?.effect === 'deny') return allowed;
  const asking = approvals.toSorted((a, b) => a.order - b.order);
  const [first] = asking as [CompiledRule, ...CompiledRule[]];
  const { tool, tier: name } = input.access;
  return {
    effect: 'needs_approval',
    rule: first.id,
    reason: first.reason ?? `rule ${first.id} asks for a person's approval of ${tool}:${name}`,
    ttl: undefined,
    approval: mergeApprovals(
      asking.map((rule) => rule.approval!),
      allowed?.ttl ?? tier.ttl.default,
    ),
  };
}

function noMatch(input: DecisionInput, missed: CompiledRule | undefined, fault: string | undefined): Decision {
  const { tool, tier } = input.access;
  const near =
    missed === undefined
      ? ''
      : fault === undefined
        ? `; the condition of ${missed.id} does not hold`
        : `; the condition of ${missed.id} could not be evaluated: ${fault}`;
  return refusal('', `no rule allows agent ${input.task.agent} to use ${tool}:${tier}${near}`);
}

/** Obligations of all rules that allow merge to the strictest. */
function allowance(allows: readonly CompiledRule[], tier: ToolTier, input: DecisionInput): Decision {
  const first = allows.reduce((a, b) => (b.order < a.order ? b : a));
  if (input.renewal !== undefined) {
    const refused = renewalRefusal(allows, input.renewal);
    if (refused !== undefined) return refused;
  }
  const strictest = least(allows, (rule) => rule.ttl);
  const ttl = Math.min(strictest?.ttl ?? tier.ttl.default, tier.ttl.max);
  const rule = strictest ?? first;
  return { effect: 'allow', rule: rule.id, reason: `rule ${rule.id} allows it for ${formatDuration(ttl)}`, ttl };
}

function renewalRefusal(
  allows: readonly CompiledRule[],
  renewal: { count: number; age: Millis },
): Decision | undefined {
  const count = least(allows, (rule) => rule.maxRenewals);
  if (count !== undefined && renewal.count >= count.maxRenewals!) {
    const times = count.maxRenewals === 1 ? 'once' : `${count.maxRenewals} times`;
    return refusal(
      count.id,
      count.maxRenewals === 0
        ? `rule ${count.id} allows no renewal`
        : `rule ${count.id} allows renewal at most ${times}, which have been used`,
    );
  }
  const age = least(allows, (rule) => rule.maxAge);
  if (age === undefined || renewal.age < age.maxAge!) return undefined;
  return refusal(
    age.id,
    `rule ${age.id} allows renewal until ${formatDuration(age.maxAge!)} after the first issue, which is over`,
  );
}

function least(
  rules: readonly CompiledRule[],
  of: (rule: CompiledRule) => number | undefined,
): CompiledRule | undefined {
  let best: CompiledRule | undefined;
  for (const rule of rules) {
    const value = of(rule);
    if (value === undefined) continue;
    const bestValue = best === undefined ? Infinity : of(best)!;
    if (value < bestValue || (value === bestValue && rule.order < best!.order)) best = rule;
  }
  return best;
}

export function refusal(rule: string, reason: string): Decision {
  return { effect: 'deny', rule, reason, ttl: undefined };
}

function activationFor({ agent, tool }: Subject, input: DecisionInput): Activation {
  return {
    agent,
    tool,
    task: new TaskView(input.task, input.now),
    tier: input.access.tier,
    caller: new CallerView(input.workload),
    renewal: new RenewalView(input.renewal),
    time: new TimeView(input.now),
  };
}
