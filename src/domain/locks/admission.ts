import { auditEvent } from '../audit.ts';
import type { Caller } from '../caller.ts';
import type { PlannedDecision } from '../decision.ts';
import { BrokerError } from '../errors.ts';
import type { Task, ToolAccess } from '../model.ts';
import type { LeaseWriter } from '../store.ts';
import type { Emit } from '../telemetry.ts';
import type { Instant } from '../time.ts';
import { lockedError, lockedReason, type LockGuard } from './guard.ts';
import { scopeText, type Lock } from './model.ts';

export interface AdmissionOptions {
  locks: LockGuard;
  record: LeaseWriter['record'];
  emit: Emit;
}

/** What locks have to say when a task is opened. */
export function createAdmission({ locks, record, emit }: AdmissionOptions) {
  const causes = new WeakMap<BrokerError, { task: Task; lock: Lock }>();

  return {
    /** The epoch of the locks that let this task be opened. Throws when one of them does not. */
    epochFor: async (task: Task): Promise<number> => {
      const { epoch, lock } = await locks.standing(task, undefined, undefined);
      if (lock === undefined) return epoch;
      const error = lockedError(lock);
      causes.set(error, { task, lock });
      throw error;
    },

    /** What is locked now stands in the plan as such. */
    planned: async <P extends { access: ToolAccess; decision: PlannedDecision }>(
      task: Task,
      plan: P[],
    ): Promise<P[]> => {
      if (task.state !== 'open') return plan;
      const result: P[] = [];
      for (const entry of plan) {
        const { lock } = await locks.standing(task, undefined, entry.access);
        const locked = lock && ({ effect: 'deny', rule: '', reason: `LOCKED: ${lockedReason(lock)}` } as const);
        result.push(locked === undefined ? entry : { ...entry, decision: locked });
      }
      return result;
    },

    /** After a write that was refused: the locks are read anew. */
    look: async (task: Task): Promise<void> => void (await locks.fresh(task, undefined, undefined)),

    /** Records a refusal of `epochFor`; any other error is none of its business. */
    refused: async (caller: Caller, error: unknown, now: Instant): Promise<void> => {
      const cause = error instanceof BrokerError ? causes.get(error) : undefined;
      if (cause === undefined) return;
      const { task, lock } = cause;
      const { tenant, agent, opener } = task;
      await record([
        // There is no such task; where it would have been below another, that one's trail tells it.
        auditEvent({ tenant, taskId: task.parentTaskId ?? '' }, 'task.denied', caller.workload, now, {
          agent,
          reason: `LOCKED: ${lockedReason(lock)}`,
          lock: lock.lockId,
          scope: scopeText(lock),
        }),
      ]);
      emit('task.denied', { tenant, agent, opener, lockId: lock.lockId });
    },

    unsteady: (): BrokerError =>
      new BrokerError('IN_PROGRESS', 'locks changed each time that the task was about to be opened: retry', {
        retryAfterMs: 500,
      }),
  };
}
