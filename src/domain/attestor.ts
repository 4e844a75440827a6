import type { Attestation } from './caller.ts';
import type { Instant } from './time.ts';

/**
 * Verifies one kind of attestation. Implementations pass `test/contract/attestor-suite.ts`. Throws BrokerError
 * ATTESTATION_INVALID, ATTESTATION_EXPIRED, ISSUER_UNKNOWN or KEYS_STALE; the message never holds the token.
 */
export interface Attestor {
  /** `trust-domain/<name>` or `issuer/<url>`. */
  name: string;
  /** Whether a token that claims this issuer or trust domain (unverified) is this attestor's. */
  accepts(claimed: { iss: string | undefined; sub: string | undefined }): boolean;
  /** Full verification. `now` is the broker's clock. */
  attest(token: string, now: Instant): Promise<Attestation>;
  /** Changes whenever its keys change: cached results of another generation are void. */
  generation(): number;
  /** Cheap. False once its keys are older than the stated bound: then cached results are void as well. */
  fresh(now: Instant): boolean;
  status(now: Instant): { ready: boolean; detail: string };
  close(): Promise<void>;
}
