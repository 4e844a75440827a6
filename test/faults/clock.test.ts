import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { loadConfig } from '../../src/config/load-config.ts';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { RevocationService, type WatchRevocationsResponse } from '../../src/gen/leasehold/v1/revocation_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { createEstate, startInProcess, type TestEstate } from '../support/broker.ts';
import {
  brokerRows,
  callers,
  eventually,
  expectSettled,
  leasesOf,
  loginOf,
  openTask,
  ordersSeenBy,
  refusalOf,
  reportsRead,
  secondReplica,
  tokenOf,
  claimsOf,
  warehouseRead,
} from './support.ts';

/** Fault 13. A is right; B is a replica on the same database whose clock can be set. */
const hour = 3_600_000;
let estate: TestEstate;
let second: Awaited<ReturnType<typeof secondReplica>>;
let ahead = 0;
let a: Awaited<ReturnType<typeof startInProcess>>;
let b: Awaited<ReturnType<typeof startInProcess>>;
beforeAll(async () => {
  estate = await createEstate('clock', { attestation: { maxTokenLifetime: '3h' } });
  second = await secondReplica(estate);
  a = await startInProcess(estate);
});
afterEach(async () => {
  await b.stop();
  ahead = 0;
});
afterAll(async () => {
  await a?.stop();
  await estate?.remove();
});

async function startB(): Promise<void> {
  const config = loadConfig({ path: second.configFile, env: process.env });
  b = await startInProcess(estate, { config, clock: { now: () => Date.now() + ahead } });
}

/** As seen by the replica whose clock is ahead, a token of one hour has expired. */
const atB = () => ({
  orchestrator: estate.client(TaskService, 'orchestrator', second.httpPort, 2.5 * hour),
  agent: estate.client(CredentialService, 'agent/analyst', second.httpPort, 2.5 * hour),
});

async function untilTold(feed: AsyncIterable<WatchRevocationsResponse>, taskId: string): Promise<void> {
  for await (const { revocations } of feed) if (revocations.some(({ subject }) => subject.value === taskId)) return;
  throw new Error('the feed ended');
}

describe.each([
  ['ahead', hour],
  ['behind', -hour],
])('a replica whose clock is an hour %s', (_, offset) => {
  test('issues and renews nothing, and says why', async () => {
    const taskId = await openTask(estate);
    const { credential } = await callers(estate).agent.issueCredential({ taskId, ...reportsRead });
    ahead = offset;
    await startB();
    const { agent, orchestrator } = atB();
    const skew = { code: 'FailedPrecondition', reason: 'CLOCK_SKEW' };
    for (const access of [reportsRead, warehouseRead]) {
      expect(await refusalOf(agent.issueCredential({ taskId, ...access }))).toMatchObject(skew);
    }
    expect(await refusalOf(agent.renewCredential({ leaseId: credential!.lease!.leaseId }))).toMatchObject(skew);
    const opening = orchestrator.openTask({ intent: 'no', agent: 'analyst', tools: [reportsRead] });
    expect(await refusalOf(opening)).toMatchObject(skew);
    expect(await leasesOf(estate, taskId)).toHaveLength(1);
    const readyz = await fetch(`http://127.0.0.1:${second.httpPort}/readyz`);
    expect(readyz.status).toBe(503);
  });

  test('closes a task in truth: followers of the other replica are told, and all is settled', async () => {
    const taskId = await openTask(estate);
    for (const access of [reportsRead, warehouseRead])
      await callers(estate).agent.issueCredential({ taskId, ...access });
    ahead = offset;
    await startB();
    const gone = new AbortController();
    const feed = estate.client(RevocationService, 'tool/reports').watchRevocations({}, { signal: gone.signal });
    const told = untilTold(feed, taskId);
    const { task } = await atB().orchestrator.closeTask({ taskId });
    await told;
    gone.abort();
    await expectSettled(estate, taskId);
    expect((await leasesOf(estate, taskId)).map((lease) => lease['outcome'])).toEqual(['revoked', 'revoked']);
    // An hour off is no reason for an alarm either.
    expect(
      await brokerRows(estate, `SELECT FROM audit_events WHERE task_id = $1 AND kind = 'task.degraded'`, [taskId]),
    ).toEqual([]);
    expect(Math.abs(Number(task!.closeTime!.seconds) * 1_000 - Date.now())).toBeLessThan(60_000);
  });
});

test('a replica whose clock is ahead ends nothing before its time', { timeout: 60_000 }, async () => {
  const { agent, orchestrator } = callers(estate);
  const taskId = await openTask(estate);
  await agent.issueCredential({ taskId, ...reportsRead });
  const { credential } = await agent.issueCredential({ taskId, ...warehouseRead });
  const before = await leasesOf(estate, taskId);
  await orchestrator.openTask({
    intent: 'ends',
    agent: 'analyst',
    tools: [reportsRead],
    ttl: { seconds: 2n, nanos: 0 },
  });
  await a.stop();
  ahead = hour;
  await startB();
  // Its workers have been round when what is really over has ended by them.
  await eventually(async () =>
    expect(
      await brokerRows(estate, `SELECT FROM tasks WHERE close_cause = 'deadline' AND state = 'closed'`),
    ).toHaveLength(1),
  );
  expect(await leasesOf(estate, taskId)).toEqual(before);
  expect(await brokerRows(estate, 'SELECT state FROM tasks WHERE task_id = $1', [taskId])).toEqual([{ state: 'open' }]);
  expect(await ordersSeenBy(loginOf(credential))).toBe(3);
  a = await startInProcess(estate);
});

test('a clock that jumps between two looks lets nothing past its ceiling', async () => {
  await startB();
  const { agent, orchestrator } = atB();
  const { task } = await orchestrator.openTask({
    intent: 'long',
    agent: 'analyst',
    tools: [reportsRead, warehouseRead],
    ttl: { seconds: 36_000n, nanos: 0 },
  });
  const { credential } = await agent.issueCredential({ taskId: task!.taskId, ...reportsRead });
  expect(Number(claimsOf(tokenOf(credential))['exp']) * 1_000).toBeLessThan(Date.now() + 601_000);
  ahead = hour;
  for (const access of [reportsRead, warehouseRead]) {
    const refusal = await refusalOf(agent.issueCredential({ taskId: task!.taskId, ...access }));
    expect(refusal).toMatchObject({ code: 'FailedPrecondition', reason: 'CLOCK_SKEW' });
  }
  const renewal = await refusalOf(agent.renewCredential({ leaseId: credential!.lease!.leaseId }));
  expect(['CLOCK_SKEW', 'LEASE_ENDED']).toContain(renewal.reason);
  const late = await brokerRows(estate, `SELECT lease_id FROM leases WHERE expires_at > now() + interval '601 s'`);
  expect(late).toEqual([]);
});
