import { hash } from 'node:crypto';
import { LRUCache } from 'lru-cache';
import type { Attestor } from '../domain/attestor.ts';
import type { Attestation } from '../domain/caller.ts';
import { BrokerError } from '../domain/errors.ts';
import type { Clock, Instant } from '../domain/time.ts';
import { checkLength, parseToken } from './token/parse-token.ts';

export interface AttestationService {
  /** Throws BrokerError ATTESTATION_INVALID, ATTESTATION_EXPIRED, ISSUER_UNKNOWN or KEYS_STALE. */
  attest(token: string): Promise<Attestation>;
  status(): { name: string; ready: boolean; detail: string }[];
  close(): Promise<void>;
}

export interface AttestationOptions {
  /** Asked in this order where several accept a token, as when two tenants share an issuer. */
  attestors: readonly Attestor[];
  clock: Clock;
  /** How many verified tokens are remembered. */
  cacheSize: number;
}

interface Verified {
  attestation: Attestation;
  attestor: Attestor;
  /** Of the attestor's keys when verification began. */
  generation: number;
}

interface Verifying {
  result: Promise<Attestation>;
  /** All attestors' generations when verification began. */
  generations: string;
}

/**
 * Verifies each token once (design §5 step 1). What is remembered is its hash, and only a success: a failure costs the
 * caller a new verification, and cannot push out anybody's success.
 */
export function createAttestation({ attestors, clock, cacheSize }: AttestationOptions): AttestationService {
  const verified = new LRUCache<string, Verified>({ max: cacheSize });
  // One entry per call that waits, hence bounded by the calls that the doors admit.
  const verifying = new Map<string, Verifying>();

  const verify = async (token: string, digest: string, now: Instant): Promise<Attestation> => {
    const { iss, sub } = parseToken(token).claims;
    const claimed = { iss: text(iss), sub: text(sub) };
    const refusals: unknown[] = [];
    for (const attestor of attestors) {
      if (!attestor.accepts(claimed)) continue;
      const generation = attestor.generation();
      try {
        const attestation = Object.freeze(await attestor.attest(token, now));
        verified.set(digest, { attestation, attestor, generation });
        return attestation;
      } catch (error) {
        refusals.push(error);
      }
    }
    throw mostTelling(refusals);
  };

  return {
    async attest(token) {
      checkLength(token);
      const now = clock.now();
      const digest = hash('sha256', token, 'base64');
      const hit = verified.get(digest);
      if (hit !== undefined) {
        const { attestation, attestor, generation } = hit;
        if (now < attestation.expiresAt && generation === attestor.generation() && attestor.fresh(now))
          return attestation;
        verified.delete(digest);
      }
      const generations = attestors.map((attestor) => attestor.generation()).join();
      const underway = verifying.get(digest);
      // One that began under other keys may have succeeded by a key that is gone.
      if (underway?.generations === generations) return underway.result;
      const result = verify(token, digest, now).finally(() => {
        if (verifying.get(digest)?.result === result) verifying.delete(digest);
      });
      verifying.set(digest, { result, generations });
      return result;
    },
    status: () => attestors.map((attestor) => ({ name: attestor.name, ...attestor.status(clock.now()) })),
    async close() {
      verified.clear();
      await Promise.all(attestors.map((attestor) => attestor.close()));
    },
  };
}

function text(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined;
}

/** Of several attestors' refusals, the one that the caller can act on: it was recognised, but late or too early. */
function mostTelling(refusals: readonly unknown[]): unknown {
  if (refusals.length === 0) {
    return new BrokerError(
      'ISSUER_UNKNOWN',
      'The attestation comes from no trust domain or issuer that this broker knows. Use one that it lists in its configuration.',
    );
  }
  const weigh = (error: unknown) =>
    !(error instanceof BrokerError)
      ? 3
      : error.reason === 'KEYS_STALE'
        ? 2
        : error.reason === 'ATTESTATION_EXPIRED'
          ? 1
          : 0;
  return refusals.toSorted((a, b) => weigh(b) - weigh(a))[0];
}
