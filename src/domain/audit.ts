import type { Task } from './model.ts';
import type { Instant } from './time.ts';

/** What can happen to a task or a lease. Each is written in the transaction of the act itself. */
export type AuditKind =
  | 'task.opened'
  | 'task.extended'
  | 'task.handed_over'
  | 'task.agent_pinned'
  | 'task.closed'
  | 'task.settled'
  | 'task.degraded'
  | 'decision.made'
  | 'lease.issued'
  | 'lease.reissued'
  | 'lease.renewed'
  | 'lease.denied'
  | 'lease.returned'
  | 'lease.abandoned'
  | 'lease.locked'
  | 'task.denied'
  | 'lock.created'
  | 'evidence.exported'
  | 'lock.lift_requested'
  | 'lock.lifted'
  | 'lock.expired'
  | 'lock.settled'
  | 'policy.activated'
  | 'lease.settled'
  | 'call.began'
  | 'call.ended'
  | 'call.recorded'
  | 'call.unfinished'
  | 'call.raised'
  | 'call.limit_reached'
  /** An irrevocable lease was revoked after all. */
  | 'lease.corrected'
  /** An operator made its settlement due again. */
  | 'lease.retried'
  /** An operator declared it finished by hand (`leasehold lease abandon`). */
  | 'lease.given_up'
  /** Reconciliation is about to revoke, and has revoked or not, what no open lease owns. */
  | 'stray.found'
  | 'stray.revoked'
  | 'stray.failed'
  | 'approval.requested'
  | 'approval.voted'
  | 'approval.approved'
  | 'approval.denied'
  | 'approval.timed_out'
  | 'approval.expired'
  | 'approval.cancelled'
  | 'approval.used'
  | 'approval.break_glass_requested'
  | 'approval.break_glass'
  | 'signal.reported'
  | 'signal.cleared';

/** One audit row. `detail` is JSON and never holds secret material. */
export interface AuditEvent {
  tenant: string;
  kind: AuditKind;
  at: Instant;
  /** Attested workload, or `broker` for the broker's own work. */
  actor: string;
  /** Empty for what belongs to no task. */
  taskId: string;
  leaseId?: string;
  detail: Readonly<Record<string, unknown>>;
}

export interface RecordedAuditEvent extends AuditEvent {
  eventId: string;
}

export function auditEvent(
  task: Pick<Task, 'tenant' | 'taskId'>,
  kind: AuditKind,
  actor: string,
  at: Instant,
  detail: Record<string, unknown>,
  leaseId?: string,
): AuditEvent {
  return {
    tenant: task.tenant,
    kind,
    at,
    actor,
    taskId: task.taskId,
    detail,
    ...(leaseId === undefined ? {} : { leaseId }),
  };
}
