import type { Arguments } from './arguments.ts';
import {
  lists,
  narrow,
  narrowForecast,
  type Above,
  type Narrowed,
  type NarrowedForecast,
} from './delegation/narrow.ts';
import type { Facts } from './facts.ts';
import type { Task, ToolAccess } from './model.ts';
import type {
  ApprovalTerms,
  ConsideredRule,
  Decision,
  Effect,
  Obligations,
  OpenDecision,
  PolicyRevision,
  RenewalContext,
  SenderConstraint,
  Tool,
  ToolTier,
} from './policy.ts';
import type { Instant, Millis } from './time.ts';

/**
 * A decision bounded by everything that policy does not know: what the task asked for, how long it may last, and what the
 * tasks above it have. `hop` is the one among those whose agent's policy decided; undefined: the task's own.
 */
export type BoundedDecision =
  | ({ effect: 'allow'; rule: string; reason: string; hop?: string } & Granted)
  /** `granted` is what an approval under these terms would allow. */
  | { effect: 'needs_approval'; rule: string; reason: string; hop?: string; approval: ApprovalTerms; granted: Granted }
  /** `granted` is present when only policy says no: what two people could allow in an emergency (break-glass). */
  | { effect: 'deny'; rule: string; reason: string; hop?: string; granted?: Granted }
  | { effect: 'too_late'; rule: string; reason: string; hop?: string };

/** What can be said before the agent asks. */
export type PlannedDecision =
  | BoundedDecision
  /** `granted` is what is certain of it, should it be allowed: a life is the longest that it may have. */
  | {
      effect: 'depends';
      rule: string;
      reason: string;
      hop?: string;
      dependsOn: readonly string[];
      possible: readonly Effect[];
      granted: Granted;
    };

/** What a credential may be. */
export interface Granted {
  life: Millis;
  tool: Tool;
  tier: ToolTier;
  obligations: Obligations;
}

export interface DecisionContext {
  workload: string | undefined;
  now: Instant;
  renewal: RenewalContext | undefined;
  /** Undefined for a plan. */
  arguments?: Arguments | undefined;
  facts?: Facts | undefined;
  /** What the credential will be bound to; `any` while only whether people have to agree is asked. */
  boundTo?: SenderConstraint | 'any' | undefined;
  /** The tasks above it, nearest first; undefined for a root. */
  above?: readonly Above[] | undefined;
}

/** Decides one tool and tier for one task under one revision (invariants 1, 4, 8). Pure. */
export function decide(
  revision: PolicyRevision,
  task: Task,
  access: ToolAccess,
  context: DecisionContext,
  considered?: (rule: ConsideredRule) => void,
): BoundedDecision {
  const subject = registered(revision, task, access);
  if ('effect' in subject) return subject;
  const own = revision.decide({ task, access, ...context }, considered);
  const { above } = context;
  const decision: Narrowed =
    above === undefined
      ? own
      : narrow(revision, own, subject.tier, task.agent, above, { ...context, access }, considered);
  const bounded = bound(decision, subject, task, access, context.now);
  const { senderConstraint } = decision.obligations ?? {};
  const isMet = senderConstraint === undefined || context.boundTo === 'any' || senderConstraint === context.boundTo;
  if (decision.effect === 'deny' || isMet) return bounded;
  return { effect: 'deny', rule: decision.rule, reason: unbound(decision.rule, senderConstraint), ...hopOf(decision) };
}

/**
 * What will be decided about one tool and tier of a task, as far as it can be said before the agent asks: what of the
 * context is not known stays open, and so does the key that a credential is to be bound to. Pure.
 */
export function plan(
  revision: PolicyRevision,
  task: Task,
  access: ToolAccess,
  context: Pick<DecisionContext, 'workload' | 'now' | 'facts' | 'arguments' | 'above'>,
): PlannedDecision {
  const subject = registered(revision, task, access);
  if ('effect' in subject) return subject;
  const { workload, now, facts, above } = context;
  const input = { access, workload, now, facts, arguments: context.arguments, renewal: undefined };
  const own = revision.forecast({ ...input, task });
  const decision: NarrowedForecast =
    above === undefined ? own : narrowForecast(revision, own, subject.tier, task.agent, above, input);
  if (decision.effect !== 'depends') return bound(decision, subject, task, access, now);
  const { rule, reason, dependsOn, possible } = decision;
  const granted = grantedBy(decision, subject, task, now);
  if (granted.life < leastLife(subject.tier, task)) return tooLate(rule, granted.life, access);
  return { effect: 'depends', rule, reason, ...hopOf(decision), dependsOn, possible, granted };
}

interface Subject {
  tool: Tool;
  tier: ToolTier;
}

function registered(
  revision: PolicyRevision,
  task: Task,
  access: ToolAccess,
): Subject | (BoundedDecision & { effect: 'deny' }) {
  const name = `${access.tool}:${access.tier}`;
  if (!lists(task, access)) {
    return { effect: 'deny', rule: '', reason: `the task did not ask for ${name} when it was opened` };
  }
  const tool = revision.tools.get(access.tool);
  const tier = tool?.tiers[access.tier];
  if (tool === undefined || tier === undefined) {
    return { effect: 'deny', rule: '', reason: `${name} is not registered in the running policy revision` };
  }
  return { tool, tier };
}

function grantedBy(
  decision: Pick<Decision | OpenDecision, 'ttl' | 'obligations'> & { approval?: ApprovalTerms },
  { tool, tier }: Subject,
  task: Task,
  now: Instant,
): Granted {
  const ttl = decision.ttl ?? decision.approval?.ttl ?? tier.ttl.default;
  const life = Math.min(ttl, tier.ttl.max, task.deadline - now);
  return { life, tool, tier, obligations: decision.obligations ?? {} };
}

function bound(decision: Narrowed, subject: Subject, task: Task, access: ToolAccess, now: Instant): BoundedDecision {
  const { effect, rule, reason } = decision;
  const granted = grantedBy(decision, subject, task, now);
  const roomFor = granted.life >= leastLife(subject.tier, task);
  const hop = hopOf(decision);
  if (effect === 'deny') {
    return { effect, rule, reason, ...hop, ...(roomFor && decision.outright !== true ? { granted } : {}) };
  }
  if (!roomFor) return tooLate(rule, granted.life, access);
  if (effect === 'allow') return { effect, rule, reason, ...hop, ...granted };
  if (decision.approval === undefined) return { effect: 'deny', rule, reason, ...hop };
  return { effect, rule, reason, ...hop, approval: decision.approval, granted };
}

function hopOf({ hop }: { hop?: string }): { hop?: string } {
  return hop === undefined ? {} : { hop };
}

function tooLate(rule: string, life: Millis, { tool, tier }: ToolAccess): BoundedDecision {
  return {
    effect: 'too_late',
    rule,
    reason: `the task ends in ${Math.max(0, Math.round(life / 1_000))} s, less than the least life of ${tool}:${tier}`,
  };
}

function unbound(rule: string, constraint: SenderConstraint): string {
  return constraint === 'dpop'
    ? `rule ${rule} wants the credential bound to a key of the agent: send a proof of it as dpop_proof (RFC 9449)`
    : `rule ${rule} wants the credential bound to a client certificate: call over TLS with one, and say bind_to_certificate (RFC 8705)`;
}

/**
 * Shorter than the tier's minimum is useless to an agent. A task that has not room for two such lives takes less, so that
 * whatever its length its agent has the tier's minimum of time to ask in.
 */
function leastLife(tier: ToolTier, task: Task): Millis {
  return Math.max(1_000, Math.min(tier.ttl.min, task.deadline - task.openedAt - tier.ttl.min));
}
