import type { TaskTokenStore } from '../../domain/task-tokens.ts';
import type { Clock, Millis } from '../../domain/time.ts';
import { asFailure } from './failure.ts';
import { targetName, type HandlePart } from './handle.ts';
import { endLease, listLeases, lookUpLease } from './leases.ts';
import type { Open } from './server.ts';

export interface StrayOptions {
  server: Open;
  store: TaskTokenStore;
  clock: Clock;
}

/** By how much the clocks of Vault and of the replica that asked may differ. */
const skew: Millis = 15_000;
const maxCandidates = 1_000;
const atOnce = 8;

/**
 * Looks under the path of a read whose answer was lost for leases that none of ours names and that were made about when it was
 * sent, and ends them. `unknown`: there is none, or it may be another's, or the tier does not say that nothing but this broker reads from the path, or Vault does not let
 * us list there (docs/vault.md). `wait`: another attempt of ours may have made what is there.
 */
export async function endStrays(
  { server, store, clock }: StrayOptions,
  asked: Extract<HandlePart, { kind: 'asked' }>,
  signal: AbortSignal,
): Promise<'gone' | 'wait' | 'unknown'> {
  const decidedAt = asked.at + 2 * server.config.issueTimeout;
  if (!asked.exclusive) return 'unknown';
  let found: string[];
  try {
    found = await listLeases(server, asked.path, signal);
  } catch (error) {
    if (asFailure(error)?.status === 403) return 'unknown';
    throw error;
  }
  const name = targetName(server.name);
  const known = await store.known(name, found);
  const candidates = found.filter((vaultLease) => !known.has(vaultLease));
  // Nothing was made; or something was made that Vault has no lease of (sweep.ts), and only the target knows.
  if (candidates.length === 0) return 'unknown';
  if (candidates.length > maxCandidates) return 'unknown';
  if (await store.attempting(name, asked.path, decidedAt + skew, clock.now())) return 'wait';
  // Once more, after the look at the attempts: one of them may have come to its end in between.
  const ours = await store.known(name, candidates);
  const strays = candidates.filter((vaultLease) => !ours.has(vaultLease));
  const lost = await store.lost(name, asked.path, clock.now());
  let ended = 0;
  for (let at = 0; at < strays.length; at += atOnce) {
    await Promise.all(
      strays.slice(at, at + atOnce).map(async (vaultLease) => {
        const lease = await lookUpLease(server, vaultLease, signal);
        if (lease === undefined) return;
        const { issuedAt } = lease;
        if (issuedAt < asked.at - skew || issuedAt > decidedAt + skew) return;
        await endLease(server, vaultLease, signal);
        ended += 1;
      }),
    );
  }
  // Vault does not say with which token a lease was made: of several lost reads none knows which was its own.
  return ended === 1 && lost <= 1 ? 'gone' : 'unknown';
}
