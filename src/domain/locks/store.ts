import type { AuditEvent } from '../audit.ts';
import type { Lease, Task } from '../model.ts';
import type { Page } from '../store.ts';
import type { Instant, Millis } from '../time.ts';
import type { Lock } from './model.ts';

/** The locks in force as of one epoch: no lock was placed or ended between the two reads. */
export interface LockView {
  epoch: number;
  locks: readonly Lock[];
}

export type NewLock = Omit<
  Lock,
  'state' | 'settledAt' | 'liftAskedBy' | 'liftAskedAt' | 'liftReason' | 'endedBy' | 'endedAt'
> & { requestId: string };

/** What is still open under a lock; counted up to a bound. */
export interface LockReach {
  openTasks: number;
  /** Leases without an outcome. */
  unsettledLeases: number;
  /** Settled leases that nothing can revoke and that have not run out. */
  boundedLeases: number;
  /** When the last credential under it is dead whatever happens; undefined when none lives. */
  aliveUntil: Instant | undefined;
}

export interface LockStore {
  view(): Promise<LockView>;
  /**
   * In force on every replica when this returns: whatever is written later was decided with this lock in view. The lock that
   * the same person placed with the same request_id is returned instead. Undefined: the tenant has `most` in force already.
   */
  place(lock: NewLock, most: number, event: AuditEvent): Promise<{ lock: Lock; placed: boolean } | undefined>;
  /** Changes a lock by what `change` says of it; undefined leaves it as it is. Answers undefined when there is none. */
  change(tenant: string, lockId: string, change: (lock: Lock) => LockChange | undefined): Promise<Lock | undefined>;
  /** Locks whose time is over by the database's clock; they have ended when this returns. */
  expire(limit: number, event: (lock: Lock) => AuditEvent): Promise<Lock[]>;
  /** A lock that is on this tenant, on every tenant, or placed by this tenant's people. */
  get(tenant: string, lockId: string): Promise<Lock | undefined>;
  /** Of those, newest first. */
  list(filter: {
    tenant: string;
    inForce: boolean;
    taskId: string | undefined;
    pageSize: number;
    after: string | undefined;
  }): Promise<Page<Lock>>;
  /** Whether any task or lease is of this scope: a lock on a name that was taken out of policy is no slip of the pen. */
  knows(lock: Pick<Lock, 'tenant' | 'scope'>): Promise<boolean>;
  reach(lock: Lock, now: Instant): Promise<LockReach>;

  /** A lock that is to settle and that no other replica is at; it is the caller's for `claimFor`. */
  claimSettling(claimFor: Millis): Promise<Lock | undefined>;
  /** Open tasks that this lock closes, those at the top first. */
  tasksUnder(lock: Lock, limit: number): Promise<Pick<Task, 'tenant' | 'taskId'>[]>;
  /** Lets go of a claim before its time. */
  releaseSettling(lock: Lock): Promise<void>;
  /** Marks active leases of the locked tool for settlement; `left`: there are more. */
  endLeases(
    lock: Lock,
    now: Instant,
    limit: number,
    event: (lease: Lease) => AuditEvent,
  ): Promise<{ ended: Lease[]; left: boolean }>;
  /** Nothing is left open under it. */
  settled(lock: Lock, event: AuditEvent): Promise<void>;
}

export interface LockChange {
  set: Partial<Pick<Lock, 'state' | 'liftAskedBy' | 'liftAskedAt' | 'liftReason' | 'endedBy' | 'endedAt'>>;
  event: AuditEvent;
}
