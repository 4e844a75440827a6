import type { ArgumentLimits, DeclaredArguments } from './arguments.ts';
import type { Instant, Millis } from './time.ts';

export const tiers = ['read', 'write', 'execute'] as const;
export type Tier = (typeof tiers)[number];

export type RevocationKind = 'immediate' | 'bounded' | 'none';

export interface ToolAccess {
  tool: string;
  tier: Tier;
}

export type TaskState = 'open' | 'closing' | 'closed' | 'close_degraded';
export type CloseCause = 'requested' | 'deadline' | 'heartbeat_lost' | 'parent_closed' | 'locked' | 'handed_over';

/** One unit of work (design §2). Free text (`intent`) is recorded and never decides. */
export interface Task {
  tenant: string;
  taskId: string;
  rootTaskId: string;
  parentTaskId: string | undefined;
  intent: string;
  agent: string;
  opener: string;
  /** Workload that acts as the agent; undefined until pinned. Never changes once set. */
  agentWorkload: string | undefined;
  tools: readonly ToolAccess[];
  /** What policy decides on for this unit of work. */
  context: Readonly<Record<string, string>>;
  /** What it belongs to: groups tasks for policy and lists. */
  labels: Readonly<Record<string, string>>;
  state: TaskState;
  closeCause: CloseCause | undefined;
  openedAt: Instant;
  deadline: Instant;
  closedAt: Instant | undefined;
  settledAt: Instant | undefined;
  heartbeatInterval: Millis | undefined;
  heartbeatDue: Instant | undefined;
  /** A write that depends on the task names the epoch that it was decided under; another epoch refuses it. */
  epoch: number;
  /** Position in the token status lists (one per task: its tokens live and die together). */
  statusIndex: number;
}

export type LeaseState = 'pending' | 'active' | 'settling' | 'settled';
export type LeaseOutcome = 'revoked' | 'expired' | 'returned' | 'bounded' | 'irrevocable';
/** Why a lease is being taken to an outcome. */
export type SettleCause =
  | 'expired'
  | 'closed'
  | 'returned'
  | 'superseded'
  | 'abandoned'
  | 'policy'
  | 'signal'
  | 'lost'
  | 'locked'
  | 'handed_over';

/** What a lease is bound to beside its life. */
export interface LeaseTerms {
  /** What its agent declared; the same for the whole line of renewals. */
  arguments: DeclaredArguments;
  /** Limits that policy narrowed, for arguments that were not declared. */
  argumentLimits: ArgumentLimits;
  /** Policy renews it no earlier than this. */
  renewNotBefore: Instant | undefined;
  /** The key or certificate that its holder has to prove; the same for the whole line. */
  boundTo?: KeyBinding | undefined;
}

/**
 * What a credential is bound to, as the claim `cnf` says it: the RFC 7638 thumbprint of a key (RFC 9449 §6), or the SHA-256
 * thumbprint of a TLS client certificate (RFC 8705 §3.1).
 */
export type KeyBinding = { jkt: string; 'x5t#S256'?: undefined } | { jkt?: undefined; 'x5t#S256': string };

/** One issued credential (design §2). Never holds secret material: `handle` is what finds it again at its target. */
export interface Lease {
  tenant: string;
  leaseId: string;
  taskId: string;
  requestId: string;
  agent: string;
  workload: string;
  tool: string;
  tier: Tier;
  provider: string;
  handle: string;
  state: LeaseState;
  outcome: LeaseOutcome | undefined;
  revocationKind: RevocationKind;
  issuedAt: Instant;
  expiresAt: Instant;
  settledAt: Instant | undefined;
  deadBy: Instant | undefined;
  renewedFrom: string | undefined;
  /** Renewals before this lease in its line; 0 for a first issue. */
  renewalCount: number;
  /** When the first lease of the line was issued. */
  lineStartedAt: Instant;
  policyRevision: string;
  policyRule: string;
  /** Undefined when its agent declared nothing and policy bound it to nothing. */
  terms?: LeaseTerms | undefined;
  settleCause: SettleCause | undefined;
  settleAttempts: number;
  settleError: string | undefined;
  /** When the broker looks at it next. This and what follows is set on a lease that was read from storage. */
  settleAt?: Instant;
  /** When its settlement was first begun. */
  settlingSince?: Instant | undefined;
  abandoned?: Abandonment | undefined;
}

/** An operator's word that the credential was ended by hand; the broker tries no more. */
export interface Abandonment {
  at: Instant;
  by: string;
  reason: string;
}

/** One task of a tree, and what became of its own leases. */
export interface TaskNode {
  /** What a tree shows of a task: there may be a thousand in one answer. */
  task: Pick<
    Task,
    'taskId' | 'parentTaskId' | 'agent' | 'agentWorkload' | 'opener' | 'state' | 'closeCause' | 'deadline' | 'settledAt'
  >;
  /** Levels below the task that was asked for. */
  depth: number;
  summary: LeaseSummary;
}

export interface LeaseSummary {
  unsettled: number;
  revoked: number;
  expired: number;
  returned: number;
  bounded: number;
  irrevocable: number;
}
