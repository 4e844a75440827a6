import type { AuditEvent, RecordedAuditEvent } from './audit.ts';
import type { ChildRefusal } from './delegation/child.ts';
import type { CloseCause, Lease, LeaseOutcome, LeaseState, LeaseSummary, Task, TaskNode, TaskState } from './model.ts';
import type { Instant, Millis } from './time.ts';

/**
 * What the domain asks of storage. Every call that changes something commits its audit events in the same transaction,
 * and throws BrokerError STORAGE_UNAVAILABLE when it cannot tell the caller that it did.
 */

export interface Page<T> {
  items: T[];
  /** Opaque; undefined on the last page. */
  next: string | undefined;
}

export type NewTask = Omit<
  Task,
  'state' | 'closeCause' | 'closedAt' | 'settledAt' | 'epoch' | 'statusIndex' | 'heartbeatDue'
> & {
  requestId: string;
  /** Digest of the request's content: the same request_id with another digest is a mistake of the caller. */
  requestDigest: string;
  /** Of the locks that it was decided under. */
  lockEpoch: number;
};

export interface InsertedTask {
  task: Task;
  inserted: boolean;
  requestDigest: string;
}

export interface TaskFilter {
  tenant: string;
  /** Only tasks directly below this one. */
  parentTaskId?: string;
  /** Only tasks of this tree. */
  rootTaskId?: string;
  /** Only tasks that this workload opened. */
  opener?: string;
  /** Only tasks of these agents … */
  agents?: readonly string[];
  /** … that are pinned to this workload or to none. */
  agentWorkload?: string;
  /** Only tasks that have each of these. */
  labels?: Task['labels'];
  states: readonly TaskState[];
  pageSize: number;
  after: string | undefined;
}

export interface TaskStore {
  /**
   * A task that the same opener made with the same request_id is returned instead, with its digest. `locks`: not written,
   * because a lock was placed or has ended since the epoch.
   */
  insert(task: NewTask, events: AuditEvent[]): Promise<InsertedTask | { refused: 'locks' }>;
  /**
   * The same for a task below others (`above`, nearest first), under locks that a close of any of those waits for: it is
   * written before the close, which then closes it too, or not at all.
   */
  insertBelow(
    task: NewTask,
    events: AuditEvent[],
    above: readonly Pick<Task, 'taskId'>[],
    limits: { openChildren: number; openInTree: number },
  ): Promise<InsertedTask | { refused: ChildRefusal | 'locks' }>;
  /** What this opener made with that request_id. */
  byRequest(
    tenant: string,
    opener: string,
    requestId: string,
  ): Promise<{ task: Task; requestDigest: string } | undefined>;
  get(tenant: string, taskId: string): Promise<Task | undefined>;
  list(filter: TaskFilter): Promise<Page<Task>>;
  /**
   * A task and all below it, in the order of ids, which has each before those below it. `levels`: no further down than
   * that; `after`: behind this id.
   */
  tree(task: Task, page: { levels?: number; limit: number; after: string | undefined }): Promise<Page<TaskNode>>;
  /** Over a task and all below it. */
  treeTotals(task: Task): Promise<TreeTotals>;
  /** The task is settled, and all below it are. */
  isTreeSettled(task: Task): Promise<boolean>;
  /** Pins the agent's workload when none is pinned yet; returns the task as it stands afterwards. */
  pinAgent(task: Task, workload: string, event: AuditEvent): Promise<Task | undefined>;
  /**
   * Undefined when the task is not open. Increases the epoch. Tasks below it that would last longer end then as well;
   * `ofChild` makes their events. `beyond` is the parent's deadline, when that is earlier, and `earliest` the end of a credential
   * that nothing can end before its time, when that is later: nothing was changed then.
   */
  extend(
    task: Task,
    deadline: Instant,
    event: AuditEvent,
    ofChild: (taskId: string, from: Instant) => AuditEvent,
  ): Promise<Task | { beyond: Instant } | { earliest: Instant } | undefined>;
  /** Undefined when the task is not open. */
  heartbeat(task: Task, due: Instant): Promise<Task | undefined>;
  /**
   * Sets the task and its subtree to `closing` and marks every lease for settlement. Undefined when no such task;
   * `changed` is false when it was closed before.
   */
  close(
    tenant: string,
    taskId: string,
    cause: CloseCause,
    now: Instant,
    event: AuditEvent,
  ): Promise<{ task: Task; changed: boolean } | undefined>;
  /** Open tasks whose deadline or heartbeat has passed. */
  due(now: Instant, limit: number): Promise<{ tenant: string; taskId: string; cause: CloseCause }[]>;
}

export interface TreeTotals {
  tasks: number;
  unsettledTasks: number;
  summary: LeaseSummary;
}

/** A lease to be written, only if its task is open at this epoch. */
export interface LeaseWrite {
  lease: Lease;
  epoch: number;
  /** Of the locks that it was decided under. */
  lockEpoch: number;
  /** When the settler looks at it: expiry for an active lease, the end of the issue attempt for a pending one. */
  settleAt: Instant;
  /** The renewed lease ends here at the latest. Set when this write makes a renewal live. */
  supersedeAt: Instant | undefined;
  /** One use of this approval is taken by the same write; it is not written when none is left for exactly this. */
  approval?: { approvalId: string; argumentsDigest: string };
  events: AuditEvent[];
}

/** Group commit (design §5). */
export interface LeaseWriter {
  /**
   * Inserts the lease. False: not written, because the task is not open at that epoch, the locks are not those of that
   * epoch, the request_id is taken, its approval has no use left for it, or the renewed lease is not active any more; the
   * caller looks which.
   */
  insert(write: LeaseWrite): Promise<boolean>;
  /**
   * `pending` → `active`, with the handle as it is now known and an end that may have come nearer. False: the task or the
   * locks are not at that epoch, or the lease is not pending any more.
   */
  activate(write: LeaseWrite): Promise<boolean>;
  /** Events of handing out an active lease once more. False: the task or the locks are not at that epoch, or it is not active. */
  reissue(write: Pick<LeaseWrite, 'lease' | 'epoch' | 'lockEpoch' | 'events'>): Promise<boolean>;
  /** Events without a lease row (a denial). */
  record(events: AuditEvent[]): Promise<void>;
}

export interface LeaseFilter {
  tenant: string;
  taskId?: string;
  states: readonly LeaseState[];
  /** Could not be settled so far, or are irrevocable and nobody has taken them on. */
  troubled: boolean;
  /** Only those that an operator has abandoned. */
  abandoned: boolean;
  pageSize: number;
  after: string | undefined;
}

export interface LeaseStore {
  get(tenant: string, leaseId: string): Promise<Lease | undefined>;
  byRequest(tenant: string, taskId: string, requestId: string): Promise<Lease | undefined>;
  /** Oldest first, at most `limit`. */
  ofTask(tenant: string, taskId: string, limit: number): Promise<Lease[]>;
  list(filter: LeaseFilter): Promise<Page<Lease>>;
  /** Of one task. */
  summary(tenant: string, taskId: string): Promise<LeaseSummary>;
  /** `active` → `settling`, claimed by the caller until `claimUntil`. Undefined when it is not active. */
  beginReturn(lease: Lease, claimUntil: Instant, event: AuditEvent): Promise<Lease | undefined>;
  /**
   * A pending lease whose issue failed: due for settlement now, and its request_id is free again, so that the agent's
   * retry is a fresh issue. Its handle is kept as it is now known. False: it was settled already.
   */
  abandon(lease: Lease, now: Instant, event: AuditEvent): Promise<boolean>;
  /** `active` → `pending` under this handle, for a credential that is made anew. False: it is not active, or ends already. */
  reopen(lease: Lease, handle: string, settleAt: Instant, event: AuditEvent): Promise<boolean>;
  /**
   * Takes an active lease for replacing its secret until `until`: one at a time, on any replica. False when somebody else has
   * it, or it is not active any more.
   */
  beginReissue(lease: Lease, now: Instant, until: Instant): Promise<boolean>;
  endReissue(lease: Lease): Promise<void>;
  counts(tenant: string): Promise<{ open: number; troubled: number }>;
}

export interface Settled {
  lease: Lease;
  outcome: LeaseOutcome;
  deadBy: Instant | undefined;
  /** Of an irrevocable one: when the broker tries again. */
  retryAt?: Instant;
}

export type FinishedTask = Pick<Task, 'tenant' | 'taskId' | 'state' | 'parentTaskId'>;

export interface SettlementStore {
  /**
   * Settles due leases of self-contained providers in one transaction: outcome by kind and cause, feed entries, events.
   * Returns how many, and whose. `only` restricts it (and ignores when it is due).
   */
  settleSelfContained(
    kinds: readonly string[],
    now: Instant,
    limit: number,
    only?: { tenant: string; leaseId: string },
    exceptTenants?: readonly string[],
  ): Promise<{ count: number; tenants: readonly string[] }>;
  /** Claims due leases of target providers for `claimFor`; nobody else gets them until then. */
  claim(
    kinds: readonly string[],
    now: Instant,
    claimFor: Millis,
    limit: number,
    exceptTargets: readonly string[],
    onlyTarget?: string,
  ): Promise<Lease[]>;
  /** Irrevocable leases that are due again and that no operator has taken on. They keep state and outcome. */
  claimIrrevocable(
    kinds: readonly string[],
    now: Instant,
    claimFor: Millis,
    limit: number,
    exceptTargets: readonly string[],
  ): Promise<Lease[]>;
  settled(results: Settled[], now: Instant): Promise<void>;
  /** Irrevocable leases that have been revoked after all; returns the tasks that are closed by it. */
  corrected(results: Settled[], now: Instant): Promise<FinishedTask[]>;
  failed(lease: Lease, error: string, retryAt: Instant): Promise<void>;
  /** Closing tasks without unsettled leases become `closed`; returns their ids. */
  completeTasks(now: Instant, limit: number, exceptTenants?: readonly string[]): Promise<FinishedTask[]>;
  /** Tasks that are closing since before `since` become `close_degraded`. */
  degradeTasks(since: Instant, now: Instant): Promise<FinishedTask[]>;
  /** When the next lease is due, undefined when none is. */
  nextDue(): Promise<Instant | undefined>;
  forgetRevocations(now: Instant): Promise<number>;
}

export interface Revocation {
  /** Among those of all tenants: not for followers. */
  position: number;
  tenant: string;
  taskId: string | undefined;
  leaseId: string | undefined;
  revokedAt: Instant;
  forgetAt: Instant;
}

export interface RevocationStore {
  /** Where a follower begins that wants everything since then, or everything there is. `horizon` is for `tail`. */
  begin(tenant: string, since: Instant | undefined): Promise<{ position: number; horizon: string }>;
  /** Entries after `position`, in order. */
  after(tenant: string, position: number, limit: number): Promise<Revocation[]>;
  /**
   * Entries of transactions that were not finished at `horizon`, some of them seen before, none older than `since`; and
   * the horizon for the next call.
   */
  tail(tenant: string, horizon: string, since: Instant): Promise<{ entries: Revocation[]; horizon: string }>;
  /** Status indexes of closed tasks that may still have live tokens, within one status list. */
  revokedIndexes(tenant: string, listNumber: number, listSize: number, now: Instant): Promise<number[]>;
}

export interface AuditStore {
  ofTask(
    tenant: string,
    taskId: string,
    pageSize: number,
    after: string | undefined,
  ): Promise<Page<RecordedAuditEvent>>;
}

/** Wake-ups only: nothing depends on one arriving (design §4). */
export interface Wake {
  /** Something about this task changed (any replica). */
  onTask(listener: (tenant: string, taskId: string) => void): () => void;
  /** Another policy revision was let run. */
  onPolicy(listener: () => void): () => void;
  /** A signal was reported or cleared (any replica). */
  onSignal(listener: () => void): () => void;
  /** A lock was placed, or has ended. */
  onLock(listener: () => void): () => void;
}
