import { setTimeout as sleep } from 'node:timers/promises';
import type { VaultServer } from '../src/dev/vault-server.ts';
import type { Estate } from './estate.ts';

/** Where Vault's database engine makes the logins, for the broker and for those who call Vault themselves alike. */
export const credsPath = 'database/creds/read';

export interface VaultToken {
  token: string;
  accessor: string;
}

const patience = 180_000;
const madeAtOnce = 16;

export function vaultOf({ vault }: Estate): VaultServer {
  if (vault === undefined) throw new Error('this benchmark needs a Vault server');
  return vault;
}

/** Tokens such as the broker makes for its tasks: orphan, periodic, from the same role. */
export async function makeTokens(vault: VaultServer, count: number): Promise<VaultToken[]> {
  const one = async () => {
    const { auth } = await vault.root<{ auth: { client_token: string; accessor: string } }>(
      'POST',
      'auth/token/create/leasehold-task',
    );
    return { token: auth.client_token, accessor: auth.accessor };
  };
  return await inTurns(count, madeAtOnce, one);
}

/** Works `count` times, at most `atOnce` at the same time. */
export async function inTurns<T>(count: number, atOnce: number, work: (n: number) => Promise<T>): Promise<T[]> {
  const results: T[] = [];
  let next = 0;
  const slot = async () => {
    for (let n = next++; n < count; n = next++) results[n] = await work(n);
  };
  await Promise.all(Array.from({ length: Math.min(atOnce, count) }, slot));
  return results;
}

/** What Vault made for this target, as the target itself says. */
export async function vaultLogins(estate: Estate): Promise<number> {
  const { rows } = await estate.target.query<{ count: number }>(
    `SELECT count(*)::int AS count FROM pg_roles WHERE rolname LIKE 'v-' || current_database() || '-%'`,
  );
  return rows[0]!.count;
}

/** Waits until Vault holds no lease of the path, and the target no login: one slice's work does not weigh on the next. */
export async function vaultQuiet(estate: Estate): Promise<void> {
  const vault = vaultOf(estate);
  const until = Date.now() + patience;
  for (;;) {
    const { status } = await vault.request({
      method: 'LIST',
      path: `sys/leases/lookup/${credsPath}/`,
      token: vault.rootToken,
    });
    if (status === 404 && (await vaultLogins(estate)) === 0) return;
    if (Date.now() > until) throw new Error(`Vault did not settle its leases within ${patience / 1_000} s`);
    await sleep(100);
  }
}
