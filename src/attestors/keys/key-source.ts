import type { Instant } from '../../domain/time.ts';
import type { VerificationKey } from './verification-key.ts';

/** Where the keys of one issuer or trust domain come from. */
export interface KeySource {
  /** The keys trusted now. Waits for the first load; throws KEYS_STALE beyond the stated bound. */
  keys(now: Instant): Promise<readonly VerificationKey[]>;
  /** Looks for newer keys, as often as the source allows; never throws. */
  refresh(): Promise<void>;
  /** Whether the keys are within the stated bound. */
  fresh(now: Instant): boolean;
  /** Changes whenever the set of keys does. */
  generation(): number;
  status(now: Instant): { ready: boolean; detail: string };
  close(): Promise<void>;
}
