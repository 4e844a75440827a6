import type { AuditEvent } from '../audit.ts';
import type { Lease, ToolAccess } from '../model.ts';
import type { Page } from '../store.ts';
import type { Instant } from '../time.ts';
import type { Approval, ApprovalState, Vote } from './model.ts';

/** What people are told, at every endpoint that is configured. Never a secret, never free text of a caller. */
export interface Notice {
  type: string;
  data: Readonly<Record<string, unknown>>;
}

/** What one act does to an approval. All of it is one transaction. */
export interface ApprovalChange {
  vote?: Vote;
  set?: Pick<Approval, 'state'> & Partial<Pick<Approval, 'decidedAt' | 'expiresAt' | 'coolDownUntil'>>;
  events: readonly AuditEvent[];
  notices: readonly Notice[];
}

export type NewApproval = Omit<
  Approval,
  'state' | 'groupId' | 'usesLeft' | 'decidedAt' | 'expiresAt' | 'coolDownUntil'
>;

/** What is asked once, and found again. `agent` tells apart those that one task holds for several below. */
export type ExactUse = Pick<
  NewApproval,
  'kind' | 'tenant' | 'taskId' | 'agent' | 'tool' | 'tier' | 'arguments' | 'policyRevision'
>;

export interface RequestLimits {
  /** Most pending requests of one task. */
  maxPending: number;
  /** Most requests of one agent since then. */
  since: Instant;
  maxSince: number;
}

export interface ApprovalFilter {
  tenant: string;
  states: readonly ApprovalState[];
  taskId: string | undefined;
  groupId: string | undefined;
  /** Undefined: all. Otherwise what one of these names may decide, has decided, or asked for. */
  visibleTo: { names: readonly string[]; workload: string; agents: readonly string[]; decides: boolean } | undefined;
  pageSize: number;
  after: string | undefined;
}

/** What has ended of itself is settled first by every call that looks for a live one. */
export interface ApprovalStore {
  get(tenant: string, approvalId: string): Promise<Approval | undefined>;
  list(filter: ApprovalFilter): Promise<Page<Approval>>;
  /** Whether this workload acts for the task that holds it, or for a task directly below which it is for. */
  isPartyTo(approval: Approval, workload: string): Promise<boolean>;
  /** An approved break-glass of the task for this tool and tier. */
  emergency(tenant: string, taskId: string, access: ToolAccess): Promise<Approval | undefined>;
  /** The live one for exactly this, else the one whose deny still cools down. */
  find(request: ExactUse, now: Instant): Promise<Approval | undefined>;
  /** Where in the line of this lease, itself included, an approval was last used. */
  lastUse(lease: Pick<Lease, 'tenant' | 'leaseId'>): Promise<{ renewalCount: number; at: Instant } | undefined>;
  /**
   * Asks, in one transaction, for those of the requests (all of one task) that are not live and do not cool down; answers
   * with the approval of each, in order. Throws RATE_LIMITED and asks for none when a limit is met, and IN_PROGRESS when
   * one is for a task below and the task that would hold it is not open as it was at `epoch`.
   */
  request(
    requests: readonly NewApproval[],
    limits: RequestLimits & { epoch: number },
    record: (asked: readonly Approval[]) => Pick<ApprovalChange, 'events' | 'notices'>,
  ): Promise<{ approval: Approval; asked: boolean }[]>;
  /** Locks the approval, asks `decide` what to do with it as it is, and does that. Undefined: no such approval. */
  change(
    tenant: string,
    approvalId: string,
    decide: (current: Approval) => ApprovalChange | undefined,
  ): Promise<Approval | undefined>;
  /** Those that ended of themselves: not decided or used in time, or their task has ended. */
  settleDue(
    now: Instant,
    limit: number,
    change: (current: Approval, taskOpen: boolean) => ApprovalChange,
  ): Promise<Approval[]>;
}
