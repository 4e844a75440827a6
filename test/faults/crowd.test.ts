import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { devWorkload } from '../../src/dev/environment.ts';
import type { Credential } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { createEstate, startProcess, type BrokerProcess, type TestEstate } from '../support/broker.ts';
import { asSuperuser } from '../support/postgres.ts';
import { startLoad } from './load.ts';
import {
  brokerRows,
  callers,
  eventually,
  loginOf,
  openTask,
  ordersSeenBy,
  reportsRead,
  retrying,
  rolesOf,
  warehouseRead,
} from './support.ts';

/** Fault 14. */
let estate: TestEstate;
let broker: BrokerProcess;
beforeAll(async () => {
  estate = await createEstate('crowd', { server: { limits: { callsPerSecond: 10_000, burst: 20_000 } } });
  broker = await startProcess(estate);
});
afterAll(async () => {
  await broker?.stop();
  await estate?.remove();
});

/** By SQL: to issue so many takes longer than all else here. */
async function addTokens(count: number): Promise<void> {
  const perTask = 1_000;
  for (let at = 0; at < count; at += perTask) {
    await brokerRows(
      estate,
      `INSERT INTO leases (tenant, task_id, lease_id, request_id, agent, workload, tool, tier, provider, handle, state,
        revocation_kind, issued_at, expires_at, settle_at, line_started_at, policy_revision, policy_rule)
       SELECT 'default', $1, 'lse_' || replace(gen_random_uuid()::text, '-', ''), gen_random_uuid(), 'analyst', $2,
        'reports', 'read', 'jwt', '', 'active', 'immediate', now(), until, until, now(), 'test', 'test'
       FROM generate_series(1, $3) n, LATERAL (SELECT now() + interval '40 min' + n * interval '1 s' AS until)`,
      [await openTask(estate), devWorkload('agent/analyst'), perTask],
    );
  }
}

/** Logins that work, all of one task. */
async function logins(count: number) {
  const taskId = await openTask(estate);
  const { agent } = callers(estate);
  const made = [];
  for (let at = 0; at < count; at += 16) {
    made.push(
      ...(await Promise.all(
        Array.from({ length: Math.min(16, count - at) }, () => agent.issueCredential({ taskId, ...warehouseRead })),
      )),
    );
  }
  return made.map(({ credential }) => credential!);
}

/** From now on these end in the same second. */
async function endTogether(limit: number): Promise<void> {
  await brokerRows(
    estate,
    `UPDATE leases SET expires_at = s.second, settle_at = s.second
     FROM (SELECT date_trunc('second', clock_timestamp()) + interval '2 s' AS second) s
     WHERE lease_id IN (SELECT lease_id FROM leases WHERE state = 'active' AND provider = 'jwt' ORDER BY lease_id LIMIT $1)
       OR (state = 'active' AND provider = 'postgres')`,
    [limit],
  );
}

const unsettled = async () => {
  const rows = await brokerRows(
    estate,
    `SELECT count(*)::int AS count FROM leases WHERE state <> 'settled' AND expires_at < now() + interval '1 minute'`,
  );
  return rows[0]!['count'];
};

const active = async () => {
  const rows = await brokerRows(estate, `SELECT count(*)::int AS count FROM leases WHERE state = 'active'`);
  return rows[0]!['count'] as number;
};

/** Most connections of the broker that the target had at once, seen by looking over and over. */
function watchTarget() {
  let most = 0;
  let stopped = false;
  const watching = asSuperuser(estate.targetUrl, async (client) => {
    while (!stopped) {
      const { rows } = await client.query<{ count: number }>(
        'SELECT count(*)::int AS count FROM pg_stat_activity WHERE usename = $1',
        [estate.target.user],
      );
      most = Math.max(most, rows[0]!.count);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  });
  return async () => {
    stopped = true;
    await watching;
    return most;
  };
}

/** Megabytes of the broker's process that are in memory. */
async function memory(): Promise<number> {
  const { stdout } = await promisify(execFile)('ps', ['-o', 'rss=', '-p', String(broker.child.pid)]);
  return Number(stdout) / 1_024;
}

/** All logins that were ever made, and these do not log in any more. */
async function expectGone(held: readonly Credential[], made: number): Promise<void> {
  const leases = await brokerRows(estate, `SELECT handle FROM leases WHERE provider = 'postgres'`);
  expect(leases).toHaveLength(made);
  expect(await rolesOf(estate, leases)).toEqual([]);
  await expect(ordersSeenBy(loginOf(held[0]))).rejects.toThrow();
}

const outcomes = async () =>
  await brokerRows(
    estate,
    `SELECT DISTINCT provider, outcome FROM leases WHERE state = 'settled' AND settle_cause = 'expired' ORDER BY provider`,
  );

test(
  'ten thousand leases end in one second: others are served meanwhile, and the target sees no more connections than it is meant to',
  { timeout: 120_000 },
  async () => {
    await addTokens(10_000);
    const held = await logins(100);
    expect(await ordersSeenBy(loginOf(held[0]))).toBe(3);
    const taskId = await openTask(estate);
    const load = startLoad(estate, taskId);
    const connections = watchTarget();
    const before = await memory();

    await endTogether(10_000);
    await eventually(async () => expect(await unsettled()).toBe(0), 60_000);

    await load.stop();
    expect(load.refused).toEqual([]);
    expect(load.acknowledged.length).toBeGreaterThan(100);
    expect(await connections()).toBeLessThanOrEqual(10);
    expect((await memory()) - before).toBeLessThan(100);
    expect(await outcomes()).toEqual([
      { provider: 'jwt', outcome: 'expired' },
      { provider: 'postgres', outcome: 'expired' },
    ]);
    await expectGone(held, 100);
  },
);

test(
  'a broker that starts with a hundred thousand open leases, ten thousand of them overdue, serves and catches up in bounded memory',
  { timeout: 120_000 },
  async () => {
    await addTokens(100_000);
    const held = await logins(100);
    await broker.kill();
    await endTogether(10_000);
    await new Promise((resolve) => setTimeout(resolve, 3_000));
    expect(await unsettled()).toBeGreaterThanOrEqual(10_100);

    broker = await startProcess(estate);
    const connections = watchTarget();
    const { agent } = callers(estate);
    const taskId = await openTask(estate);
    // Served before all that is overdue has been worked off, or at the latest with it.
    await retrying(() => agent.issueCredential({ taskId, ...reportsRead }));
    await eventually(async () => expect(await unsettled()).toBe(0), 60_000);
    expect(await connections()).toBeLessThanOrEqual(10);
    expect(await memory()).toBeLessThan(256);
    await expectGone(held, 200);
    // What is not over is left alone.
    expect(await active()).toBeGreaterThanOrEqual(90_000);
  },
);
