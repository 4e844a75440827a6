import type { Lease, Task } from './model.ts';
import type { Tool, ToolTier } from './policy.ts';
import type { Instant } from './time.ts';

/** Secret material. It lives from `issue` to the answer and nowhere else. */
export type Material =
  | { kind: 'access_token'; token: string; tokenType: 'Bearer' }
  | {
      kind: 'postgres_login';
      host: string;
      port: number;
      database: string;
      username: string;
      password: string;
      sslmode: string;
    };

/** Everything that a provider needs to make one credential; decided and bounded already. */
export interface Grant {
  lease: Lease;
  task: Task;
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
  maxExpiry(now: Instant): Instant;
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
   * `revoke` after a crash. Holds no secret. Throws BrokerError FIELD_INVALID / PROVIDER_UNAVAILABLE when the tier's options name no usable target.
   */
  handle(leaseId: string, tier: ToolTier): string;
  /**
   * Makes the credential. Safe to call again for the same lease: it then replaces the secret. For a lease that is `active`
   * it only replaces, and throws LEASE_ENDED where the target knows no such credential any more: a settlement that runs
   * beside a retry must not be undone by it.
   */
  issue(grant: Grant, signal: AbortSignal): Promise<Material>;
  /**
   * Ends the credential at its target and returns only when a look at the target shows it gone (sessions included).
   * Idempotent; a credential that never came to be is gone too. Throws with a message free of secrets when it cannot.
   */
  revoke(handle: string, signal: AbortSignal): Promise<void>;
  /** Whether the target still knows the credential. For reconciliation and tests. */
  exists(handle: string, signal: AbortSignal): Promise<boolean>;
  /** Whether the provider can reach its targets now; for status. */
  check(signal: AbortSignal): Promise<{ name: string; ready: boolean; detail: string }[]>;
  close(): Promise<void>;
}

export type Provider = SelfContainedProvider | TargetProvider;
