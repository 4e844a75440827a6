import type { RecordedAuditEvent, AuditEvent } from '../domain/audit.ts';
import type { Lease, LeaseTerms, Task, TaskNode } from '../domain/model.ts';
import type { Instant } from '../domain/time.ts';

type Row = Record<string, unknown>;

const instant = (value: unknown): Instant => (value as Date).getTime();
const optionalInstant = (value: unknown): Instant | undefined => (value === null ? undefined : instant(value));
const optional = <T>(value: unknown): T | undefined => (value === null ? undefined : (value as T));

export function taskFromRow(row: Row): Task {
  return {
    ...nodeTaskFromRow(row),
    tenant: row.tenant as string,
    rootTaskId: row.root_task_id as string,
    intent: row.intent as string,
    tools: row.tools as Task['tools'],
    context: row.context as Task['context'],
    labels: row.labels as Task['labels'],
    openedAt: instant(row.opened_at),
    closedAt: optionalInstant(row.closed_at),
    heartbeatInterval: row.heartbeat_ms === null ? undefined : Number(row.heartbeat_ms),
    heartbeatDue: optionalInstant(row.heartbeat_due),
    epoch: Number(row.epoch),
    statusIndex: Number(row.status_index),
  };
}

export function nodeTaskFromRow(row: Row): TaskNode['task'] {
  return {
    taskId: row.task_id as string,
    parentTaskId: optional(row.parent_task_id),
    agent: row.agent as string,
    agentWorkload: optional(row.agent_workload),
    opener: row.opener as string,
    state: row.state as Task['state'],
    closeCause: optional(row.close_cause),
    deadline: instant(row.deadline),
    settledAt: optionalInstant(row.settled_at),
  };
}

export function leaseFromRow(row: Row): Lease {
  return {
    tenant: row.tenant as string,
    leaseId: row.lease_id as string,
    taskId: row.task_id as string,
    requestId: row.request_id as string,
    agent: row.agent as string,
    workload: row.workload as string,
    tool: row.tool as string,
    tier: row.tier as Lease['tier'],
    provider: row.provider as string,
    handle: row.handle as string,
    state: row.state as Lease['state'],
    outcome: optional(row.outcome),
    revocationKind: row.revocation_kind as Lease['revocationKind'],
    issuedAt: instant(row.issued_at),
    expiresAt: instant(row.expires_at),
    settledAt: optionalInstant(row.settled_at),
    deadBy: optionalInstant(row.dead_by),
    renewedFrom: optional(row.renewed_from),
    renewalCount: row.renewal_count as number,
    lineStartedAt: instant(row.line_started_at),
    policyRevision: row.policy_revision as string,
    policyRule: row.policy_rule as string,
    terms: termsFromRow(row.terms),
    settleCause: optional(row.settle_cause),
    settleAttempts: row.settle_attempts as number,
    settleError: optional(row.settle_error),
    settleAt: instant(row.settle_at),
    settlingSince: optionalInstant(row.settling_since),
    abandoned:
      row.abandoned_at === null
        ? undefined
        : {
            at: instant(row.abandoned_at),
            by: row.abandoned_by as string,
            reason: row.abandon_reason as string,
          },
  };
}

interface StoredTerms {
  arguments: LeaseTerms['arguments'];
  limits: LeaseTerms['argumentLimits'];
  renew_not_before: number | null;
  bound_to?: LeaseTerms['boundTo'];
}

function termsFromRow(value: unknown): LeaseTerms | undefined {
  if (value === null || value === undefined) return undefined;
  const stored = value as StoredTerms;
  const renewNotBefore = stored.renew_not_before ?? undefined;
  const terms = { arguments: stored.arguments, argumentLimits: stored.limits, renewNotBefore };
  return stored.bound_to === undefined ? terms : { ...terms, boundTo: stored.bound_to };
}

export function termsColumn(terms: LeaseTerms | undefined): string | null {
  if (terms === undefined) return null;
  const stored: StoredTerms = {
    arguments: terms.arguments,
    limits: terms.argumentLimits,
    renew_not_before: terms.renewNotBefore ?? null,
    ...(terms.boundTo === undefined ? {} : { bound_to: terms.boundTo }),
  };
  return JSON.stringify(stored);
}

export function auditFromRow(row: Row, eventId: string): RecordedAuditEvent {
  return {
    tenant: row.tenant as string,
    eventId,
    kind: row.kind as RecordedAuditEvent['kind'],
    at: instant(row.at),
    actor: row.actor as string,
    taskId: row.task_id as string,
    ...(row.lease_id === null ? {} : { leaseId: row.lease_id as string }),
    detail: row.detail as RecordedAuditEvent['detail'],
  };
}

/**
 * `unnest` arguments for audit events, in the order of `auditUnnest`. Arrays keep the statement's text constant
 * whatever the number of rows, so that it is prepared once.
 */
export function auditColumns(events: readonly AuditEvent[]): unknown[][] {
  const columns: unknown[][] = [[], [], [], [], [], [], []];
  for (const event of events) {
    columns[0]!.push(event.tenant);
    columns[1]!.push(event.kind);
    columns[2]!.push(event.at);
    columns[3]!.push(event.actor);
    columns[4]!.push(event.taskId);
    columns[5]!.push(event.leaseId ?? null);
    columns[6]!.push(JSON.stringify(event.detail));
  }
  return columns;
}

/** `unnest(…) AS e(…)` beginning at parameter `$first`. */
export function auditUnnest(first: number): string {
  const types = ['text', 'text', 'float8', 'text', 'text', 'text', 'text'];
  const parameters = types.map((type, index) => `$${first + index}::${type}[]`).join(', ');
  return `unnest(${parameters}) AS e(tenant, kind, at, actor, task_id, lease_id, detail)`;
}

export const auditInsert = 'INSERT INTO audit_events (tenant, kind, at, actor, task_id, lease_id, detail)';
export const auditSelect =
  'SELECT e.tenant, e.kind, to_timestamp(e.at / 1000), e.actor, e.task_id, e.lease_id, e.detail::json';
