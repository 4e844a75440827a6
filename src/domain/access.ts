import type { Caller } from './caller.ts';
import { BrokerError } from './errors.ts';
import type { Lease, Task } from './model.ts';

/** Whether the caller can act as this task's agent (invariant 1). */
export function actsAsAgent(caller: Caller, task: Task): boolean {
  return (
    caller.tenant === task.tenant &&
    caller.agents.has(task.agent) &&
    (task.agentWorkload === undefined || task.agentWorkload === caller.workload)
  );
}

/** A task at the top is opened by an orchestrator; one below another also by that one's agent. */
export function opened(caller: Caller, task: Task): boolean {
  return (
    caller.tenant === task.tenant &&
    caller.workload === task.opener &&
    (caller.roles.has('orchestrator') || (task.parentTaskId !== undefined && caller.roles.has('agent')))
  );
}

export function seesEverything(caller: Caller): boolean {
  return caller.roles.has('operator') || caller.roles.has('auditor');
}

export function canSee(caller: Caller, task: Task): boolean {
  return caller.tenant === task.tenant && (seesEverything(caller) || opened(caller, task) || actsAsAgent(caller, task));
}

/** The same answer whether it does not exist or is somebody else's (fault 17). */
export function taskNotFound(taskId: string): BrokerError {
  return new BrokerError(
    'TASK_NOT_FOUND',
    `no task ${taskId} that this caller may act on: check the id and who opened it`,
  );
}

export function leaseNotFound(leaseId: string): BrokerError {
  return new BrokerError(
    'LEASE_NOT_FOUND',
    `no lease ${leaseId} of this caller: check the id and which agent received it`,
  );
}

export function taskClosed(task: Pick<Task, 'taskId' | 'closeCause'>): BrokerError {
  return new BrokerError(
    'TASK_CLOSED',
    `task ${task.taskId} has ended (${task.closeCause ?? 'deadline'}): nothing is issued for it any more; open a new task`,
  );
}

export function holds(caller: Caller, lease: Lease): boolean {
  return caller.tenant === lease.tenant && caller.workload === lease.workload && caller.agents.has(lease.agent);
}
