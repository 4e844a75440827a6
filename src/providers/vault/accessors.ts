import type { Millis } from '../../domain/time.ts';
import { asFailure, type VaultFailure } from './failure.ts';
import type { Open } from './server.ts';

/** All that is done with a task's token once it is made needs its accessor alone, and the broker's own right to use it. */
async function byAccessor(server: Open, what: string, accessor: string, signal: AbortSignal) {
  return await server.session.call({
    method: 'POST',
    path: `auth/token/${what}-accessor`,
    body: { accessor },
    lane: 'settle',
    signal,
    timeout: server.config.settleTimeout,
  });
}

/** Vault says in several ways, with 403 and 404 among others, that it knows no such token. */
function isUnknown(failure: VaultFailure | undefined): boolean {
  if (failure?.status === 404) return true;
  return (
    (failure?.status === 400 || failure?.status === 403) &&
    /invalid accessor|bad token|token not found|no such token|failed to find accessor/i.test(failure.said)
  );
}

/** What remains of the token's life, undefined when Vault knows it no more. */
export async function renewToken(server: Open, accessor: string, signal: AbortSignal): Promise<Millis | undefined> {
  try {
    const { body } = await byAccessor(server, 'renew', accessor, signal);
    const life = (body['auth'] as { lease_duration?: unknown } | undefined)?.lease_duration;
    return typeof life === 'number' ? life * 1_000 : 0;
  } catch (error) {
    const failure = asFailure(error);
    if (isUnknown(failure)) return undefined;
    // What a token that just ran out is answered with differs; a look does not.
    if (failure?.status === undefined || failure.status >= 500 || failure.status === 429) throw error;
    if ((await lookUpToken(server, accessor, signal)) === undefined) return undefined;
    throw error;
  }
}

export interface SeenToken {
  meta: Readonly<Record<string, string>>;
  ttl: Millis;
  createdAt: number;
}

export async function lookUpToken(server: Open, accessor: string, signal: AbortSignal): Promise<SeenToken | undefined> {
  try {
    const { body } = await byAccessor(server, 'lookup', accessor, signal);
    const data = body['data'] as
      { meta?: Record<string, string> | null; ttl?: number; creation_time?: number } | undefined;
    return { meta: data?.meta ?? {}, ttl: (data?.ttl ?? 0) * 1_000, createdAt: (data?.creation_time ?? 0) * 1_000 };
  } catch (error) {
    if (isUnknown(asFailure(error))) return undefined;
    throw error;
  }
}

/** Ends the token; Vault then takes away what was made with it, one by one. Answers when the token is gone. */
export async function endToken(server: Open, accessor: string, signal: AbortSignal): Promise<void> {
  try {
    await byAccessor(server, 'revoke', accessor, signal);
  } catch (error) {
    const failure = asFailure(error);
    if (failure?.status === undefined || failure.status >= 500 || failure.status === 429) throw error;
    if ((await lookUpToken(server, accessor, signal)) === undefined) return;
    throw error;
  }
  if ((await lookUpToken(server, accessor, signal)) !== undefined) {
    throw new Error(`token with accessor ${accessor} was revoked and is still known`);
  }
}
