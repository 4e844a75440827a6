import type { KeyBinding } from '../domain/model.ts';
import { BrokerError, fieldInvalid } from '../domain/errors.ts';
import type { Clock } from '../domain/time.ts';
import { checkProof, ProofFault } from './proof.ts';
import { createReplayStore, type ReplayStore } from './replays.ts';

/** Takes the proof of a request for a credential; the key that it is made with is what the credential is bound to. */
export type TakeProof = (tenant: string, method: string, requestId: string, proof: string) => Promise<KeyBinding>;

/**
 * RFC 9449 for the broker's own methods: `htm` is POST, and `htu` the issuer with the method's path, whichever door the
 * call comes through. A request that is sent again may carry the same proof.
 */
export function createRequestProofs(issuer: string, clock: Clock): TakeProof {
  // For each tenant, of which as many are as are configured: one that fills its own takes nothing of another's.
  const stores = new Map<string, ReplayStore>();
  return async (tenant, method, requestId, proof) => {
    const now = clock.now();
    let checked: Awaited<ReturnType<typeof checkProof>>;
    try {
      checked = await checkProof(proof, { method: 'POST', url: `${issuer.replace(/\/$/, '')}/${method}`, now });
    } catch (error) {
      if (!(error instanceof ProofFault)) throw error;
      throw fieldInvalid('dpop_proof', `is no proof for this request: ${error.message}`);
    }
    let replays = stores.get(tenant);
    if (replays === undefined) stores.set(tenant, (replays = createReplayStore()));
    const state = replays.use(checked, `${method} ${requestId}`, now);
    if (state === 'used') throw fieldInvalid('dpop_proof', 'was used for another request: make a proof for each');
    if (state === 'full') {
      throw new BrokerError('RATE_LIMITED', 'too many proofs within a minute: retry shortly', { retryAfterMs: 1_000 });
    }
    return { jkt: checked.jkt };
  };
}
