import { mayDelegate } from '../delegation/child.ts';
import { BrokerError } from '../errors.ts';
import { noneEarlier, type DecisionFacts } from '../facts.ts';
import type { Task, ToolAccess } from '../model.ts';
import type { ApprovalTerms, PolicyRevision, Quorum } from '../policy.ts';
import type { Instant } from '../time.ts';
import type { Approval } from './model.ts';

/**
 * Approvals never pass down. What a task may hold instead are approvals that name what a task directly below it will do:
 * its agent, and the exact use.
 */

/** The agent that a task below has, and the context and labels that it is opened with. */
export interface NamedChild {
  agent: string;
  context: Readonly<Record<string, string>>;
  labels: Readonly<Record<string, string>>;
}

/** Its id: nothing that storage knows is about it. */
const unopened = '';

/** A task as it would be opened below this one, with no more than this one use. */
export function childToBe(parent: Task, child: NamedChild, access: ToolAccess, opener: string, now: Instant): Task {
  return {
    ...parent,
    taskId: unopened,
    parentTaskId: parent.taskId,
    agent: child.agent,
    agentWorkload: undefined,
    opener,
    tools: [access],
    context: child.context,
    labels: child.labels,
    openedAt: now,
    heartbeatInterval: undefined,
    heartbeatDue: undefined,
  };
}

/** What is known of a task that is not there yet: what its tree has, one level further down. */
export function factsOfChildToBe(facts: DecisionFacts, parent: Task): DecisionFacts {
  return {
    load: async (task, ...rest) => {
      if (task.taskId !== unopened) return await facts.load(task, ...rest);
      const known = await facts.load({ ...task, taskId: parent.taskId, parentTaskId: parent.parentTaskId }, ...rest);
      const { depth, orchestrator } = known.lineage ?? { depth: 0, orchestrator: parent.opener };
      return { ...known, lineage: { depth: depth + 1, orchestrator }, earlier: known.earlier && noneEarlier };
    },
  };
}

/** Undefined: a task of this agent may be opened below these, nearest first. */
export function whyNotHandedOn(
  revision: PolicyRevision,
  agent: string,
  [parent, ...further]: readonly Task[] = [],
): string | undefined {
  try {
    if (parent !== undefined) mayDelegate(revision, agent, [parent, ...further]);
    return undefined;
  } catch (error) {
    if (error instanceof BrokerError) return error.message;
    throw error;
  }
}

/** Whether it is held for this task: by the one directly above it, for its agent. */
export function isHeldFor(approval: Approval, task: Task): boolean {
  return (
    approval.kind === 'for_child' &&
    approval.tenant === task.tenant &&
    approval.taskId === task.parentTaskId &&
    approval.agent === task.agent
  );
}

/**
 * Whether people who agreed to the one have agreed to the other: what they were asked followed from a task that was yet to
 * be opened, what is needed now follows from the task that is. `quorums` are those of now, by name.
 */
export function meets(approval: Approval, terms: ApprovalTerms, quorums: readonly Quorum[]): boolean {
  return (
    approval.uses <= terms.uses &&
    approval.validFor <= terms.validFor &&
    quorums.every((wanted) =>
      approval.quorums.some(
        ({ approvers, count }) =>
          count >= wanted.count && approvers.every((approver) => wanted.approvers.includes(approver)),
      ),
    )
  );
}
