import type { Arguments } from './arguments.ts';
import { decide, plan, type BoundedDecision, type DecisionContext, type PlannedDecision } from './decision.ts';
import { rateKey, type Facts } from './facts.ts';
import type { Task, ToolAccess } from './model.ts';
import type { ConsideredRule, PolicyRevision } from './policy.ts';
import type { Instant, Millis } from './time.ts';

/**
 * What a decision's audit event keeps of what policy was asked, beside the task: enough to decide it again exactly
 * (test/revisions holds it). What never changes in a task is in its row and not written again with each decision.
 */
export interface Asked {
  /** The task's deadline may be moved later. */
  deadline: Instant;
  renewal?: DecisionContext['renewal'];
  bound_to?: DecisionContext['boundTo'];
  facts?: { held?: Facts['held']; lineage?: Facts['lineage']; rates: [string, number][] };
}

export function asked(task: Pick<Task, 'deadline'>, context: Omit<DecisionContext, 'workload' | 'now'>): Asked {
  const { renewal, facts, boundTo } = context;
  return {
    deadline: task.deadline,
    ...(renewal === undefined ? {} : { renewal }),
    ...(boundTo === undefined ? {} : { bound_to: boundTo }),
    ...(facts === undefined ? {} : { facts: { held: facts.held, lineage: facts.lineage, rates: [...facts.rates] } }),
  };
}

/** What policy sees of a task and what never changes in it. */
export type TaskFacts = Pick<
  Task,
  'taskId' | 'rootTaskId' | 'parentTaskId' | 'agent' | 'opener' | 'tools' | 'context' | 'openedAt'
>;

export function taskFacts(task: Task): TaskFacts {
  const { taskId, rootTaskId, parentTaskId, agent, opener, tools, context, openedAt } = task;
  return { taskId, rootTaskId, parentTaskId, agent, opener, tools, context, openedAt };
}

/** The detail of a `decision.made` event. Without `asked` it was not policy that decided, or an earlier release wrote it. */
export interface DecisionDetail extends ToolAccess {
  decision_id: string;
  effect: BoundedDecision['effect'];
  rule: string;
  reason: string;
  policy_revision: string;
  ttl_ms?: Millis;
  /** It counted on this approval: policy itself had said that one is needed. */
  approval?: string;
  /** What the request declared about this use. */
  arguments?: Arguments;
  asked?: Asked;
  /** Nobody asked: the broker judged an open lease under a new revision. */
  reevaluation?: true;
}

/** One recorded decision with its task. */
export interface RecordedDecision {
  at: Instant;
  workload: string;
  task: TaskFacts;
  leaseId: string | undefined;
  detail: DecisionDetail;
}

/** Whether the record says what policy was asked. */
export function canBeAskedAgain({ detail }: RecordedDecision): boolean {
  return detail.asked !== undefined;
}

/** Decides a record again, under any revision. Pure; the same revision gives what was recorded. */
export function decideAgain(
  revision: PolicyRevision,
  record: RecordedDecision,
  considered?: (rule: ConsideredRule) => void,
): BoundedDecision {
  const { detail, task } = record;
  const access = { tool: detail.tool, tier: detail.tier };
  return decide(revision, asTask(task, detail.asked!.deadline), access, contextOf(record), considered);
}

/**
 * What a revision can say of a record that lacks counts which the revision looks at; undefined when the record has all of
 * them, and `decideAgain` gives the answer.
 */
export function foretellAgain(
  revision: PolicyRevision,
  record: RecordedDecision,
): PlannedDecision | 'open' | undefined {
  const { detail, task } = record;
  const { deadline, renewal, facts } = detail.asked!;
  const access = { tool: detail.tool, tier: detail.tier };
  const needs = revision.needs(task.agent, access, renewal !== undefined);
  if (needs === undefined) return undefined;
  const counted = new Set(facts?.rates.map(([key]) => key));
  const lacks =
    facts === undefined ||
    (needs.held && facts.held === undefined) ||
    needs.rates.some((need) => !counted.has(rateKey(need))) ||
    (needs.lineage && task.parentTaskId !== undefined && facts.lineage === undefined);
  if (!lacks) return undefined;
  return renewal === undefined ? plan(revision, asTask(task, deadline), access, contextOf(record)) : 'open';
}

function contextOf({ detail, at, workload }: RecordedDecision): DecisionContext {
  const { renewal, facts, bound_to: boundTo } = detail.asked!;
  return {
    workload,
    now: at,
    renewal,
    arguments: detail.arguments ?? {},
    boundTo,
    facts: facts && { held: facts.held, lineage: facts.lineage, rates: new Map(facts.rates) },
  };
}

/** What policy itself had said: what was allowed on an approval is what needed one, and break-glass sets a refusal aside. */
export function policyEffect({ effect, approval, reason }: DecisionDetail): 'allow' | 'deny' | 'needs_approval' {
  if (effect === 'too_late') return 'deny';
  if (effect !== 'allow' || approval === undefined) return effect;
  return reason.startsWith('break-glass ') ? 'deny' : 'needs_approval';
}

/** The rest of a task has no part in a decision. */
export function asTask(facts: TaskFacts, deadline: Instant): Task {
  return {
    ...facts,
    tenant: '',
    intent: '',
    agentWorkload: undefined,
    state: 'open',
    closeCause: undefined,
    deadline,
    closedAt: undefined,
    settledAt: undefined,
    heartbeatInterval: undefined,
    heartbeatDue: undefined,
    epoch: 0,
    statusIndex: 0,
  };
}
