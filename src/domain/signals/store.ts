import type { AuditEvent } from '../audit.ts';
import type { Page } from '../store.ts';
import type { Instant } from '../time.ts';
import type { Signal, Subject, SubjectKind } from './model.ts';

/** One report or its taking back, under the request that brought it. */
export interface SignalWrite {
  tenant: string;
  /** Who asks, and its name for this request: the same again changes nothing. */
  reporter: string;
  requestId: string;
  digest: string;
  /** No two about the same. One with `clearedAt` takes back what its source said. */
  signals: readonly Signal[];
  /**
   * By signal: its source says when it happened, and an older word changes nothing. Where it does not, what arrives later is
   * newer, whatever the clock of the replica that took it.
   */
  dated: readonly boolean[];
  /** One for each signal, with its `signal_id` in the detail; written only for those that change something. */
  events: readonly AuditEvent[];
}

export interface SignalFilter {
  tenant: string;
  subjectKind: SubjectKind | undefined;
  subject: string | undefined;
  kinds: readonly string[];
  source: string | undefined;
  /** Also what was cleared or has run out, and is not forgotten yet. */
  past: boolean;
  now: Instant;
  pageSize: number;
  after: string | undefined;
}

export interface SignalStore {
  /**
   * Writes signals, their events and the work of deciding their subjects' leases again, in one transaction, and wakes all
   * replicas. `digest` is that of the first request with this id, which may be another.
   */
  write(write: SignalWrite): Promise<{ digest: string; signals: Signal[]; written: number }>;
  byIds(tenant: string, signalIds: readonly string[]): Promise<Signal[]>;
  list(filter: SignalFilter): Promise<Page<Signal>>;
  /** All that is in force, and the horizon for `tail`. */
  load(now: Instant): Promise<{ signals: Signal[]; horizon: string }>;
  /** What was changed by transactions that were unfinished at the horizon, cleared ones included. */
  tail(horizon: string): Promise<{ signals: Signal[]; horizon: string }>;
  /** Signals that have run out: what they concern is decided again. Returns how many there were. */
  queueExpired(limit: number): Promise<number>;
  forget(before: Instant): Promise<number>;
}

/** Signals in force, as every replica has them at hand. */
export interface SignalBoard {
  /** Signals about any of these, known to be complete up to a moment ago. Throws STORAGE_UNAVAILABLE rather than guess. */
  about(tenant: string, subjects: readonly Subject[], now: Instant): Promise<readonly Signal[]>;
  /** Brings it up to what is committed now. */
  refresh(): Promise<void>;
  /** How many are in force in a tenant. */
  count(tenant: string, now: Instant): number;
  inForce(tenant: string, now: Instant): readonly Signal[];
}
