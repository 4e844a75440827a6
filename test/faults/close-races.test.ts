import { afterAll, beforeAll, expect, test } from 'vitest';
import { createEstate, startProcess, type BrokerProcess, type TestEstate } from '../support/broker.ts';
import {
  brokerRows,
  callers,
  editConfig,
  eventually,
  expectSettled,
  leasesOf,
  openTask,
  refusalOf,
  reportsRead,
  rolesOf,
  secondReplica,
  seeded,
  warehouseRead,
} from './support.ts';

/** Faults 5, 6 and 7: two brokers, each a process of its own, on one database. */
let estate: TestEstate;
let replicas: BrokerProcess[];
let ports: number[];
beforeAll(async () => {
  estate = await createEstate('race', { log: { level: 'warn' } });
  await editConfig(estate, ({ server }) =>
    Object.assign(server!, { limits: { callsPerSecond: 1_000_000, burst: 1_000_000 } }),
  );
  const second = await secondReplica(estate);
  ports = [estate.httpPort, second.httpPort];
  replicas = await Promise.all([startProcess(estate), startProcess(estate, { configFile: second.configFile })]);
});
afterAll(async () => {
  await Promise.all((replicas ?? []).map((replica) => replica.stop()));
  await estate?.remove();
});

const random = seeded(7);
const pick = <T>(items: readonly T[]): T => items[Math.floor(random() * items.length)]!;

/** All rounds, some at a time. */
async function rounds(count: number, atOnce: number, round: (index: number) => Promise<void>): Promise<void> {
  let next = 0;
  await Promise.all(
    Array.from({ length: atOnce }, async () => {
      while (next < count) await round(next++);
    }),
  );
}

/** What must hold for every task here that was closed, by the tables and the target alone. */
async function expectNothingSlippedThrough(): Promise<void> {
  await eventually(async () => {
    expect(await brokerRows(estate, `SELECT task_id, state FROM tasks WHERE state NOT IN ('closed', 'open')`)).toEqual(
      [],
    );
  }, 30_000);
  // An event's number is taken while the task's row is locked: the order of numbers is the order of commits.
  expect(
    await brokerRows(
      estate,
      `SELECT i.task_id, i.lease_id FROM audit_events i JOIN audit_events c USING (tenant, task_id)
       WHERE c.kind = 'task.closed' AND i.kind IN ('lease.issued', 'lease.renewed', 'lease.reissued') AND i.event_id > c.event_id`,
    ),
  ).toEqual([]);
  const closed = await brokerRows(
    estate,
    `SELECT l.* FROM leases l JOIN tasks t USING (tenant, task_id) WHERE t.state = 'closed'`,
  );
  expect(closed.filter((lease) => lease['state'] !== 'settled' || lease['outcome'] === null)).toEqual([]);
  expect(await rolesOf(estate, closed)).toEqual([]);
  // Whoever holds a token of a closed task is told by the feed.
  expect(
    await brokerRows(
      estate,
      `SELECT l.lease_id FROM leases l JOIN tasks t USING (tenant, task_id)
       WHERE t.state = 'closed' AND l.provider = 'jwt' AND l.expires_at > now()
         AND NOT EXISTS (SELECT FROM revocations r WHERE r.task_id = l.task_id OR r.lease_id = l.lease_id)`,
    ),
  ).toEqual([]);
  expect(
    await brokerRows(
      estate,
      `SELECT task_id, lease_id, count(*) FROM audit_events WHERE kind IN ('lease.settled', 'task.settled')
       GROUP BY task_id, lease_id HAVING count(*) > 1`,
    ),
  ).toEqual([]);
}

test('no credential is issued after a close, in 1,000 races on two replicas', { timeout: 120_000 }, async () => {
  let issued = 0;
  let refused = 0;
  await rounds(1_000, 12, async (index) => {
    const access = index % 25 === 0 ? warehouseRead : reportsRead;
    const [near, far] = index % 2 === 0 ? ports : [...ports].reverse();
    const taskId = await openTask(estate, near);
    // The replica that has the task in memory is not the one that closes it.
    const held = index % 3 === 0 ? [await callers(estate, near).agent.issueCredential({ taskId, ...access })] : [];
    const closing = callers(estate, far).orchestrator.closeTask({ taskId });
    const racing = Promise.allSettled(
      [near, far].map((port) => callers(estate, port).agent.issueCredential({ taskId, ...access })),
    );
    await closing;
    if (index % 10 === 0) {
      const late = await refusalOf(callers(estate, pick(ports)).agent.issueCredential({ taskId, ...access }));
      expect(late).toMatchObject({ code: 'FailedPrecondition', reason: 'TASK_CLOSED' });
    }
    for (const result of await racing) {
      if (result.status === 'fulfilled') issued += 1;
      else {
        refused += 1;
        expect(await refusalOf(Promise.reject(result.reason as Error))).toMatchObject({ reason: 'TASK_CLOSED' });
      }
    }
    issued += held.length;
  });
  // Both ways of the race were seen.
  expect(issued).toBeGreaterThan(300);
  expect(refused).toBeGreaterThan(100);
  const [recorded] = await brokerRows(
    estate,
    `SELECT count(*)::int AS count FROM leases WHERE settle_cause <> 'abandoned'`,
  );
  expect(recorded!['count']).toBe(issued);
  await expectNothingSlippedThrough();
});

test('closing twice at once and again later is one close', async () => {
  const taskId = await openTask(estate);
  for (const access of [reportsRead, warehouseRead]) await callers(estate).agent.issueCredential({ taskId, ...access });
  const close = (port: number | undefined) => callers(estate, port).orchestrator.closeTask({ taskId, wait: true });
  const answers = await Promise.all([close(ports[0]), close(ports[1]), close(ports[0]), close(ports[1])]);
  answers.push(await close(ports[1]));
  for (const answer of answers) {
    expect(answer.task).toEqual(answers[0]!.task);
    expect(answer.leases).toEqual(answers[0]!.leases);
    expect(answer.summary).toMatchObject({ unsettled: 0, revoked: 2 });
  }
  const events = await brokerRows(
    estate,
    `SELECT kind, count(*)::int AS count FROM audit_events WHERE task_id = $1 AND kind ~ '^task.(closed|settled)|^lease.settled'
     GROUP BY kind ORDER BY kind`,
    [taskId],
  );
  expect(events).toEqual([
    { kind: 'lease.settled', count: 2 },
    { kind: 'task.closed', count: 1 },
    { kind: 'task.settled', count: 1 },
  ]);
  await expectSettled(estate, taskId);
});

test('a renewal that races with a close is settled or refused', { timeout: 60_000 }, async () => {
  let renewed = 0;
  await rounds(120, 8, async (index) => {
    const access = index % 6 === 0 ? warehouseRead : reportsRead;
    const [near, far] = index % 2 === 0 ? ports : [...ports].reverse();
    const taskId = await openTask(estate, near);
    const { credential } = await callers(estate, near).agent.issueCredential({ taskId, ...access });
    const leaseId = credential!.lease!.leaseId;
    const [renewal] = await Promise.allSettled([
      callers(estate, near).agent.renewCredential({ leaseId }),
      callers(estate, far).orchestrator.closeTask({ taskId }),
    ]);
    if (renewal.status === 'fulfilled') renewed += 1;
    else {
      const { reason } = await refusalOf(Promise.reject(renewal.reason as Error));
      expect(['TASK_CLOSED', 'LEASE_ENDED']).toContain(reason);
    }
    const late = await refusalOf(callers(estate, pick(ports)).agent.renewCredential({ leaseId }));
    expect(['TASK_CLOSED', 'LEASE_ENDED']).toContain(late.reason);
    const live = (await leasesOf(estate, taskId)).filter((lease) => lease['settle_cause'] !== 'abandoned');
    expect(live).toHaveLength(renewal.status === 'fulfilled' ? 2 : 1);
  });
  expect(renewed).toBeGreaterThan(0);
  await expectNothingSlippedThrough();
});
