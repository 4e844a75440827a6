import { opened, taskClosed, taskNotFound } from './access.ts';
import { approvalEvent, notice } from './approvals/build.ts';
import type { Approval } from './approvals/model.ts';
import type { ApprovalChange } from './approvals/store.ts';
import { auditEvent, type AuditEvent } from './audit.ts';
import type { Caller } from './caller.ts';
import { tasksAbove } from './delegation/chain.ts';
import { mayDelegate } from './delegation/child.ts';
import { BrokerError, fieldInvalid } from './errors.ts';
import type { DecisionFacts } from './facts.ts';
import type { TaskCache } from './issue.ts';
import { lockedError, type LockGuard } from './locks/guard.ts';
import type { Task } from './model.ts';
import { planAsOf, planDetail, type OpenedTask } from './opening.ts';
import type { PolicyRevision, PolicySource } from './policy.ts';
import type { TaskStore } from './store.ts';
import type { Emit } from './telemetry.ts';
import type { Clock, Instant } from './time.ts';

export interface HandOverRequest {
  requestId: string;
  taskId: string;
  agent: string;
  agentWorkload: string;
  reason: string;
}

export interface HandedOver extends OpenedTask {
  /** Tasks below it that were closed. */
  closedTasks: number;
  /** Its own leases that are being settled. */
  endedLeases: number;
}

export interface HandoverStore {
  /**
   * One transaction: the task is the new agent's under a new epoch, its active leases are due for settlement and its
   * tokens on the feed, its approvals are what `cancel` makes of them, and the open tasks below it are closed.
   * Undefined when it is not open; `changed` is false when this request_id has done it before.
   */
  handOver(
    task: Task,
    to: { agent: string; workload: string },
    requestId: string,
    now: Instant,
    event: AuditEvent,
    cancel: (approval: Approval) => ApprovalChange,
  ): Promise<{ task: Task; changed: boolean; closedTasks: number; endedLeases: number } | undefined>;
}

export interface HandoverOptions {
  clock: Clock;
  policy: PolicySource;
  tasks: Pick<TaskStore, 'get'>;
  store: HandoverStore;
  facts: DecisionFacts;
  cache: TaskCache;
  locks: LockGuard;
  kickSettler: () => void;
  kickMessenger: () => void;
  /** Throws when this replica must not decide (its clock is off). */
  admit: () => void;
  emit: Emit;
}

export type HandOver = ReturnType<typeof createHandover>;

/**
 * An open task goes on with another agent or workload: after a crash, at a change of shift. Nothing goes along: what the
 * one before holds is settled, what people approved for it is void, and what it has handed on is closed, because that was
 * opened in its name and under its rights. The answer says what the new one may do.
 */
export function createHandover(options: HandoverOptions) {
  const { clock, policy, tasks } = options;

  return async (caller: Caller, request: HandOverRequest): Promise<HandedOver> => {
    options.admit();
    const task = await tasks.get(caller.tenant, request.taskId);
    if (task === undefined || !(opened(caller, task) || caller.roles.has('operator'))) {
      throw taskNotFound(request.taskId);
    }
    const now = clock.now();
    const revision = policy.current(task.tenant);
    const above = await tasksAbove(tasks.get, task);
    const to = { agent: request.agent, workload: request.agentWorkload };
    check(revision, task, above, to);
    // It would get nothing.
    const { lock } = await options.locks.standing(asTheirs(task, to), to.workload, undefined);
    if (lock !== undefined) throw lockedError(lock);
    const event = auditEvent(task, 'task.handed_over', caller.workload, now, {
      request_id: request.requestId,
      from: { agent: task.agent, workload: task.agentWorkload ?? null },
      to,
      justification: request.reason,
      policy_revision: revision.digest,
      plan: planDetail(await planAsOf(options.facts, revision, asTheirs(task, to), above, now)),
    });
    const result = await options.store.handOver(task, to, request.requestId, now, event, (approval) =>
      voided(approval, caller.workload, now),
    );
    if (result === undefined) throw taskClosed((await tasks.get(task.tenant, task.taskId)) ?? task);
    if (result.changed) {
      const { tenant, taskId } = task;
      options.emit('task.handed_over', { tenant, taskId, from: task.agent, to: to.agent });
      options.kickSettler();
      options.kickMessenger();
    }
    void options.cache.refresh(task.tenant, task.taskId).catch(() => undefined);
    const plan = await planAsOf(options.facts, revision, result.task, above, now);
    const { closedTasks, endedLeases } = result;
    return { task: result.task, plan, revision: revision.digest, closedTasks, endedLeases };
  };
}

function asTheirs(task: Task, to: { agent: string; workload: string }): Task {
  return { ...task, agent: to.agent, agentWorkload: to.workload };
}

function check(
  revision: PolicyRevision,
  task: Task,
  above: readonly Task[],
  to: { agent: string; workload: string },
): void {
  if (!revision.agents.has(to.agent)) {
    throw new BrokerError('NAME_UNKNOWN', `agent: no agent ${to.agent} is registered; see the Agent documents`, {
      violations: [{ field: 'agent', description: 'not registered' }],
    });
  }
  if (!revision.agentsOf(to.workload).has(to.agent)) {
    throw fieldInvalid('agent_workload', `is not a workload of agent ${to.agent}`);
  }
  const [parent, ...further] = above;
  if (parent !== undefined) mayDelegate(revision, to.agent, [parent, ...further]);
}

function voided(approval: Approval, by: string, now: Instant): ApprovalChange {
  return {
    set: { state: 'cancelled', ...(approval.decidedAt === undefined ? { decidedAt: now } : {}) },
    events: [approvalEvent(approval, 'approval.cancelled', by, now, { because: 'task.handed_over' })],
    notices: notice('approval.cancelled', [{ ...approval, state: 'cancelled' }], now),
  };
}
