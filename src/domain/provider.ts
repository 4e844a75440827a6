import { BrokerError } from './errors.ts';
import type { Lease, Task } from './model.ts';
import type { Tool, ToolTier } from './policy.ts';
import type { Instant } from './time.ts';

/** Secret material. It lives from `issue` to the answer and nowhere else. */
export type Material =
  | { kind: 'access_token'; token: string; tokenType: 'Bearer' | 'DPoP' }
  | {
      kind: 'postgres_login';
      host: string;
      port: number;
      database: string;
      username: string;
      password: string;
      sslmode: string;
    }
  /** What a secrets engine of Vault answered, as it stands. */
  | { kind: 'vault_secret'; data: Record<string, unknown> }
  /** A token with which its holder fetches the secret from Vault, once; the broker has not seen it. */
  | { kind: 'vault_wrapped'; token: string; address: string; namespace: string; unwrapBefore: Instant };

/** What one `issue` made. */
export interface Made {
  material: Material;
  /** How to find it from now on, where only the target could say; kept by the write that makes the lease active. */
  handle?: string;
  /** When the target ends it by itself, if that is before the end of the lease. */
  expiresAt?: Instant;
}

/** An `issue` that failed, and under which handle what it may have left behind is found. */
export class IssueFailure extends BrokerError {
  readonly handle: string;

  constructor(failure: BrokerError, handle: string) {
    const { cause, retryAfterMs } = failure;
    super(failure.reason, failure.message, { cause, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) });
    this.handle = handle;
  }
}

/**
 * What a revoke left undone although nothing failed: it cannot be taken away alone and dies by itself, or it is too early to
 * tell whether it exists.
 */
export type Remaining = { deadBy: Instant } | { lookAgainAt: Instant; because: string };

/** Everything that a provider needs to make one credential; decided and bounded already. */
export interface Grant {
  lease: Lease;
  task: Task;
  /** The tasks above it, nearest first; undefined for a root. */
  above?: readonly Task[] | undefined;
  tool: Tool;
  tier: ToolTier;
}

/**
 * What makes and ends credentials of one kind. Implementations pass `test/contract/provider-suite.ts`.
 *
 * A self-contained provider (`jwt`) needs no target: `sign` is synchronous, and revoking is the broker's own feed.
 */
export interface SelfContainedProvider {
  selfContained: true;
  kind: string;
  /** Latest expiry that a credential made now can have (signing key life). */
  maxExpiry(tenant: string, now: Instant): Instant;
  /** The same lease gives an equivalent credential each time: same jti, same expiry. */
  sign(grant: Grant): Material;
}

export interface TargetProvider {
  selfContained: false;
  kind: string;
  /** Longest time that one `issue` may take, milliseconds; enforced at the target as well (statement_timeout). */
  issueTimeout: number;
  /**
   * Names the credential before it exists: derived from the lease alone, committed before `issue` is called, enough for
   * `revoke` after a crash. It begins with the target's name and a slash (`targetOf`), and holds no secret. Throws BrokerError FIELD_INVALID / PROVIDER_UNAVAILABLE when the tier's options name no usable target.
   */
  handle(leaseId: string, tier: ToolTier): string;
  /**
   * For a target that names its credentials itself: what has to be known before it is asked for one, as the handle that is
   * committed with the pending lease. Asked again before an active lease's credential is made anew; the handle then finds
   * both. Nothing is made here that outlives the task.
   */
  prepare?(grant: Grant, signal: AbortSignal): Promise<string>;
  /**
   * What `issue` does for an active lease, whose answer was lost. `replaces`: the same credential with another secret.
   * `anew`: it can give the earlier one to nobody a second time, so it ends that one and makes another; the lease is pending
   * meanwhile.
   */
  reissue: 'replaces' | 'anew';
  /**
   * Makes the credential. Safe to call again for the same lease: it then replaces the secret. For a lease that is `active`
   * it only replaces, and throws LEASE_ENDED where the target knows no such credential any more: a settlement that runs
   * beside a retry must not be undone by it.
   */
  issue(grant: Grant, signal: AbortSignal): Promise<Made>;
  /**
   * Ends the credential at its target and returns only when a look at the target shows it gone (sessions included).
   * Idempotent; a credential that never came to be is gone too. Throws with a message free of secrets when it cannot, and
   * says what remains when nothing failed and it is not gone all the same. `lease`: what it is revoked for, where there is one.
   */
  revoke(
    handle: string,
    signal: AbortSignal,
    lease?: Pick<Lease, 'settleCause' | 'issuedAt' | 'expiresAt'>,
  ): Promise<Remaining | void>;
  /** Where the handle's credential leads, for the record: host, database, role. No secret; undefined when it cannot be said. */
  describe?(handle: string): Readonly<Record<string, string>> | undefined;
  /** Whether the target still knows the credential. For tests. */
  exists(handle: string, signal: AbortSignal): Promise<boolean>;
  /** Absent: what the targets hold cannot be listed, and is not compared with our leases. */
  inventory?: TargetInventory;
  /** Whether the provider can reach its targets now; for status. */
  check(signal: AbortSignal): Promise<{ name: string; ready: boolean; detail: string }[]>;
  close(): Promise<void>;
}

export type Provider = SelfContainedProvider | TargetProvider;

/** Something at a target that may have been made by a broker: a login, a token. */
export interface HeldAtTarget {
  /** `revoke` takes it. */
  handle: string;
  /** The lease that it was made for, where its name or its description at the target tells. */
  leaseId: string | undefined;
  /** The task, where that is all that can be told: one token may hold all leases of a task. */
  taskId: string | undefined;
  madeAt: Instant | undefined;
  /**
   * Whose it is, as far as the target can tell: `ours` bears this installation's mark (domain/ids.ts); `other` is certain to
   * be another installation's; `unmarked` is anybody's, and never taken away on the word of the target alone.
   */
  owner: 'ours' | 'other' | 'unmarked';
}

/** What a provider's targets hold, for reconciliation. Calls are bounded by the signal and throw as `revoke` does. */
export interface TargetInventory {
  /** Names of the configured targets. */
  targets(): readonly string[];
  /** A page in an order that does not change, `next` being what `after` takes; undefined on the last page. */
  list(
    target: string,
    after: string | undefined,
    limit: number,
    signal: AbortSignal,
  ): Promise<{ held: HeldAtTarget[]; next: string | undefined }>;
  /** Those of these handles that the target knows, or of which it keeps nothing, so that nobody can tell. */
  present(target: string, handles: readonly string[], signal: AbortSignal): Promise<ReadonlySet<string>>;
}

/** Name of the target that a handle belongs to; empty for a self-contained credential. */
export function targetOf(handle: string): string {
  return handle.split('/', 1)[0]!;
}
