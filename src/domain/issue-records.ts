import type { Approval } from './approvals/model.ts';
import { noArguments, type DeclaredArguments } from './arguments.ts';
import { auditEvent, type AuditEvent } from './audit.ts';
import type { Caller } from './caller.ts';
import type { BoundedDecision } from './decision.ts';
import type { Asked } from './decision-record.ts';
import type { KeyBinding, Lease, Task, ToolAccess } from './model.ts';
import type { PolicyRevision } from './policy.ts';
import type { Grant } from './provider.ts';
import type { Instant, Millis } from './time.ts';

/** What is asked for, beside task and access: a first credential, or the next one of a line. */
export interface Line {
  renewedFrom: Lease | undefined;
  requestId: string;
  justification: string;
  arguments: DeclaredArguments;
  approval?: string | undefined;
  /** The key that the caller has proved to hold. */
  binding?: KeyBinding | undefined;
}

/** An allow, and the approval that it rests on where there is one. */
export type Allowed = BoundedDecision & { effect: 'allow' } & { on?: Approval; record: Recorded };

/** Why not, before or after policy was asked. */
export interface Refused {
  effect: string;
  rule: string;
  reason: string;
  hop?: string;
  /** Without `asked` it was not policy that refused. */
  record?: { decisionId: string; asked?: Asked };
  /** The lock that stood in the way. */
  lock?: string;
}

/** By which a decision is found and made again. */
export interface Recorded {
  decisionId: string;
  asked: Asked;
}

/** What an allow rests on that policy by itself was none for. */
export function groundOf({ kind, approvalId, taskId }: Approval): string {
  if (kind === 'break_glass') return `break-glass ${approvalId}`;
  return kind === 'for_child' ? `approval ${approvalId}, held by task ${taskId}` : `approval ${approvalId}`;
}

export function refusalEvents(
  caller: Caller,
  task: Task,
  access: ToolAccess,
  now: Instant,
  decision: Refused,
  line: Line,
  revision: PolicyRevision,
): AuditEvent[] {
  const { tool, tier } = access;
  const { reason, lock } = decision;
  const locked = lock === undefined ? {} : { lock };
  return [
    auditEvent(task, 'decision.made', caller.workload, now, decisionDetail(access, decision, revision, line)),
    auditEvent(task, 'lease.denied', caller.workload, now, { tool, tier, reason, ...locked }),
  ];
}

export function decisionDetail(
  access: ToolAccess,
  decision: Refused & { life?: Millis; on?: Approval },
  revision: PolicyRevision,
  line: Line,
): Record<string, unknown> {
  const { record } = decision;
  return {
    ...(record === undefined ? {} : { decision_id: record.decisionId }),
    tool: access.tool,
    tier: access.tier,
    effect: decision.effect,
    rule: decision.rule,
    reason: decision.reason,
    policy_revision: revision.digest,
    ...(decision.hop === undefined ? {} : { decided_by: decision.hop }),
    ...(decision.lock === undefined ? {} : { lock: decision.lock }),
    ...(decision.life === undefined ? {} : { ttl_ms: decision.life }),
    ...(line.arguments.digest === noArguments.digest
      ? {}
      : { arguments: line.arguments.values, arguments_digest: line.arguments.digest }),
    ...(decision.on === undefined ? {} : { approval: decision.on.approvalId }),
    ...(decision.on?.kind === 'for_child' ? { approval_held_by: decision.on.taskId } : {}),
    ...(line.justification === '' ? {} : { justification: line.justification }),
    ...(line.renewedFrom === undefined ? {} : { renewal: line.renewedFrom.renewalCount + 1 }),
    ...(record?.asked === undefined ? {} : { asked: record.asked }),
  };
}

export function issuedEvent(grant: Grant): AuditEvent {
  const { lease, task } = grant;
  return auditEvent(
    task,
    lease.renewedFrom === undefined ? 'lease.issued' : 'lease.renewed',
    lease.workload,
    lease.issuedAt,
    {
      tool: lease.tool,
      tier: lease.tier,
      provider: lease.provider,
      expires_at: new Date(lease.expiresAt).toISOString(),
      ...(lease.terms?.boundTo === undefined ? {} : { cnf: lease.terms.boundTo }),
      ...(lease.renewedFrom === undefined ? {} : { renewed_from: lease.renewedFrom }),
    },
    lease.leaseId,
  );
}
