import { setTimeout as sleep } from 'node:timers/promises';
import type { Instant, Millis } from '../../domain/time.ts';
import { asFailure, VaultFailure } from './failure.ts';
import type { Open } from './server.ts';

/** What Vault says about a lease that it holds. */
export interface HeldLease {
  issuedAt: Instant;
  /** What is left of it. */
  ttl: Millis;
}

/**
 * Undefined: Vault does not know it (any more), and has revoked at its target what it knew. Nearly all errors of sys/leases
 * are 400, so its words tell, and what they do not tell is an error.
 */
export async function lookUpLease(
  server: Open,
  vaultLease: string,
  signal: AbortSignal,
): Promise<HeldLease | undefined> {
  try {
    const { body } = await server.session.call({
      method: 'POST',
      path: 'sys/leases/lookup',
      body: { lease_id: vaultLease },
      lane: 'settle',
      signal,
      timeout: server.config.settleTimeout,
    });
    const data = body['data'] as { issue_time?: string; ttl?: number } | undefined;
    return { issuedAt: Date.parse(data?.issue_time ?? ''), ttl: (data?.ttl ?? 0) * 1_000 };
  } catch (error) {
    const failure = asFailure(error);
    if (failure?.status === 404 || (failure?.status === 400 && /invalid lease|lease not found/i.test(failure.said))) {
      return undefined;
    }
    throw error;
  }
}

/**
 * Takes one lease away and answers when Vault knows it no more. `sync` makes Vault answer after its engine has done it; a 202
 * or a refusal is no answer, so a look decides either way.
 */
export async function endLease(server: Open, vaultLease: string, signal: AbortSignal): Promise<void> {
  let refusal: VaultFailure | undefined;
  try {
    await server.session.call({
      method: 'POST',
      path: 'sys/leases/revoke',
      body: { lease_id: vaultLease, sync: true },
      lane: 'settle',
      signal,
      timeout: server.config.settleTimeout,
    });
  } catch (error) {
    refusal = asFailure(error);
    // No answer at all: the next attempt finds out, and this one has no time left for a look.
    if (refusal?.status === undefined || refusal.status === 503 || refusal.status === 429) throw error;
  }
  if (await isGone(server, vaultLease, signal, refusal === undefined ? 1_000 : 0)) return;
  throw (
    refusal ??
    new VaultFailure(`sys/leases/revoke: Vault has taken the order and still knows the lease`, { outcome: 'unknown' })
  );
}

/** Looks until Vault knows the lease no more, for at most `patience`. */
export async function isGone(
  server: Open,
  vaultLease: string,
  signal: AbortSignal,
  patience: Millis,
): Promise<boolean> {
  const until = performance.now() + patience;
  for (let pause = 10; ; pause = Math.min(pause * 2, 250)) {
    if ((await lookUpLease(server, vaultLease, signal)) === undefined) return true;
    if (performance.now() + pause > until) return false;
    await sleep(pause, undefined, { signal }).catch(() => undefined);
    if (signal.aborted) return false;
  }
}

/** Asks for this much from now on; answers what Vault grants, which may be less. */
export async function renewLease(server: Open, vaultLease: string, life: Millis, signal: AbortSignal): Promise<Millis> {
  const { body } = await server.session.call({
    method: 'POST',
    path: 'sys/leases/renew',
    body: { lease_id: vaultLease, increment: Math.ceil(life / 1_000) },
    lane: 'issue',
    signal,
    timeout: server.config.issueTimeout,
  });
  const granted = body['lease_duration'];
  return typeof granted === 'number' ? granted * 1_000 : 0;
}

/** Names of all leases that Vault holds under a path. Its policy has to allow `list` and `sudo` there. */
export async function listLeases(server: Open, path: string, signal: AbortSignal): Promise<string[]> {
  try {
    const { body } = await server.session.call({
      method: 'LIST',
      path: `sys/leases/lookup/${path}/`,
      lane: 'settle',
      signal,
      timeout: server.config.settleTimeout,
    });
    const keys = (body['data'] as { keys?: unknown } | undefined)?.keys;
    return Array.isArray(keys) ? keys.filter((key) => typeof key === 'string').map((key) => `${path}/${key}`) : [];
  } catch (error) {
    if (asFailure(error)?.status === 404) return [];
    throw error;
  }
}
