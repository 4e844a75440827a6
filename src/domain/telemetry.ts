import type { Lease } from './model.ts';
import { targetOf } from './provider.ts';

interface OfTask {
  tenant: string;
  taskId: string;
}

interface OfLease extends OfTask {
  leaseId: string;
  tool: string;
  tier: string;
  provider: string;
}

interface OfSettlement extends OfLease {
  /** Where it was made; empty for a token. */
  target: string;
}

interface OfTarget {
  provider: string;
  target: string;
}

interface OfLock {
  tenant: string;
  lockId: string;
  scope: string;
  settle: boolean;
}

interface OfApproval extends OfTask {
  approvalId: string;
  agent: string;
  tool: string;
  tier: string;
}

interface OfCall extends OfTask {
  callId: string;
  tool: string;
  tier: string;
}

interface OfSignal {
  tenant: string;
  signalId: string;
  subjectKind: string;
  kind: string;
}

/** What the domain tells operators, besides what it writes into the audit. Ids and names only, never a secret or free text of a caller. */
export interface DomainEvents {
  'task.opened': OfTask & { agent: string; opener: string; tools: number };
  'task.extended': OfTask & { deadline: number };
  'task.handed_over': OfTask & { from: string; to: string };
  'task.closing': OfTask & { cause: string };
  'task.closed': OfTask & { state: string };
  'lease.issued': OfLease & { agent: string; expiresAt: number };
  'lease.renewed': OfLease & { agent: string; renewedFrom: string; expiresAt: number };
  'lease.denied': OfTask & { agent: string; tool: string; tier: string; effect: string; policyRule: string };
  'lease.locked': OfLease & { lockId: string };
  'task.denied': { tenant: string; agent: string; opener: string; lockId: string };
  'lock.created': OfLock;
  'evidence.exported': OfTask & { task: number; lease: number; approval: number; call: number; event: number };
  'lock.lift_requested': OfLock;
  'lock.lifted': OfLock;
  'lock.expired': OfLock;
  'lock.settled': OfLock;
  'lease.abandoned': OfLease & { reason: string };
  'lease.returned': OfLease;
  /** A policy revision that no longer allows it was applied with `reevaluate`. */
  'lease.taken_away': OfLease & { policyRevision: string };
  /** Decided again because of a signal. */
  'lease.stopped': OfLease & { policyRule: string; signalToDecisionMs: number };
  'signal.reported': OfSignal;
  'signal.cleared': OfSignal;
  'detector.fired': { tenant: string; detector: string; subjectKind: string };
  'lease.settled': OfSettlement & { outcome: string; cause: string; attempts: number };
  'lease.irrevocable': OfSettlement & { attempts: number; error: unknown };
  /** An irrevocable one was revoked after all. */
  'lease.corrected': OfSettlement & { outcome: string; attempts: number };
  'lease.given_up': OfSettlement & { by: string; attempts: number };
  'settle.batch': { leases: number };
  'settle.failed': OfSettlement & { attempts: number; retryInMs: number; error: unknown };
  'settle.retried': { by: string; leases: number };
  'target.failing': { target: string; failures: number };
  'target.recovered': { target: string; failures: number };
  'stray.found': OfTarget & { handle: string; why: string };
  'stray.revoked': OfTarget & { handle: string; why: string; by: string };
  'stray.failed': OfTarget & { handle: string; error: unknown };
  'lease.missing': OfSettlement;
  'reconcile.finished': OfTarget & { strays: number; settled: number; missing: number; held: number };
  'reconcile.failed': OfTarget & { error: unknown };
  'settle.degraded': OfTask;
  'approval.requested': OfApproval;
  'approval.settled': OfTask & { approvalId: string; state: string; waitedMs: number };
  'approval.break_glass_requested': OfApproval & { by: string };
  'approval.break_glass': OfApproval & { by: string };
  'call.recorded': OfCall & { reporter: string; isOver: boolean };
  'call.raised': OfCall & { agent: string; violation: string };
  'notify.failed': { endpoint: string; notificationId: string; attempts: number; retryInMs: number; error: unknown };
  'notify.gave_up': { endpoint: string; notificationId: string; attempts: number; error: unknown };
  'notify.delivered': { endpoint: string; notificationId: string; attempts: number };
  'storage.failed': { operation: string; error: unknown };
  'provider.failed': { provider: string; tool: string; operation: string; error: unknown };
}

/** The rows behind the names (level, line, counter) are in `observability/events.ts`; no call site invents one. */
export type Emit = <K extends keyof DomainEvents>(name: K, fields: DomainEvents[K]) => void;

/** Where the process may be killed in a fault test. The composition root passes a no-op. */
export type FaultPoint =
  | 'issue.pending-committed'
  | 'issue.credential-made'
  | 'issue.activated'
  | 'close.committed'
  | 'settle.claimed'
  | 'settle.revoked'
  | 'settle.recorded';

export type Reached = (point: FaultPoint) => void;

export function leaseFields(lease: Lease): OfLease {
  const { tenant, taskId, leaseId, tool, tier, provider } = lease;
  return { tenant, taskId, leaseId, tool, tier, provider };
}

export function settleFields(lease: Lease): OfSettlement {
  return { ...leaseFields(lease), target: targetOf(lease.handle) };
}
