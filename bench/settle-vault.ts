import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { vaultErrors } from '../src/dev/vault-request.ts';
import type { Arguments } from './arguments.ts';
import type { Estate, Machine } from './estate.ts';
import { ledger, openTasks } from './scenarios.ts';
import { quiet } from './settle.ts';
import { median } from './statistics.ts';
import { credsPath, inTurns, makeTokens, vaultLogins, vaultOf, vaultQuiet } from './vault.ts';

/** Made, and revoked one by one, at the same time. */
const inFlight = 32;
const mostTimes = 1.1;
const patience = 300_000;

/** Prepares `count` logins, and gives what takes them all away. */
type Way = (estate: Estate, count: number) => Promise<() => Promise<unknown>>;

/**
 * From the order until the target has really lost every login, which is asked of `pg_roles` itself: a task closed at the
 * broker, against what Vault does when it is told itself. Ways take turns within a round.
 */
const ways: Record<'close' | 'accessor' | 'sync', Way> = {
  close: async (estate, count) => {
    const taskId = (await openTasks(estate, 1, [ledger]))[0]!;
    await inTurns(count, inFlight, () =>
      estate.credentials.issueCredential({ requestId: randomUUID(), taskId, ...ledger }),
    );
    return () => estate.tasks.closeTask({ requestId: randomUUID(), taskId });
  },
  accessor: async (estate, count) => {
    const { accessor } = await leasesOfOne(estate, count);
    return () => toldVault(estate, 'auth/token/revoke-accessor', { accessor });
  },
  sync: async (estate, count) => {
    const { leases } = await leasesOfOne(estate, count);
    const revoke = (n: number) => vaultOf(estate).root('PUT', 'sys/leases/revoke', { lease_id: leases[n], sync: true });
    return () => inTurns(count, inFlight, revoke);
  },
};

interface Times {
  leases: number;
  ms: Record<keyof typeof ways, number>;
  /** Median over the rounds of what the close took, over what revoking the accessor took in the same round. */
  toAccessor: number;
  toSync: number;
}

/** Gives the exit code: 1 when a close took longer than it may. */
export async function measureSettleVault(
  machine: Machine,
  args: Arguments,
  binary: string,
  progress: (line: string) => void,
): Promise<number> {
  const estate = await machine.startBroker('settle_vault', { vault: binary });
  const found: Times[] = [];
  for (const leases of args.leases) {
    const rounds: Times['ms'][] = [];
    // The first finds nothing in any cache, and does not count.
    for (let round = 0; round <= args.rounds; round++) {
      const ms = { close: 0, accessor: 0, sync: 0 };
      for (const [name, way] of Object.entries(ways)) ms[name as keyof typeof ways] = await once(estate, way, leases);
      if (round > 0) rounds.push(ms);
      progress(`settle-vault, ${leases} leases: round ${round} of ${args.rounds}`);
    }
    const of = (value: (ms: Times['ms']) => number) => median(rounds.map(value));
    found.push({
      leases,
      ms: { close: of((ms) => ms.close), accessor: of((ms) => ms.accessor), sync: of((ms) => ms.sync) },
      toAccessor: of((ms) => ms.close / ms.accessor),
      toSync: of((ms) => ms.close / ms.sync),
    });
  }
  return report(found, args, progress);
}

async function once(estate: Estate, way: Way, count: number): Promise<number> {
  const takeAway = await way(estate, count);
  const made = await vaultLogins(estate);
  if (made !== count) throw new Error(`${count} logins were made, and the target has ${made}`);
  const start = performance.now();
  // Not awaited before looking: what counts is the target, not the answer.
  const order = takeAway();
  // Told where it is awaited: unheard it would end the process, and leave its servers' folders behind.
  order.catch(() => undefined);
  const until = start + patience;
  while ((await vaultLogins(estate)) > 0) {
    if (performance.now() > until) throw new Error('the target still has logins after five minutes');
    await sleep(1);
  }
  const took = performance.now() - start;
  await order;
  await quiet(estate);
  await vaultQuiet(estate);
  return took;
}

async function toldVault(estate: Estate, path: string, body: object): Promise<void> {
  const vault = vaultOf(estate);
  const answer = await vault.request({ method: 'PUT', path, body, token: vault.rootToken, timeoutMs: patience });
  if (answer.status >= 300) throw new Error(`${path}: ${vaultErrors(answer)}`);
}

async function leasesOfOne(estate: Estate, count: number): Promise<{ accessor: string; leases: string[] }> {
  const vault = vaultOf(estate);
  const { token, accessor } = (await makeTokens(vault, 1))[0]!;
  const leases = await inTurns(count, inFlight, async () => {
    const { status, json } = await vault.request({ method: 'GET', path: credsPath, token });
    if (status !== 200) throw new Error(`Vault gave no login: ${status}`);
    return String(json['lease_id']);
  });
  return { accessor, leases };
}

function report(found: readonly Times[], args: Arguments, progress: (line: string) => void): number {
  const print = (line: string) => void process.stdout.write(`${line}\n`);
  let missed = 0;
  for (const { leases, ms, toAccessor, toSync } of found) {
    if (args.json) {
      const rounded = Object.fromEntries(Object.entries(ms).map(([name, value]) => [`${name}_ms`, Math.round(value)]));
      print(JSON.stringify({ scenario: 'settle-vault', leases, ...rounded, toAccessor, toSync }));
    } else {
      const times = Object.entries(ms).map(([name, value]) => `${name} ${value.toFixed(0)} ms`);
      print(`settle-vault, ${leases} leases: ${times.join(', ')}`);
    }
    for (const [what, got] of [
      ['revoke-accessor', toAccessor],
      ['sync revokes', toSync],
    ] as const) {
      const met = got <= mostTimes;
      if (!met) missed = 1;
      const line = `${met ? 'met   ' : 'MISSED'} settle-vault with ${leases} leases: close / ${what}: ${got.toFixed(2)} (wanted ≤ ${mostTimes})`;
      if (args.json) progress(line);
      else print(line);
    }
  }
  return missed;
}
