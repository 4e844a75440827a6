import type { Instant, Millis } from './time.ts';

/**
 * A token that a provider holds at its server for one task: everything that the server made for the task dies with it. Only
 * the accessor is kept, which finds and ends the token and opens nothing; the token itself stays in the process that asked
 * for it (design §3.6).
 */
export interface TaskToken {
  tenant: string;
  taskId: string;
  /** Name of the server, as handles begin with it. */
  server: string;
  accessor: string;
  /** When the server ends it whatever is done. */
  expiresAt: Instant;
}

export interface DueToken extends TaskToken {
  /** What has to be done with it now: the task is open and it is used, or nothing needs it any more. */
  wanted: 'alive' | 'ended';
}

/** What a provider asks of storage about its tokens. Any replica does this work; a claim keeps two from doing it at once. */
export interface TaskTokenStore {
  /** Commits that it exists, before anything is made with it. */
  insert(token: TaskToken, dueAt: Instant): Promise<void>;
  /** Tokens of these servers that somebody has to look at; nobody else gets them for `claimFor`. */
  claim(servers: readonly string[], now: Instant, claimFor: Millis, limit: number): Promise<DueToken[]>;
  /** It lives; when to look again. */
  keep(tokens: readonly TaskToken[], dueAt: readonly Instant[]): Promise<void>;
  /**
   * Whether something may be being made with it at this moment, by any replica, or by one that has died; and how many leases
   * that are not settled hang on it.
   */
  hanging(token: Pick<TaskToken, 'server' | 'accessor'>): Promise<{ attempted: boolean; leases: number }>;
  /** It was seen to be gone. `lost`: although it was wanted. What was made with it has died with it, and is due. */
  gone(token: Pick<TaskToken, 'server' | 'accessor'>, lost: boolean, now: Instant): Promise<number>;
  /**
   * No more is made with it; it is ended when the last lease that has it is settled. Tells when that will be at the latest,
   * undefined when no lease that may be in somebody's hands has it now.
   */
  retire(token: Pick<TaskToken, 'server' | 'accessor'>, now: Instant): Promise<Instant | undefined>;
  /** Those of these leases of the server that some lease of ours names, or named when it was settled. */
  known(server: string, named: readonly string[]): Promise<ReadonlySet<string>>;
  /** Whether an attempt of any replica to read from this path may be under way that began before `until`. */
  attempting(server: string, path: string, until: Instant, now: Instant): Promise<boolean>;
  /** Reads from this path whose answers were lost, and which are not settled yet. */
  lost(server: string, path: string, now: Instant): Promise<number>;
}
