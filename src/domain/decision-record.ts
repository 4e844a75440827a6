import type { Arguments } from './arguments.ts';
import { decide, plan, type BoundedDecision, type DecisionContext, type PlannedDecision } from './decision.ts';
import type { Above } from './delegation/narrow.ts';
import { rateKey, type FactNeeds, type Facts } from './facts.ts';
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
  /** A task may be handed over to another agent later. Earlier releases wrote none. */
  agent?: string;
  renewal?: DecisionContext['renewal'];
  bound_to?: DecisionContext['boundTo'];
  facts?: RecordedFacts;
  /** The tasks above, nearest first. */
  above?: AskedAbove[];
}

interface RecordedFacts {
  held?: Facts['held'];
  called?: Facts['called'];
  lineage?: Facts['lineage'];
  earlier?: Facts['earlier'];
  rates: [string, number][];
  signals?: Facts['signals'];
}

interface AskedAbove {
  agent: string;
  workload: string | undefined;
  deadline: Instant;
  heartbeat?: true;
  facts?: RecordedFacts;
}

export function asked(
  task: Pick<Task, 'deadline' | 'agent'>,
  context: Omit<DecisionContext, 'workload' | 'now'>,
): Asked {
  const { renewal, facts, boundTo, above } = context;
  return {
    deadline: task.deadline,
    agent: task.agent,
    ...(renewal === undefined ? {} : { renewal }),
    ...(boundTo === undefined ? {} : { bound_to: boundTo }),
    ...(facts === undefined ? {} : { facts: recordedFacts(facts) }),
    ...(above === undefined
      ? {}
      : {
          above: above.map((hop) => ({
            agent: hop.task.agent,
            workload: hop.task.agentWorkload,
            deadline: hop.task.deadline,
            ...(hop.heartbeat ? { heartbeat: true as const } : {}),
            ...(hop.facts === undefined ? {} : { facts: recordedFacts(hop.facts) }),
          })),
        }),
  };
}

function recordedFacts({ held, called, lineage, earlier, rates, signals }: Facts): RecordedFacts {
  return {
    held,
    ...(called === undefined ? {} : { called }),
    lineage,
    earlier,
    rates: [...rates],
    ...(signals === undefined ? {} : { signals }),
  };
}

function factsOf(recorded: RecordedFacts | undefined): Facts | undefined {
  if (recorded === undefined) return undefined;
  const { held, lineage, earlier, rates } = recorded;
  return { ...recorded, held, lineage, earlier, rates: new Map(rates) };
}

/** What policy sees of a task and what never changes in it. */
export type TaskFacts = Pick<
  Task,
  'taskId' | 'rootTaskId' | 'parentTaskId' | 'agent' | 'opener' | 'tools' | 'context' | 'labels' | 'openedAt'
>;

export function taskFacts(task: Task): TaskFacts {
  const { taskId, rootTaskId, parentTaskId, agent, opener, tools, context, labels, openedAt } = task;
  return { taskId, rootTaskId, parentTaskId, agent, opener, tools, context, labels, openedAt };
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
  /** Not policy refused it: this lock was in force. */
  lock?: string;
  /** What the request declared about this use. */
  arguments?: Arguments;
  asked?: Asked;
  /** The task above whose agent's policy decided; absent: the task's own. */
  decided_by?: string;
  /** Nobody asked: the broker judged an open lease under a new revision. */
  reevaluation?: true;
}

/** One recorded decision with its task. */
export interface RecordedDecision {
  at: Instant;
  workload: string;
  task: TaskFacts;
  /** The tasks above it, nearest first. */
  above: readonly TaskFacts[];
  leaseId: string | undefined;
  detail: DecisionDetail;
}

/** Whether the record says what policy was asked. */
export function canBeAskedAgain({ detail, task, above }: RecordedDecision): boolean {
  if (detail.asked === undefined) return false;
  return task.parentTaskId === undefined || detail.asked.above?.length === above.length;
}

/** Decides a record again, under any revision. Pure; the same revision gives what was recorded. */
export function decideAgain(
  revision: PolicyRevision,
  record: RecordedDecision,
  considered?: (rule: ConsideredRule) => void,
): BoundedDecision {
  const { tool, tier } = record.detail;
  return decide(revision, taskOf(record), { tool, tier }, contextOf(record), considered);
}

/**
 * What a revision can say of a record that lacks counts which the revision looks at; undefined when the record has all of
 * them, and `decideAgain` gives the answer.
 */
export function foretellAgain(
  revision: PolicyRevision,
  record: RecordedDecision,
): PlannedDecision | 'open' | undefined {
  const { tool, tier, asked: what } = record.detail;
  const access = { tool, tier };
  const task = taskOf(record);
  const { renewal, facts } = what!;
  const context = contextOf(record);
  const lacking = [{ task, facts: factsOf(facts) }, ...(context.above ?? [])].some((one) => {
    const needs = revision.needs(one.task.agent, access, renewal !== undefined, record.at - task.openedAt);
    return needs !== undefined && lacks(one.task, needs, one.facts);
  });
  if (!lacking) return undefined;
  return renewal === undefined ? plan(revision, task, access, context) : 'open';
}

function lacks(task: Task, needs: FactNeeds, facts: Facts | undefined): boolean {
  if (facts === undefined) return true;
  return (
    (needs.held && facts.held === undefined) ||
    (needs.called && facts.called === undefined) ||
    (needs.signals && facts.signals === undefined) ||
    (needs.earlier && facts.earlier === undefined) ||
    needs.rates.some((need) => !facts.rates.has(rateKey(need))) ||
    (needs.lineage && task.parentTaskId !== undefined && facts.lineage === undefined)
  );
}

function taskOf({ detail, task }: RecordedDecision): Task {
  const { deadline, agent = task.agent } = detail.asked!;
  return asTask({ ...task, agent }, deadline);
}

function contextOf({ detail, at, workload, above: tasks }: RecordedDecision): DecisionContext {
  const { renewal, facts, above, bound_to: boundTo } = detail.asked!;
  return {
    workload,
    now: at,
    renewal,
    arguments: detail.arguments ?? {},
    boundTo,
    facts: factsOf(facts),
    ...(above === undefined ? {} : { above: above.map((hop, index) => aboveAgain(tasks[index]!, hop)) }),
  };
}

function aboveAgain(facts: TaskFacts, hop: AskedAbove): Above {
  const task = { ...asTask({ ...facts, agent: hop.agent }, hop.deadline), agentWorkload: hop.workload };
  return { task, facts: factsOf(hop.facts), heartbeat: hop.heartbeat ?? false };
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
