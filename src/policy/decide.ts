import { formatDuration } from '../config/duration.ts';
import { mergeNeeds, noNeeds } from '../domain/facts.ts';
import type { FactNeeds } from '../domain/facts.ts';
import type { Tier, ToolAccess } from '../domain/model.ts';
import type { Millis } from '../domain/time.ts';
import type { Agent, ConsideredRule, Decision, DecisionInput, Tool, ToolTier } from '../domain/policy.ts';
import { mergeApprovals } from './approval.ts';
import {
  AgentView,
  ArgsView,
  CalledView,
  CallerView,
  CountView,
  HeldView,
  RateView,
  RenewalView,
  RiskView,
  SignalsView,
  TaskView,
  TimeView,
} from './activation.ts';
import type { Activation, ListsView, ToolView } from './activation.ts';
import type { ConditionResult } from './condition-forecast.ts';
import { seenBy } from './explain.ts';
import { least, mergeObligations, refusal } from './obligations.ts';
import type { CompiledRule } from './obligations.ts';
import { furtherRefusal, looksAtEarlier, needsApprovalAgain, renewalRefusal } from './renewal.ts';

/** Rules by agent and tool, `*` included, so that rules about others cost nothing. */
export type RuleIndex = ReadonlyMap<string, ReadonlyMap<string, readonly CompiledRule[]>>;

/** What every condition of a revision sees alike. */
export interface World {
  tools: ReadonlyMap<string, Tool>;
  lists: ListsView;
  environment: Readonly<Record<string, string>>;
  /** Of rules that do not name one. */
  timeZone: string;
}

export interface Subject {
  agent: Agent;
  tool: ToolView;
  tier: ToolTier;
}

/** The rules that are about an agent and a tool; some of them are about other tiers. */
export function about(index: RuleIndex, agent: string, { tool }: ToolAccess): (readonly CompiledRule[])[] {
  const lists: (readonly CompiledRule[])[] = [];
  const add = (byTool: ReadonlyMap<string, readonly CompiledRule[]> | undefined) => {
    if (byTool === undefined) return;
    const own = byTool.get(tool);
    if (own !== undefined) lists.push(own);
    const all = byTool.get('*');
    if (all !== undefined) lists.push(all);
  };
  add(index.get(agent));
  add(index.get('*'));
  return lists;
}

export function needsOfRules(
  index: RuleIndex,
  agent: string,
  access: ToolAccess,
  renewal: boolean,
  taskAge: Millis,
): FactNeeds | undefined {
  let needs: FactNeeds | undefined;
  for (const rule of about(index, agent, access).flat()) {
    if (!rule.tiers.has(access.tier)) continue;
    needs = mergeNeeds(needs, rule.condition?.needs);
    if (renewal) needs = mergeNeeds(needs, rule.renewal.condition?.needs);
    else if (rule.maxUses !== undefined) needs = mergeNeeds(needs, { ...noNeeds, held: true });
    if (looksAtEarlier(rule, taskAge)) needs = mergeNeeds(needs, { ...noNeeds, earlier: true });
  }
  return needs;
}

/** Whether a signal can change what a first issue of this comes to. */
export function watchedByRules(index: RuleIndex, agent: string, access: ToolAccess): boolean {
  return about(index, agent, access).some((rules) =>
    rules.some((rule) => rule.tiers.has(access.tier) && rule.condition?.watches === true),
  );
}

/** Deny wins over approval, approval over allow, and nothing matching is a deny (design §3.8). Pure. */
export function decideByRules(
  index: RuleIndex,
  world: World,
  subject: Subject,
  input: DecisionInput,
  considered?: (rule: ConsideredRule) => void,
): Decision {
  const { task, access } = input;
  let deny: CompiledRule | undefined;
  let denyFault: string | undefined;
  const approvals: CompiledRule[] = [];
  const allows: CompiledRule[] = [];
  let missed: CompiledRule | undefined;
  let missedFault: string | undefined;

  const see = seer(world, subject, input);
  for (const rule of about(index, task.agent, access).flat()) {
    if (!rule.tiers.has(access.tier)) continue;
    let holds: ConditionResult = true;
    if (rule.condition !== undefined) holds = rule.condition.evaluate(see(rule.timeZone));
    considered?.({
      rule: rule.id,
      effect: rule.effect,
      held: holds,
      when: rule.condition?.source,
      saw: () => (rule.condition === undefined ? [] : seenBy(rule.condition.source, see(rule.timeZone))),
    });
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

  if (deny !== undefined) {
    const why = deny.reason ?? `rule ${deny.id} applies`;
    return refusal(
      deny.id,
      denyFault === undefined ? why : `${why} (denied because a condition could not be evaluated: ${denyFault})`,
    );
  }
  if (allows.length + approvals.length === 0) return noMatch(input, missed, missedFault);
  return granted(subject, input, allows, approvals, see);
}

/** What rules that all apply come to together; none of them denies. */
export function granted(
  subject: Subject,
  input: DecisionInput,
  allows: readonly CompiledRule[],
  approvals: readonly CompiledRule[],
  see: ReturnType<typeof seer>,
): Decision {
  const granting = [...allows, ...approvals];

  const refused =
    (input.renewal === undefined ? undefined : renewalRefusal(granting, input.renewal, see)) ??
    furtherRefusal(granting, input);
  if (refused !== undefined) return refused;
  const merged = mergeObligations(granting, input);
  if ('effect' in merged) return merged;
  const obligations = Object.keys(merged).length === 0 ? {} : { obligations: merged };

  // A life without an obligation is the tier's own; of two rules that say the same, the first by name is told.
  const strictest = least(granting, (rule) => rule.ttl);
  const ttl = Math.min(strictest?.ttl ?? subject.tier.ttl.default, subject.tier.ttl.max);
  const again = input.renewal === undefined ? undefined : needsApprovalAgain(granting, input.renewal);
  if (approvals.length === 0 && again === undefined) {
    const rule = strictest ?? first(allows);
    const reason = `rule ${rule.id} allows it for ${formatDuration(ttl)}`;
    return { effect: 'allow', rule: rule.id, reason, ttl, ...obligations };
  }
  const asking = [...approvals, ...(again === undefined ? [] : [again.rule])].sort((a, b) => a.order - b.order);
  const rule = again?.rule ?? asking[0]!;
  const { tool, tier } = input.access;
  return {
    effect: 'needs_approval',
    rule: rule.id,
    reason: again?.reason ?? rule.reason ?? `rule ${rule.id} asks for a person's approval of ${tool}:${tier}`,
    ttl: undefined,
    approval: mergeApprovals(
      asking.map((one) => one.approval),
      ttl,
    ),
    ...obligations,
  };
}

function first(rules: readonly CompiledRule[]): CompiledRule {
  return rules.reduce((a, b) => (b.order < a.order ? b : a));
}

export function noMatch(input: DecisionInput, missed: CompiledRule | undefined, fault: string | undefined): Decision {
  const { tool, tier } = input.access;
  const near =
    missed === undefined
      ? ''
      : fault === undefined
        ? `; the condition of ${missed.id} does not hold`
        : `; the condition of ${missed.id} could not be evaluated: ${fault}`;
  return refusal('', `no rule allows agent ${input.task.agent} to use ${tool}:${tier}${near}`);
}

/** Makes what conditions see, once, and only when one looks. */
export function seer(
  world: World,
  subject: Subject,
  input: DecisionInput,
): (timeZone: string | undefined) => Activation {
  let activation: Activation | undefined;
  return (timeZone = world.timeZone) => {
    activation ??= activationFor(world, subject, input);
    if (activation.time.timeZone === timeZone) return activation;
    return { ...activation, time: activation.time.zone(timeZone) };
  };
}

function activationFor(world: World, { agent, tool, tier }: Subject, input: DecisionInput): Activation {
  const { task, facts, now } = input;
  const signals = new SignalsView(facts);
  return {
    agent: new AgentView(agent, now),
    tool,
    task: new TaskView(task, facts, now),
    tier: input.access.tier satisfies Tier,
    caller: new CallerView(input.workload),
    renewal: new RenewalView(input.renewal),
    time: new TimeView(new Date(now), world.timeZone),
    held: new HeldView(facts, world.tools),
    called: new CalledView(facts, world.tools),
    count: new CountView(facts),
    rate: new RateView(facts),
    signals,
    risk: new RiskView(signals),
    environment: world.environment,
    lists: world.lists,
    args: input.arguments === undefined ? undefined : new ArgsView(input.arguments, tier.arguments ?? {}),
  };
}
